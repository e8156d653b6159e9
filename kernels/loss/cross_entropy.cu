// Softmax cross-entropy with label smoothing: loss, prediction and logit gradient of each sample in one kernel.
//
//   target = (1 - smoothing) * one_hot + smoothing / classes, loss = - sum target * log q
//   logit gradient = scale * weight * (q - target)
//
// A warp takes one sample, a lane up to four classes; the largest logit is subtracted first, so nothing overflows. A label
// outside of the classes gives a NaN loss. Checked by tests/kernel_loss.rs; called by Engine::cross_entropy.

#include "portable/portable.h"

namespace secateur {

struct CrossEntropyParams {
    Global<const float> logits;     // batch x classes
    Global<const uint32_t> labels;  // batch
    Global<const float> weights;    // batch, or null
    Global<float> losses;           // batch
    Global<uint32_t> predictions;   // batch
    Global<float> logit_gradient;   // batch x classes
    uint32_t batch;
    uint32_t classes;  // at most 128
    float smoothing;
    float scale;
};

KERNEL(cross_entropy, CrossEntropyParams, 128, NoShared) {
    constexpr int PER_LANE = 4;
    // Without a sample the last warps work on the last one again and write nothing: collectives want full warps.
    const uint32_t warp = blockIdx.x * (blockDim.x / 32) + warp_index();
    const uint32_t sample = warp < p.batch ? warp : p.batch - 1;
    const int64_t row = int64_t(sample) * p.classes;
    const uint32_t label = p.labels[sample];

    float z[PER_LANE];
    float best = -INFINITY;
    uint32_t best_class = lane_index();
#pragma unroll
    for (int i = 0; i < PER_LANE; ++i) {
        const uint32_t c = lane_index() + 32 * i;
        z[i] = c < p.classes ? p.logits[row + c] : -INFINITY;
        if (z[i] > best) {
            best = z[i];
            best_class = c;
        }
    }
#pragma unroll
    for (uint32_t mask = 16; mask > 0; mask /= 2) {
        const float other = shfl_xor(best, mask);
        const uint32_t other_class = shfl_xor(best_class, mask);
        if (other > best || (other == best && other_class < best_class)) {
            best = other;
            best_class = other_class;
        }
    }

    float exponential[PER_LANE];
    float sum = 0.0f, shifted_sum = 0.0f, at_label = 0.0f;
#pragma unroll
    for (int i = 0; i < PER_LANE; ++i) {
        const uint32_t c = lane_index() + 32 * i;
        const float shifted = c < p.classes ? z[i] - best : 0.0f;
        exponential[i] = c < p.classes ? expf(shifted) : 0.0f;
        sum += exponential[i];
        shifted_sum += shifted;
        if (c == label) at_label = shifted;
    }
    sum = warp_sum(sum);
    shifted_sum = warp_sum(shifted_sum);
    at_label = warp_sum(at_label);
    if (warp >= p.batch) return;

    const float uniform = p.smoothing / float(p.classes);
    if (lane_index() == 0) {
        const float loss = logf(sum) - (1.0f - p.smoothing) * at_label - uniform * shifted_sum;
        p.losses[sample] = label < p.classes ? loss : NAN;
        p.predictions[sample] = best_class;
    }
    const float factor = p.weights.present() ? p.scale * p.weights[sample] : p.scale;
#pragma unroll
    for (int i = 0; i < PER_LANE; ++i) {
        const uint32_t c = lane_index() + 32 * i;
        if (c < p.classes) {
            const float target = uniform + (c == label ? 1.0f - p.smoothing : 0.0f);
            p.logit_gradient[row + c] = factor * (exponential[i] / sum - target);
        }
    }
}

}  // namespace secateur
