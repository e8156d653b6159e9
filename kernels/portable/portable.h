// Everything a kernel needs, on a GPU and on the emulator alike. Kernels include this file and nothing else.
//
// Each part has two bodies of one name: PTX or intrinsics where nvcc compiles it, C++ and calls into host/ where
// the C++ compiler does.
#pragma once

#include "portable/kernel.h"
#include "portable/global.h"
#include "portable/bf16.h"
#include "portable/exact.h"
#include "portable/vectors.h"
#include "portable/warp.h"
#include "portable/atomic.h"
#include "portable/mma.h"
#include "portable/async_copy.h"
#include "portable/reduce.h"
#include "portable/philox.h"
