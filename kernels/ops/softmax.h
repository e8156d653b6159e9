// Softmax of one row of logits by one warp: lane l holds classes l, l + 32, l + 64 and l + 96, so up to 128 of them.
//
// The largest logit is subtracted first, and its own exponential (one) is kept out of the sum, so that log p of a
// class near certainty keeps its digits. log p is finite for finite logits however far they lie apart; p itself may
// underflow to zero. Every loss of this folder starts here.
#pragma once

#include "portable/portable.h"

namespace secateur {

constexpr int CLASSES_PER_LANE = 4;
/// The prediction of a row with a logit that is NaN or infinite: equal to no label, so wrong.
constexpr uint32_t NO_CLASS = 0xFFFFFFFFu;

/// The class that place `i` of this lane holds.
DEVICE uint32_t class_of(int i) { return lane_index() + 32 * uint32_t(i); }

struct Largest {
    float value;
    uint32_t index;
};

/// The largest value of the warp, in every lane: the lowest index among equals.
DEVICE Largest warp_largest(Largest largest) {
#pragma unroll
    for (uint32_t mask = 16; mask > 0; mask /= 2) {
        const Largest other{shfl_xor(largest.value, mask), shfl_xor(largest.index, mask)};
        if (other.value > largest.value || (other.value == largest.value && other.index < largest.index)) {
            largest = other;
        }
    }
    return largest;
}

/// log p and p of a row; both zero at places beyond its classes.
struct Softmax {
    float log_p[CLASSES_PER_LANE];
    float p[CLASSES_PER_LANE];
    /// Class with the largest logit, the lowest index among equals.
    uint32_t best;
};

/// `logits` is a row in device memory or in shared memory.
template <class Row>
DEVICE Softmax softmax(const Row& logits, uint32_t classes) {
    float z[CLASSES_PER_LANE];
    Largest largest{-INFINITY, lane_index()};
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        const uint32_t c = class_of(i);
        z[i] = c < classes ? logits[c] : -INFINITY;
        if (z[i] > largest.value) largest = {z[i], c};
    }
    largest = warp_largest(largest);

    float others = 0.0f;
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        if (class_of(i) < classes && class_of(i) != largest.index) others += expf(z[i] - largest.value);
    }
    const float log_sum = log1pf(warp_sum(others));

    Softmax row;
    row.best = largest.index;
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        const bool inside = class_of(i) < classes;
        row.log_p[i] = inside ? z[i] - largest.value - log_sum : 0.0f;
        row.p[i] = inside ? expf(row.log_p[i]) : 0.0f;
    }
    return row;
}

/// Whether all values of the warp's lanes are finite, in every lane; `mine` holds those of this lane.
DEVICE bool all_finite(const float (&mine)[CLASSES_PER_LANE], uint32_t classes) {
    uint32_t broken = 0;
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        if (class_of(i) < classes && !is_finite(mine[i])) broken += 1;
    }
    return warp_sum(broken) == 0;
}

/// The class that a row of logits predicts, in every lane; `best` is the class of its largest logit.
DEVICE uint32_t prediction(Global<const float> logits, uint32_t classes, uint32_t best) {
    float z[CLASSES_PER_LANE];
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) z[i] = class_of(i) < classes ? logits[class_of(i)] : 0.0f;
    return all_finite(z, classes) ? best : NO_CLASS;
}

/// The wrong class with the largest of a row's values, in every lane: the lowest index among equals, 0xFFFFFFFF where all are NaN.
DEVICE Largest best_wrong(const float (&values)[CLASSES_PER_LANE], uint32_t label, uint32_t classes) {
    Largest wrong{-INFINITY, 0xFFFFFFFFu};
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        const uint32_t c = class_of(i);
        if (c < classes && c != label && values[i] > wrong.value) wrong = {values[i], c};
    }
    return warp_largest(wrong);
}

/// 1 where class `i` of this lane is `wanted`, else 0.
DEVICE float one_hot(int i, uint32_t wanted) { return class_of(i) == wanted ? 1.0f : 0.0f; }

/// The value of class `wanted`, in every lane; NaN where `wanted` is not a class, so that a bad label shows.
DEVICE float at_class(const float (&values)[CLASSES_PER_LANE], uint32_t wanted, uint32_t classes) {
    float value = 0.0f;
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        if (class_of(i) == wanted) value = values[i];
    }
    value = warp_sum(value);
    return wanted < classes ? value : NAN;
}

/// The sum over all classes, in every lane.
DEVICE float class_sum(const float (&values)[CLASSES_PER_LANE]) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) sum += values[i];
    return warp_sum(sum);
}

}  // namespace secateur
