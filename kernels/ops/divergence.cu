// Divergence from a fixed distribution: loss, prediction and logit gradient of each sample in one kernel.
//
//   p = softmax(target logits), q = softmax(logits), loss = KL(p||q) = sum p (log p - log q)
//   logit gradient = scale * (q - p)
//
// A warp takes one sample.

#include "ops/softmax.h"

namespace secateur {

struct DivergenceParams {
    Global<const float> target_logits;  // batch x classes
    Global<const float> logits;         // batch x classes
    Global<float> losses;               // batch
    Global<uint32_t> predictions;       // batch
    Global<float> logit_gradient;       // batch x classes
    uint32_t batch;
    uint32_t classes;  // at most 128
    float scale;
    uint32_t padding;
};

KERNEL(divergence, DivergenceParams, 128, NoShared) {
    // Without a sample the last warps work on the last one again and write nothing: collectives want full warps.
    const uint32_t warp = blockIdx.x * (blockDim.x / 32) + warp_index();
    const uint32_t sample = warp < p.batch ? warp : p.batch - 1;
    const int64_t row = int64_t(sample) * p.classes;
    const Softmax target = softmax(p.target_logits + row, p.classes);
    const Softmax moved = softmax(p.logits + row, p.classes);

    float terms[CLASSES_PER_LANE];
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) terms[i] = target.p[i] * (target.log_p[i] - moved.log_p[i]);
    const float loss = class_sum(terms);
    const uint32_t predicted = prediction(p.logits + row, p.classes, moved.best);
    if (warp >= p.batch) return;

    if (lane_index() == 0) {
        p.losses[sample] = loss;
        p.predictions[sample] = predicted;
    }
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        if (class_of(i) < p.classes) p.logit_gradient[row + class_of(i)] = p.scale * (moved.p[i] - target.p[i]);
    }
}

}  // namespace secateur
