// Last-layer gradients as the kernels of this folder read them: g_i = sum over the terms of dz_i (x) [h_i, 1].
//
// As one vector a gradient has classes x (features + 1) numbers: row c holds the weight's row c, then the bias c. All sums are
// f64, in which a product of two f32 is exact.
#pragma once

#include "portable/portable.h"

namespace secateur {

struct Gradients {
    Global<const float> logit_gradient[2];  // a term each: len x classes
    Global<const float> features[2];        // a term each: len x width, on 16 bytes
    uint32_t len;                           // samples
    uint32_t terms;                         // 1 or 2
    uint32_t classes;
    uint32_t width;  // features of a sample, a multiple of 128
};

/// Features that a warp reads in one access, four a lane.
constexpr uint32_t WARP_FEATURES = 128;

/// sum + a * b, rounded once.
DEVICE double fused(double a, double b, double sum) { return fma(a, b, sum); }

}  // namespace secateur
