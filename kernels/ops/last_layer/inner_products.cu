// Inner products of last-layer gradients from their factors, f64:
//
//   column[i] = <g_i, g_sample>, squares[i] = <g_i, g_i>,
//   <g_i, g_j> = sum over the pairs of terms (a of i, b of j) of (dz_a . dz_b) (h_a . h_b + 1)
//
// A column is asked for at each step of a pursuit, so it is one launch bound by reading the features once: a warp takes four
// samples, a lane four features of each at a time; what is shared, the features of `sample`, comes out of the nearest cache.

#include "ops/last_layer/gradients.h"

namespace secateur {

constexpr uint32_t INNER_WARPS = 8;
constexpr int INNER_SAMPLES = 4;  // of a warp

struct InnerProductsParams {
    Gradients gradients;
    Global<double> products;  // len
    uint32_t sample;          // of a column
    uint32_t padding;
};

template <int TERMS, bool SQUARES>
DEVICE void inner_products(const InnerProductsParams& p) {
    const Gradients& g = p.gradients;
    const uint32_t first = (blockIdx.x * INNER_WARPS + warp_index()) * INNER_SAMPLES;
    if (first >= g.len) return;
    // Beyond the end the last sample is taken once more, and not written.
    int64_t samples[INNER_SAMPLES];
#pragma unroll
    for (int s = 0; s < INNER_SAMPLES; ++s) samples[s] = first + s < g.len ? first + s : g.len - 1;

    double features[INNER_SAMPLES][TERMS][TERMS] = {};
    for (uint32_t f = lane_index() * 4; f < g.width; f += WARP_FEATURES) {
        Double4 other[TERMS];
#pragma unroll
        for (int b = 0; b < TERMS; ++b) {
            if (!SQUARES) other[b] = load_widened(g.features[b], int64_t(p.sample) * g.width + f);
        }
#pragma unroll
        for (int s = 0; s < INNER_SAMPLES; ++s) {
            Double4 own[TERMS];
#pragma unroll
            for (int a = 0; a < TERMS; ++a) own[a] = load_widened(g.features[a], samples[s] * g.width + f);
#pragma unroll
            for (int a = 0; a < TERMS; ++a) {
#pragma unroll
                for (int b = 0; b < TERMS; ++b) {
                    const Double4& right = SQUARES ? own[b] : other[b];
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        features[s][a][b] = fused(own[a].value[i], right.value[i], features[s][a][b]);
                    }
                }
            }
        }
    }

    double logits[INNER_SAMPLES][TERMS][TERMS] = {};
    for (uint32_t c = lane_index(); c < g.classes; c += 32) {
        double other[TERMS];
#pragma unroll
        for (int b = 0; b < TERMS; ++b) {
            if (!SQUARES) other[b] = g.logit_gradient[b][int64_t(p.sample) * g.classes + c];
        }
#pragma unroll
        for (int s = 0; s < INNER_SAMPLES; ++s) {
            double own[TERMS];
#pragma unroll
            for (int a = 0; a < TERMS; ++a) own[a] = g.logit_gradient[a][samples[s] * g.classes + c];
#pragma unroll
            for (int a = 0; a < TERMS; ++a) {
#pragma unroll
                for (int b = 0; b < TERMS; ++b) {
                    logits[s][a][b] = fused(own[a], SQUARES ? own[b] : other[b], logits[s][a][b]);
                }
            }
        }
    }

#pragma unroll
    for (int s = 0; s < INNER_SAMPLES; ++s) {
        double product = 0.0;
#pragma unroll
        for (int a = 0; a < TERMS; ++a) {
#pragma unroll
            for (int b = 0; b < TERMS; ++b) {
                product = fused(warp_sum(logits[s][a][b]), warp_sum(features[s][a][b]) + 1.0, product);
            }
        }
        if (lane_index() == uint32_t(s) && first + s < g.len) p.products[first + s] = product;
    }
}

KERNEL(gradient_column_one_term, InnerProductsParams, INNER_WARPS * 32, NoShared) { inner_products<1, false>(p); }
KERNEL(gradient_column_two_terms, InnerProductsParams, INNER_WARPS * 32, NoShared) { inner_products<2, false>(p); }
KERNEL(gradient_squares_one_term, InnerProductsParams, INNER_WARPS * 32, NoShared) { inner_products<1, true>(p); }
KERNEL(gradient_squares_two_terms, InnerProductsParams, INNER_WARPS * 32, NoShared) { inner_products<2, true>(p); }

}  // namespace secateur
