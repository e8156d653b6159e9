// Losses on differences of logits: loss, prediction and logit gradient of each sample in one kernel.
//
//   best wrong:   max over c != y of z_c - z_y, the lowest index among equals
//   targeted DLR: -(z_y - z_t) / D, D = z_(1) - (z_(3) + z_(4)) / 2 + 1e-12, z_(k) the k-th largest logit
//
// With L the DLR loss: dL/dz = (e_t - e_y - L (e_(1) - e_(3) / 2 - e_(4) / 2)) / D. Among equal logits the highest index ranks
// first, as where the published code sorts in ascending order and reads from the end.
//
// A warp takes one sample. A logit that is NaN or infinite, or a label or target outside of the classes, gives a NaN loss.

#include "ops/softmax.h"

namespace secateur {

struct MarginParams {
    Global<const float> logits;      // batch x classes
    Global<const uint32_t> labels;   // batch
    Global<const uint32_t> targets;  // batch; the targeted form only
    Global<float> losses;            // batch
    Global<uint32_t> predictions;    // batch
    Global<float> logit_gradient;    // batch x classes
    uint32_t batch;
    uint32_t classes;  // 2 (targeted: 4) to 128
};

/// Logits of a row as a warp holds them, -infinity beyond its classes.
struct Row {
    float z[CLASSES_PER_LANE];
    /// Class with the largest logit, the lowest index among equals; NO_CLASS where a logit is not finite.
    uint32_t prediction;
    bool finite;
};

DEVICE Row load_row(Global<const float> logits, uint32_t classes) {
    Row row;
    Largest largest{-INFINITY, lane_index()};
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        const uint32_t c = class_of(i);
        row.z[i] = c < classes ? logits[c] : -INFINITY;
        if (row.z[i] > largest.value) largest = {row.z[i], c};
    }
    row.finite = all_finite(row.z, classes);
    const uint32_t best = warp_largest(largest).index;
    row.prediction = row.finite ? best : NO_CLASS;
    return row;
}

/// The logit of class `wanted`, in every lane; NaN where `wanted` is not a class.
DEVICE float logit_of(const Row& row, uint32_t wanted, uint32_t classes) {
    float value = 0.0f;
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        if (class_of(i) == wanted) value = row.z[i];
    }
    value = warp_sum(value);
    return wanted < classes ? value : NAN;
}

/// Whether a ranks before b.
DEVICE bool before(const Largest& a, const Largest& b) {
    return a.value > b.value || (a.value == b.value && a.index > b.index);
}

/// The `COUNT` largest logits, in order, in every lane.
template <int COUNT>
DEVICE void ranked(const Row& row, uint32_t classes, Largest (&top)[COUNT]) {
    uint32_t taken = 0;
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
        Largest first{-INFINITY, 0};
#pragma unroll
        for (int i = 0; i < CLASSES_PER_LANE; ++i) {
            const Largest mine{row.z[i], class_of(i)};
            if (class_of(i) < classes && !(taken >> i & 1) && before(mine, first)) first = mine;
        }
#pragma unroll
        for (uint32_t mask = 16; mask > 0; mask /= 2) {
            const Largest other{shfl_xor(first.value, mask), shfl_xor(first.index, mask)};
            if (before(other, first)) first = other;
        }
        top[k] = first;
#pragma unroll
        for (int i = 0; i < CLASSES_PER_LANE; ++i) {
            if (class_of(i) == first.index) taken |= 1u << i;
        }
    }
}

DEVICE float indicator(bool holds) { return holds ? 1.0f : 0.0f; }

template <bool TARGETED>
DEVICE void margin_loss(const MarginParams& p) {
    // Without a sample the last warps work on the last one again and write nothing: collectives want full warps.
    const uint32_t warp = blockIdx.x * (blockDim.x / 32) + warp_index();
    const uint32_t sample = warp < p.batch ? warp : p.batch - 1;
    const int64_t at = int64_t(sample) * p.classes;
    const uint32_t label = p.labels[sample];
    const Row row = load_row(p.logits + at, p.classes);
    const float at_label = logit_of(row, label, p.classes);

    float loss, gradient[CLASSES_PER_LANE];
    if constexpr (TARGETED) {
        const uint32_t target = p.targets[sample];
        Largest top[4];
        ranked(row, p.classes, top);
        const float span = top[0].value - 0.5f * (top[2].value + top[3].value) + 1e-12f;
        loss = -(at_label - logit_of(row, target, p.classes)) / span;
#pragma unroll
        for (int i = 0; i < CLASSES_PER_LANE; ++i) {
            const uint32_t c = class_of(i);
            const float moves = indicator(c == target) - indicator(c == label);
            const float stretches =
                indicator(c == top[0].index) - 0.5f * indicator(c == top[2].index) - 0.5f * indicator(c == top[3].index);
            gradient[i] = (moves - product(loss, stretches)) / span;
        }
    } else {
        const Largest wrong = best_wrong(row.z, label, p.classes);
        loss = wrong.value - at_label;
#pragma unroll
        for (int i = 0; i < CLASSES_PER_LANE; ++i) {
            gradient[i] = one_hot(i, wrong.index) - one_hot(i, label);
        }
    }
    if (warp >= p.batch) return;

    if (lane_index() == 0) {
        p.losses[sample] = row.finite ? loss : NAN;
        p.predictions[sample] = row.prediction;
    }
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        if (class_of(i) < p.classes) p.logit_gradient[at + class_of(i)] = gradient[i];
    }
}

KERNEL(margin_loss_best_wrong, MarginParams, 128, NoShared) { margin_loss<false>(p); }
KERNEL(margin_loss_targeted_dlr, MarginParams, 128, NoShared) { margin_loss<true>(p); }

}  // namespace secateur
