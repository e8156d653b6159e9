// How sure a sample is of its label: the standard deviation (unbiased) of its softmax over the classes, negative where the
// largest logit is not the label's.
//
// The mean of a softmax is one over the classes, so one pass will do. A warp takes one sample. A label outside of the classes
// counts as a wrong prediction.

#include "ops/softmax.h"

namespace secateur {

struct BulletTrainScoreParams {
    Global<const float> logits;     // batch x classes
    Global<const uint32_t> labels;  // batch
    Global<float> scores;           // batch
    uint32_t batch;
    uint32_t classes;  // 2 to 128
};

KERNEL(bullet_train_score, BulletTrainScoreParams, 128, NoShared) {
    // Without a sample the last warps work on the last one again and write nothing: collectives want full warps.
    const uint32_t warp = blockIdx.x * (blockDim.x / 32) + warp_index();
    const uint32_t sample = warp < p.batch ? warp : p.batch - 1;
    const Global<const float> logits = p.logits + int64_t(sample) * p.classes;
    const Softmax row = softmax(logits, p.classes);
    const uint32_t predicted = prediction(logits, p.classes, row.best);

    const float mean = 1.0f / float(p.classes);
    float squares[CLASSES_PER_LANE];
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        const float difference = row.p[i] - mean;
        squares[i] = class_of(i) < p.classes ? difference * difference : 0.0f;
    }
    const float deviation = sqrtf(class_sum(squares) / float(p.classes - 1));
    if (warp < p.batch && lane_index() == 0) {
        p.scores[sample] = predicted == p.labels[sample] ? deviation : -deviation;
    }
}

}  // namespace secateur
