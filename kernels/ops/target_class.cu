// The wrong class of a given rank, which targeted attacks aim at: the class that `rank - 1` other wrong classes rank before, the
// highest index first among equals. NO_CLASS where a logit is not finite. A warp takes one sample.

#include "ops/softmax.h"

namespace secateur {

struct TargetClassParams {
    Global<const float> logits;     // batch x classes
    Global<const uint32_t> labels;  // batch
    Global<uint32_t> targets;       // batch
    uint32_t batch;
    uint32_t classes;  // 2 to 128
    uint32_t rank;     // 1 to classes - 1
    uint32_t padding;
};

KERNEL(target_class, TargetClassParams, 128, NoShared) {
    // Without a sample the last warps work on the last one again and write nothing: collectives want full warps.
    const uint32_t warp = blockIdx.x * (blockDim.x / 32) + warp_index();
    const uint32_t sample = warp < p.batch ? warp : p.batch - 1;
    const Global<const float> logits = p.logits + int64_t(sample) * p.classes;
    const uint32_t label = p.labels[sample];
    float z[CLASSES_PER_LANE];
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) z[i] = class_of(i) < p.classes ? logits[class_of(i)] : 0.0f;
    const bool finite = all_finite(z, p.classes);

    uint32_t ahead[CLASSES_PER_LANE] = {};
    for (uint32_t c = 0; c < p.classes; ++c) {
        const float other = logits[c];
#pragma unroll
        for (int i = 0; i < CLASSES_PER_LANE; ++i) {
            ahead[i] += c != label && (other > z[i] || (other == z[i] && c > class_of(i)));
        }
    }
    uint32_t found = 0;  // one more than the class
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        const uint32_t c = class_of(i);
        if (c < p.classes && c != label && ahead[i] == p.rank - 1) found = c + 1;
    }
    found = warp_sum(found);
    if (warp < p.batch && lane_index() == 0) p.targets[sample] = finite ? found - 1 : NO_CLASS;
}

}  // namespace secateur
