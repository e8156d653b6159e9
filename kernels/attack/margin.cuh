// The margin of a row of logits: by what the label wins, negative exactly where the prediction is wrong.
#pragma once

#include "portable/portable.h"

namespace secateur {

constexpr float LARGEST_NEGATIVE = -1.17549435e-38f;

/// The larger one; NaN where either is.
DEVICE float larger(float a, float b) { return (b > a || b != b) ? b : a; }

/// The label's logit less the largest other one, in every lane of the warp. A tie that the label loses by its index counts
/// as -FLT_MIN. NaN where a logit is, or where the label is no class.
DEVICE float margin_of(Global<const float> logits, uint32_t classes, uint32_t label) {
    if (label >= classes) return bits_float(0xFFFFFFFFu);
    float before = -INFINITY, after = -INFINITY;
    for (uint32_t c = lane_index(); c < classes; c += 32) {
        if (c < label) before = larger(before, logits[c]);
        if (c > label) after = larger(after, logits[c]);
    }
    before = warp_max(before);
    after = warp_max(after);
    const float own = logits[label];
    const float margin = own - larger(before, after);
    const bool wrong = before >= own || after > own;
    return wrong && margin > LARGEST_NEGATIVE ? LARGEST_NEGATIVE : margin;
}

}  // namespace secateur
