// The head: average over the 4x4 pixels of the last stage, then the linear layer.
//
// A block takes one image. The pooled features stay in f32, for the weight gradient and for whoever wants features.

#include "portable/portable.h"

namespace secateur {

constexpr uint32_t HEAD_THREADS = 128;
constexpr uint32_t HEAD_PIXELS = 16;
constexpr uint32_t HEAD_MAX_FEATURES = 512;

struct HeadForwardParams {
    Global<const Bf16> activation;  // batch x 16 x features
    Global<const float> weight;     // classes x features
    Global<const float> bias;       // classes
    Global<float> pooled;           // batch x features
    Global<float> logits;           // batch x classes
    uint32_t features;              // a multiple of 8, at most 512
    uint32_t classes;
};

struct HeadForwardShared {
    float pooled[HEAD_MAX_FEATURES];
};

KERNEL(head_forward, HeadForwardParams, HEAD_THREADS, HeadForwardShared) {
    const int64_t image = blockIdx.x;

    for (uint32_t f = threadIdx.x * 4; f < p.features; f += HEAD_THREADS * 4) {
        float sum[4] = {};
#pragma unroll 4
        for (uint32_t pixel = 0; pixel < HEAD_PIXELS; ++pixel) {
            const Bytes8 four = load_vector<Bytes8>(p.activation, (image * HEAD_PIXELS + pixel) * p.features + f);
            sum[0] += low_float(four.word[0]);
            sum[1] += high_float(four.word[0]);
            sum[2] += low_float(four.word[1]);
            sum[3] += high_float(four.word[1]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            sum[i] *= 1.0f / float(HEAD_PIXELS);
            shared.pooled[f + i] = sum[i];
        }
        store_vector(p.pooled, image * p.features + f, Float4{{sum[0], sum[1], sum[2], sum[3]}});
    }
    syncthreads();

    // A warp a class.
    for (uint32_t c = warp_index(); c < p.classes; c += HEAD_THREADS / 32) {
        float sum = 0.0f;
        for (uint32_t f = lane_index(); f < p.features; f += 32) {
            sum += shared.pooled[f] * p.weight[int64_t(c) * p.features + f];
        }
        sum = warp_sum(sum);
        if (lane_index() == 0) p.logits[image * p.classes + c] = sum + p.bias[c];
    }
}

}  // namespace secateur
