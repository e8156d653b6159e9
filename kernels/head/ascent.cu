// The head inside an attack: average pool, linear layer, gradient of the ascended loss, and back to the last activation, so that
// nothing else stands between the last convolution and the first input gradient.
//
//   z = weight * mean over pixels of a + bias, dz = dL/dz, g[pixel][f] = (a > 0) * (1/16) * sum over classes of dz[c] * weight[c][f]
//
// with L the cross-entropy of a label, the divergence from the softmax of target logits, or the margin of the best
// wrong class. Sums run in the order of head_forward, the loss kernels and head_input_gradient, so the bits are
// theirs. A block takes one image and a thread two of its features, whose mask it keeps in a register.

#include "ops/softmax.h"

namespace secateur {

constexpr uint32_t ASCENT_THREADS = 256;
constexpr uint32_t ASCENT_PIXELS = 16;

struct HeadAscentParams {
    Global<const Bf16> activation;      // batch x 16 x features, after a ReLU
    Global<const float> weight;         // classes x features
    Global<const float> bias;           // classes
    Global<const uint32_t> labels;      // batch; the divergence has none
    Global<const float> target_logits;  // batch x classes; the divergence only
    Global<Bf16> gradient;              // batch x 16 x features; may be the activation's memory
    uint32_t features;                  // a multiple of 32, at most 512
    uint32_t classes;                   // 1 (margin: 2) to 128
};

struct HeadAscentShared {
    float pooled[2 * ASCENT_THREADS];
    float logits[32 * CLASSES_PER_LANE];
    float logit_gradient[32 * CLASSES_PER_LANE];
};

/// dL/dz of the classes that a lane holds, for the label or the target of `image`.
struct AscendCrossEntropy {
    DEVICE static void gradient(const HeadAscentParams& p, int64_t image, const float* logits, float* dz) {
        const Softmax q = softmax(logits, p.classes);
        const uint32_t label = p.labels[image];
#pragma unroll
        for (int i = 0; i < CLASSES_PER_LANE; ++i) dz[i] = q.p[i] - one_hot(i, label);
    }
};

struct AscendDivergence {
    DEVICE static void gradient(const HeadAscentParams& p, int64_t image, const float* logits, float* dz) {
        const Softmax target = softmax(p.target_logits + image * p.classes, p.classes);
        const Softmax q = softmax(logits, p.classes);
#pragma unroll
        for (int i = 0; i < CLASSES_PER_LANE; ++i) dz[i] = q.p[i] - target.p[i];
    }
};

struct AscendMargin {
    DEVICE static void gradient(const HeadAscentParams& p, int64_t image, const float* logits, float* dz) {
        float z[CLASSES_PER_LANE];
#pragma unroll
        for (int i = 0; i < CLASSES_PER_LANE; ++i) z[i] = class_of(i) < p.classes ? logits[class_of(i)] : -INFINITY;
        const uint32_t label = p.labels[image];
        const uint32_t wrong = best_wrong(z, label, p.classes).index;
#pragma unroll
        for (int i = 0; i < CLASSES_PER_LANE; ++i) dz[i] = one_hot(i, wrong) - one_hot(i, label);
    }
};

template <class Ascend>
DEVICE void head_ascent(const HeadAscentParams& p, HeadAscentShared& shared) {
    const int64_t image = blockIdx.x;
    const uint32_t pairs = p.features / 2, pair = threadIdx.x;

    // Two bits a pixel, set where the activation passed its ReLU (a NaN does).
    uint32_t passed = 0;
    if (pair < pairs) {
        const Global<const uint32_t> activation = p.activation.as<const uint32_t>() + image * ASCENT_PIXELS * pairs + pair;
        float low = 0.0f, high = 0.0f;
#pragma unroll
        for (uint32_t pixel = 0; pixel < ASCENT_PIXELS; ++pixel) {
            const uint32_t two = activation[pixel * pairs];
            low += low_float(two);
            high += high_float(two);
            passed |= uint32_t(!(low_float(two) <= 0.0f)) << (2 * pixel);
            passed |= uint32_t(!(high_float(two) <= 0.0f)) << (2 * pixel + 1);
        }
        shared.pooled[2 * pair] = low * (1.0f / float(ASCENT_PIXELS));
        shared.pooled[2 * pair + 1] = high * (1.0f / float(ASCENT_PIXELS));
    }
    syncthreads();

    // A warp a class.
    for (uint32_t c = warp_index(); c < p.classes; c += ASCENT_THREADS / 32) {
        float sum = 0.0f;
        for (uint32_t f = lane_index(); f < p.features; f += 32) {
            sum += shared.pooled[f] * p.weight[int64_t(c) * p.features + f];
        }
        sum = warp_sum(sum);
        if (lane_index() == 0) shared.logits[c] = sum + p.bias[c];
    }
    syncthreads();

    if (warp_index() == 0) {
        float dz[CLASSES_PER_LANE];
        Ascend::gradient(p, image, shared.logits, dz);
#pragma unroll
        for (int i = 0; i < CLASSES_PER_LANE; ++i) shared.logit_gradient[class_of(i)] = dz[i];
    }
    syncthreads();

    if (pair >= pairs) return;
    float low = 0.0f, high = 0.0f;
#pragma unroll 2
    for (uint32_t c = 0; c < p.classes; ++c) {
        const float dz = shared.logit_gradient[c];
        const Bytes8 weight = load_vector<Bytes8>(p.weight, int64_t(c) * p.features + 2 * pair);
        low += dz * bits_float(weight.word[0]);
        high += dz * bits_float(weight.word[1]);
    }
    low *= 1.0f / float(ASCENT_PIXELS);
    high *= 1.0f / float(ASCENT_PIXELS);
    const Global<uint32_t> gradient = p.gradient.as<uint32_t>() + image * ASCENT_PIXELS * pairs + pair;
#pragma unroll
    for (uint32_t pixel = 0; pixel < ASCENT_PIXELS; ++pixel) {
        const float first = passed >> (2 * pixel) & 1 ? low : 0.0f;
        const float second = passed >> (2 * pixel + 1) & 1 ? high : 0.0f;
        gradient[pixel * pairs] = pack_bf16(first, second);
    }
}

KERNEL(head_ascent_cross_entropy, HeadAscentParams, ASCENT_THREADS, HeadAscentShared) {
    head_ascent<AscendCrossEntropy>(p, shared);
}
KERNEL(head_ascent_divergence, HeadAscentParams, ASCENT_THREADS, HeadAscentShared) {
    head_ascent<AscendDivergence>(p, shared);
}
KERNEL(head_ascent_margin, HeadAscentParams, ASCENT_THREADS, HeadAscentShared) {
    head_ascent<AscendMargin>(p, shared);
}

}  // namespace secateur
