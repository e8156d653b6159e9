// Backward pass of the head: the gradient that enters the last block, and the gradients of the linear layer.
//
//   g[pixel][f] = mask * (1/16) * sum over classes of dz[c] * weight[c][f]
//   dweight[c][f] = sum over images of dz[c] * pooled[f], dbias[c] = sum over images of dz[c]
//
// Sums run in a fixed order.

#include "portable/portable.h"

namespace secateur {

struct HeadBackwardParams {
    Global<const float> logit_gradient;  // batch x classes
    Global<const float> weight;          // classes x features
    Global<const uint8_t> mask;          // of the last activation: batch x 16 x features bits
    Global<Bf16> gradient;               // batch x 16 x features
    uint32_t features;                   // a power of two from 8 to 1024
    uint32_t classes;
};

KERNEL(head_input_gradient, HeadBackwardParams, 128, NoShared) {
    // Eight features a thread; what is left of the block shares the sixteen pixels.
    const uint32_t vectors = p.features / 8;
    const uint32_t vector = threadIdx.x & (vectors - 1);
    const int64_t image = blockIdx.x;

    Float8 sum = {};
    for (uint32_t c = 0; c < p.classes; ++c) {
        const float dz = p.logit_gradient[image * p.classes + c];
        const Float8 weight = load_float8(p.weight, int64_t(c) * p.features + vector * 8);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum.value[i] += dz * weight.value[i];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sum.value[i] *= 1.0f / 16.0f;

    for (uint32_t pixel = threadIdx.x / vectors; pixel < 16; pixel += 128 / vectors) {
        const int64_t at = (image * 16 + pixel) * vectors + vector;
        const uint32_t mask = p.mask[at];
        Float8 g;
#pragma unroll
        for (int i = 0; i < 8; ++i) g.value[i] = (mask >> i) & 1 ? sum.value[i] : 0.0f;
        store_bf16x8(p.gradient, at * 8, g);
    }
}

struct HeadWeightGradientParams {
    Global<const float> logit_gradient;  // batch x classes
    Global<const float> pooled;          // batch x features
    Global<float> weight_gradient;       // classes x features
    Global<float> bias_gradient;         // classes
    uint32_t batch;
    uint32_t features;  // a multiple of 32
    uint32_t classes;
    uint32_t accumulate;
};

struct HeadWeightGradientShared {
    float sums[8][32];
    float scratch[8];
};

KERNEL(head_weight_gradient, HeadWeightGradientParams, 256, HeadWeightGradientShared) {
    // A block takes 32 features of one class, a warp every eighth image.
    const uint32_t feature = blockIdx.x * 32 + lane_index();
    const uint32_t c = blockIdx.y;
    float sum = 0.0f;
    for (uint32_t image = warp_index(); image < p.batch; image += 8) {
        sum += p.logit_gradient[int64_t(image) * p.classes + c] * p.pooled[int64_t(image) * p.features + feature];
    }
    shared.sums[warp_index()][lane_index()] = sum;
    syncthreads();
    if (warp_index() == 0) {
#pragma unroll
        for (int warp = 1; warp < 8; ++warp) sum += shared.sums[warp][lane_index()];
        float& to = p.weight_gradient[int64_t(c) * p.features + feature];
        to = p.accumulate ? to + sum : sum;
    }

    if (blockIdx.x == 0) {
        float bias = 0.0f;
        for (uint32_t image = threadIdx.x; image < p.batch; image += 256) {
            bias += p.logit_gradient[int64_t(image) * p.classes + c];
        }
        bias = block_sum<256>(bias, shared.scratch);
        if (threadIdx.x == 0) p.bias_gradient[c] = p.accumulate ? p.bias_gradient[c] + bias : bias;
    }
}

}  // namespace secateur
