// Steps to the decision boundary between the label and a target class (FAB: Croce and Hein, 2020; L-infinity).
//
//   class_difference: e_target - e_label, whose input gradient is that of z_target - z_label
//   fab_step:         from x' and from the clean x to the linearised boundary, and a mixture of the two
//   fab_keep:         remembers the closest image that is predicted wrongly, and goes back towards x from it
//
// The shortest way d from t to the hyperplane w.(t + d) = b inside of [0, 1] has a length L in the maximum norm: each element
// moves against the sign of its weight by L, or by its room r up to the wall where that is less. What is covered,
// sum |w| min(L, r), is a concave function of L made of straight pieces, and so Newton's method from L = 0 climbs from piece to
// piece and ends on the right one, exact but for the roundings of two sums; no sorting. Each pass saturates one element
// more at least, and in practice a handful is enough. Where the box ends before the hyperplane all elements go to the wall.

#include "ops/margin.cuh"

namespace secateur {

constexpr uint32_t IMAGE = 32 * 32 * 3;
constexpr int THREADS = 256;
constexpr int VECTORS = IMAGE / 4 / THREADS;
constexpr int OWN = VECTORS * 4;
static_assert(VECTORS * 4 * THREADS == IMAGE, "whole vectors for every thread");

struct ClassDifferenceParams {
    Global<const uint32_t> labels;   // batch
    Global<const uint32_t> targets;  // batch
    Global<float> gradient;          // batch x classes
    uint32_t elements;
    uint32_t classes;
};

KERNEL(class_difference, ClassDifferenceParams, 256, NoShared) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    const uint32_t sample = i / p.classes, c = i % p.classes;
    p.gradient[i] = (c == p.targets[sample] ? 1.0f : 0.0f) - (c == p.labels[sample] ? 1.0f : 0.0f);
}

/// A thread's elements of an image.
struct Own {
    float value[OWN];
};

DEVICE Own load_own(Global<const float> image) {
    Own own;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const Float4 part = load_vector<Float4>(image, int64_t(threadIdx.x + v * THREADS) * 4);
#pragma unroll
        for (int k = 0; k < 4; ++k) own.value[v * 4 + k] = part.value[k];
    }
    return own;
}

DEVICE void store_own(Global<float> image, const Own& own) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        Float4 part;
#pragma unroll
        for (int k = 0; k < 4; ++k) part.value[k] = own.value[v * 4 + k];
        store_vector(image, int64_t(threadIdx.x + v * THREADS) * 4, part);
    }
}

struct BoundaryShared {
    float sums[THREADS / 32];
};

/// How far `t` may go against the sign of `weight` before it leaves [0, 1].
DEVICE float room(float weight, float t) { return weight > 0.0f ? t : 1.0f - t; }

/// The shortest way from `t` to where w.(t + d) is lower by `excess` (higher where that is negative), as its length; the
/// way itself is `moved`.
DEVICE float way_length(const Own& w, const Own& t, float excess, BoundaryShared& shared) {
    const float sign = excess >= 0.0f ? 1.0f : -1.0f;
    const float wanted = fabsf(excess);
    float length = 0.0f;
    while (true) {
        float free = 0.0f, covered = 0.0f;
#pragma unroll
        for (int k = 0; k < OWN; ++k) {
            const float weight = sign * w.value[k], size = fabsf(weight), r = room(weight, t.value[k]);
            if (r > length) {
                free += size;
            } else {
                covered += size * r;
            }
        }
        free = block_sum<THREADS>(free, shared.sums);
        covered = block_sum<THREADS>(covered, shared.sums);
        // The same in all threads, and false where anything is NaN.
        const float next = (wanted - covered) / free;
        if (!(free > 0.0f && next > length)) return length;
        length = next;
    }
}

/// One element's part of a way of this length.
DEVICE float moved(float weight, float t, float excess, float length) {
    const float down = excess >= 0.0f ? weight : -weight;
    const float distance = fminf(length, room(down, t));
    return down > 0.0f ? -distance : down < 0.0f ? distance : 0.0f;
}

/// The longest move of all elements, at least 1e-8.
DEVICE float longest(const Own& w, const Own& t, float excess, float length, BoundaryShared& shared) {
    float most = 1e-8f;
#pragma unroll
    for (int k = 0; k < OWN; ++k) most = fmaxf(most, fabsf(moved(w.value[k], t.value[k], excess, length)));
    return block_max<THREADS>(most, shared.sums);
}

struct FabStepParams {
    Global<const float> logits;      // batch x classes, of x'
    Global<const float> gradient;    // batch x 3072: of z_target - z_label at x'
    Global<const uint32_t> labels;   // batch
    Global<const uint32_t> targets;  // batch
    Global<const float> images;      // batch x 3072: x
    Global<float> current;           // batch x 3072: x'
    uint32_t classes;
    float largest_share;  // of the way from x
    float overshoot;
    uint32_t padding;
};

// A block takes one image.
KERNEL(fab_step, FabStepParams, THREADS, BoundaryShared) {
    const int64_t image = int64_t(blockIdx.x) * IMAGE;
    const uint32_t label = p.labels[blockIdx.x], target = p.targets[blockIdx.x];
    if (label >= p.classes || target >= p.classes) return;
    const Global<const float> logits = p.logits + int64_t(blockIdx.x) * p.classes;
    const Own w = load_own(p.gradient + image), x = load_own(p.images + image), current = load_own(p.current + image);

    // By how much the linearised difference of the two logits exceeds zero at x', and at x.
    const float difference = logits[target] - logits[label];
    float change = 0.0f;
#pragma unroll
    for (int k = 0; k < OWN; ++k) change += w.value[k] * (x.value[k] - current.value[k]);
    const float difference_at_x = difference + block_sum<THREADS>(change, shared.sums);

    const float length = way_length(w, current, difference, shared);
    const float length_from_x = way_length(w, x, difference_at_x, shared);
    const float most = longest(w, current, difference, length, shared);
    const float most_from_x = longest(w, x, difference_at_x, length_from_x, shared);
    const float share = fminf(most / (most + most_from_x), p.largest_share);

    Own next;
#pragma unroll
    for (int k = 0; k < OWN; ++k) {
        const float way = moved(w.value[k], current.value[k], difference, length);
        const float way_from_x = moved(w.value[k], x.value[k], difference_at_x, length_from_x);
        const float mixed = (current.value[k] + p.overshoot * way) * (1.0f - share) +
                            (x.value[k] + p.overshoot * way_from_x) * share;
        next.value[k] = fminf(fmaxf(mixed, 0.0f), 1.0f);
    }
    store_own(p.current + image, next);
}

struct FabKeepParams {
    Global<const float> logits;     // batch x classes, of x'
    Global<const uint32_t> labels;  // batch
    Global<const float> images;     // batch x 3072: x
    Global<float> current;          // batch x 3072: x'
    Global<float> closest;          // batch x 3072
    Global<float> distances;        // batch
    uint32_t classes;
    float backward;  // share of the way from x that is left behind a find
};

// A block takes one image; each of its warps finds the margin.
KERNEL(fab_keep, FabKeepParams, THREADS, BoundaryShared) {
    const int64_t image = int64_t(blockIdx.x) * IMAGE;
    const float margin =
        margin_of(p.logits + int64_t(blockIdx.x) * p.classes, p.classes, p.labels[blockIdx.x]);
    if (!(margin < 0.0f)) return;

    const float before = p.distances[blockIdx.x];
    const Own x = load_own(p.images + image), current = load_own(p.current + image);
    float distance = 0.0f;
#pragma unroll
    for (int k = 0; k < OWN; ++k) distance = fmaxf(distance, fabsf(current.value[k] - x.value[k]));
    distance = block_max<THREADS>(distance, shared.sums);  // all have read the distance that one of them replaces
    if (distance < before) {
        store_own(p.closest + image, current);
        if (threadIdx.x == 0) p.distances[blockIdx.x] = distance;
    }
    Own next;
#pragma unroll
    for (int k = 0; k < OWN; ++k) next.value[k] = x.value[k] + (current.value[k] - x.value[k]) * p.backward;
    store_own(p.current + image, next);
}

}  // namespace secateur
