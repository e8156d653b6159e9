// Arithmetic whose bits must be the same on every device, and a test of its results.
#pragma once

#include "portable/kernel.h"

namespace secateur {

/// a * b, rounded by itself: nvcc would fuse it with an addition after it. (The host library is compiled without fusing.)
DEVICE float product(float a, float b) {
#ifdef __CUDACC__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

/// Whether a number is neither NaN nor infinite.
DEVICE bool is_finite(float value) { return value - value == 0.0f; }

}  // namespace secateur
