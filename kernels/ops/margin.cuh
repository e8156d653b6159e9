// The margin of a row of logits: by what the label wins, negative exactly where the prediction is wrong.
#pragma once

#include "ops/softmax.h"

namespace secateur {

constexpr float LARGEST_NEGATIVE = -1.17549435e-38f;

/// The label's logit less the largest other one, in every lane of the warp. A tie that the label loses by its index counts
/// as -FLT_MIN, a logit that is NaN or infinite as -infinity. NaN where the label is no class.
DEVICE float margin_of(Global<const float> logits, uint32_t classes, uint32_t label) {
    if (label >= classes) return bits_float(0xFFFFFFFFu);
    float z[CLASSES_PER_LANE];
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) z[i] = class_of(i) < classes ? logits[class_of(i)] : 0.0f;
    if (!all_finite(z, classes)) return -INFINITY;
    const Largest other = best_wrong(z, label, classes);
    const float own = logits[label], margin = own - other.value;
    const bool wrong = other.value > own || (other.value == own && other.index < label);
    return wrong && margin > LARGEST_NEGATIVE ? LARGEST_NEGATIVE : margin;
}

}  // namespace secateur
