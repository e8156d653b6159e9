// Evaluation-mode BatchNorm folded into the convolutions, all twenty in one launch.
//
//   scale = gamma / sqrt(running variance + epsilon)
//   folded weight = bf16(weight * scale), folded bias = beta - running mean * scale
//
// A block takes one filter (output channel). Filters are numbered through the whole network, so the bias of a layer
// starts at its first filter.

#include "portable/portable.h"

namespace secateur {

/// Where one convolution lies; offsets in elements.
struct FoldLayer {
    uint32_t first_filter;
    uint32_t weight;         // in the f32 arena: filters x taps x channels
    uint32_t folded;         // in the bf16 arena
    uint32_t filter_length;  // taps x channels
};

struct FoldParams {
    Global<const FoldLayer> layers;
    Global<const float> weights;
    Global<const float> gamma;  // this and the next three: one element a filter of the network
    Global<const float> beta;
    Global<const float> mean;
    Global<const float> variance;
    Global<Bf16> folded;
    Global<float> bias;  // one element a filter of the network
    uint32_t layer_count;
    float epsilon;
};

KERNEL(batch_norm_fold, FoldParams, 128, NoShared) {
    const uint32_t filter = blockIdx.x;
    uint32_t l = 0;
    while (l + 1 < p.layer_count && p.layers[l + 1].first_filter <= filter) ++l;
    const FoldLayer layer = p.layers[l];
    const uint32_t channel = filter - layer.first_filter;

    const float scale = p.gamma[filter] / sqrtf(p.variance[filter] + p.epsilon);
    if (threadIdx.x == 0) p.bias[filter] = p.beta[filter] - p.mean[filter] * scale;

    if (l == 0) {
        // The stem reads [hi0 hi1 hi2 lo0 lo1 lo2 0 0]: both halves of the image meet the same weight.
        if (threadIdx.x < 9) {
            const int64_t tap = int64_t(channel) * 9 + threadIdx.x;
            Float8 packed = {};
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                packed.value[c] = packed.value[c + 3] = p.weights[layer.weight + tap * 3 + c] * scale;
            }
            store_bf16x8(p.folded, layer.folded + tap * 8, packed);
        }
        return;
    }
    const int64_t start = int64_t(channel) * layer.filter_length;
    for (uint32_t i = threadIdx.x * 8; i < layer.filter_length; i += blockDim.x * 8) {
        Float8 v = load_float8(p.weights, layer.weight + start + i);
#pragma unroll
        for (int c = 0; c < 8; ++c) v.value[c] *= scale;
        store_bf16x8(p.folded, layer.folded + start + i, v);
    }
}

}  // namespace secateur
