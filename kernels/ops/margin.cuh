// The margin of a row of logits: by what the label wins, negative exactly where the prediction is wrong.
#pragma once

#include "portable/portable.h"

namespace secateur {

constexpr float LARGEST_NEGATIVE = -1.17549435e-38f;

/// The label's logit less the largest other one, in every lane of the warp. A tie that the label loses by its index counts
/// as -FLT_MIN, a logit that is NaN or infinite as -infinity. NaN where the label is no class.
DEVICE float margin_of(Global<const float> logits, uint32_t classes, uint32_t label) {
    if (label >= classes) return bits_float(0xFFFFFFFFu);
    float before = -INFINITY, after = -INFINITY;
    uint32_t broken = 0;
    for (uint32_t c = lane_index(); c < classes; c += 32) {
        const float z = logits[c];
        if (c < label) before = fmaxf(before, z);
        if (c > label) after = fmaxf(after, z);
        if (!is_finite(z)) broken += 1;
    }
    before = warp_max(before);
    after = warp_max(after);
    const float own = logits[label];
    if (warp_sum(broken) > 0) return -INFINITY;
    const float margin = own - fmaxf(before, after);
    const bool wrong = before >= own || after > own;
    return wrong && margin > LARGEST_NEGATIVE ? LARGEST_NEGATIVE : margin;
}

}  // namespace secateur
