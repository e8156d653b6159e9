// Softmax cross-entropy with label smoothing: loss, prediction and logit gradient of each sample in one kernel.
//
//   target = (1 - smoothing) * one_hot + smoothing / classes, loss = - sum target * log q
//   logit gradient = scale * weight * (q - target)
//
// A warp takes one sample. A label outside of the classes gives a NaN loss.

#include "ops/softmax.h"

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
    // Without a sample the last warps work on the last one again and write nothing: collectives want full warps.
    const uint32_t warp = blockIdx.x * (blockDim.x / 32) + warp_index();
    const uint32_t sample = warp < p.batch ? warp : p.batch - 1;
    const int64_t row = int64_t(sample) * p.classes;
    const uint32_t label = p.labels[sample];

    const Softmax q = softmax(p.logits + row, p.classes);
    const float at_label = at_class(q.log_p, label, p.classes), total = class_sum(q.log_p);
    const uint32_t predicted = prediction(p.logits + row, p.classes, q.best);
    if (warp >= p.batch) return;

    const float uniform = p.smoothing / float(p.classes);
    if (lane_index() == 0) {
        p.losses[sample] = -(1.0f - p.smoothing) * at_label - uniform * total;
        p.predictions[sample] = predicted;
    }
    const float factor = p.weights.present() ? p.scale * p.weights[sample] : p.scale;
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        const uint32_t c = class_of(i);
        if (c < p.classes) {
            const float target = uniform + (c == label ? 1.0f - p.smoothing : 0.0f);
            p.logit_gradient[row + c] = factor * (q.p[i] - target);
        }
    }
}

}  // namespace secateur
