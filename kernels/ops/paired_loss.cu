// Losses of clean and adversarial logits together: loss, prediction and both logit gradients of each sample in one kernel.
//
// With p = softmax(clean), q = softmax(adversarial), label y, best wrong class k of q, b the factor on the divergence and the
// target t = (1 - smoothing) e_y + smoothing / classes:
//   TRADES:   L = - sum t log p + b KL(p||q)
//   MART:     L = - log q_y - log(1.0001 - q_k + 1e-12) + b (1.0000001 - p_y) KL(p || q + 1e-12)
// The gradients are written out at PairedForm in src/ops/paired_loss.rs. Differences from one are taken through expm1 of a log
// probability: the small constants would otherwise drown in its rounding.
//
// A warp takes one sample.

#include "ops/softmax.h"

namespace secateur {

struct PairedLossParams {
    Global<const float> clean_logits;        // batch x classes
    Global<const float> adversarial_logits;  // batch x classes
    Global<const uint32_t> labels;           // batch
    Global<const float> weights;             // batch, or null
    Global<float> losses;                    // batch
    Global<uint32_t> predictions;            // batch
    Global<float> clean_gradient;            // batch x classes
    Global<float> adversarial_gradient;      // batch x classes
    uint32_t batch;
    uint32_t classes;  // at most 128
    float divergence;
    float scale;
    float smoothing;  // of the clean cross-entropy
    uint32_t padding;
};

/// Loss of a sample (in every lane) and both gradients, not yet scaled.
struct Paired {
    float loss;
    float clean[CLASSES_PER_LANE];
    float adversarial[CLASSES_PER_LANE];
};

/// KL(p||q), and p (log p - log q - KL), its gradient with respect to the logits of p.
struct Divergence {
    float value;
    float gradient[CLASSES_PER_LANE];
};

/// From p and the log ratios log p - log q. They are counted from that of the class that leads: where p is sure of it, its ratio
/// is all of KL, and the difference of the two would have no digits left.
DEVICE Divergence divergence(const Softmax& clean, const float (&ratios)[CLASSES_PER_LANE], uint32_t classes) {
    const float lead = at_class(ratios, clean.best, classes);
    float terms[CLASSES_PER_LANE];
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) terms[i] = clean.p[i] * (ratios[i] - lead);
    const float rest = class_sum(terms);
    Divergence result{lead + rest, {}};
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) result.gradient[i] = terms[i] - clean.p[i] * rest;
    return result;
}

DEVICE Paired clean_cross_entropy(const Softmax& clean, const Softmax& moved, uint32_t label, uint32_t classes, float b,
                                  float smoothing) {
    float ratios[CLASSES_PER_LANE];
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) ratios[i] = clean.log_p[i] - moved.log_p[i];
    const Divergence kl = divergence(clean, ratios, classes);

    const float sure = 1.0f - smoothing, uniform = smoothing / float(classes);

    Paired result;
    result.loss = b * kl.value - (sure * at_class(clean.log_p, label, classes) + uniform * class_sum(clean.log_p));
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        result.clean[i] = clean.p[i] - (sure * one_hot(i, label) + uniform) + b * kl.gradient[i];
        result.adversarial[i] = b * (moved.p[i] - clean.p[i]);
    }
    return result;
}

DEVICE Paired boosted_cross_entropy(const Softmax& clean, const Softmax& moved, uint32_t label, uint32_t classes, float b) {
    constexpr float FLOOR = 1e-12f;
    Largest wrong{-INFINITY, 0};
    float ratios[CLASSES_PER_LANE], attraction[CLASSES_PER_LANE];
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        const uint32_t c = class_of(i);
        if (c < classes && c != label && moved.log_p[i] > wrong.value) wrong = {moved.log_p[i], c};
        // Above exp(-9) the floor is less than half a unit in the last place of q.
        const float log_q = moved.log_p[i] > -9.0f ? moved.log_p[i] : logf(moved.p[i] + FLOOR);
        ratios[i] = clean.log_p[i] - log_q;
        attraction[i] = clean.p[i] * (moved.p[i] / (moved.p[i] + FLOOR));
    }
    wrong = warp_largest(wrong);
    const Divergence kl = divergence(clean, ratios, classes);
    const float pull = class_sum(attraction);
    const float log_p_label = at_class(clean.log_p, label, classes), p_label = expf(log_p_label);
    const float label_gap = -expm1f(log_p_label), doubt = 1e-7f + label_gap;
    const float wrong_gap = -expm1f(wrong.value), not_wrong = 1e-4f + wrong_gap;
    const float odds = expf(wrong.value) / not_wrong;

    Paired result;
    result.loss = b * doubt * kl.value - logf(not_wrong) - at_class(moved.log_p, label, classes);
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        // e_y - p and e_k - q: the factors before them are large where the gaps are small.
        const float to_label = class_of(i) == label ? label_gap : -clean.p[i];
        const float to_wrong = class_of(i) == wrong.index ? wrong_gap : -moved.p[i];
        result.clean[i] = b * (doubt * kl.gradient[i] - kl.value * p_label * to_label);
        result.adversarial[i] = moved.p[i] - one_hot(i, label) + odds * to_wrong +
                                b * doubt * (moved.p[i] * pull - attraction[i]);
    }
    return result;
}

template <bool BOOSTED>
DEVICE void paired_loss(const PairedLossParams& p) {
    // Without a sample the last warps work on the last one again and write nothing: collectives want full warps.
    const uint32_t warp = blockIdx.x * (blockDim.x / 32) + warp_index();
    const uint32_t sample = warp < p.batch ? warp : p.batch - 1;
    const int64_t row = int64_t(sample) * p.classes;
    const uint32_t label = p.labels[sample];
    const Softmax clean = softmax(p.clean_logits + row, p.classes);
    const Softmax moved = softmax(p.adversarial_logits + row, p.classes);
    const Paired result = BOOSTED ? boosted_cross_entropy(clean, moved, label, p.classes, p.divergence)
                                  : clean_cross_entropy(clean, moved, label, p.classes, p.divergence, p.smoothing);
    const uint32_t predicted = prediction(p.adversarial_logits + row, p.classes, moved.best);
    if (warp >= p.batch) return;

    if (lane_index() == 0) {
        p.losses[sample] = result.loss;
        p.predictions[sample] = predicted;
    }
    const float factor = p.weights.present() ? p.scale * p.weights[sample] : p.scale;
#pragma unroll
    for (int i = 0; i < CLASSES_PER_LANE; ++i) {
        const uint32_t c = class_of(i);
        if (c < p.classes) {
            p.clean_gradient[row + c] = factor * result.clean[i];
            p.adversarial_gradient[row + c] = factor * result.adversarial[i];
        }
    }
}

KERNEL(trades_loss, PairedLossParams, 128, NoShared) { paired_loss<false>(p); }
KERNEL(mart_loss, PairedLossParams, 128, NoShared) { paired_loss<true>(p); }

}  // namespace secateur
