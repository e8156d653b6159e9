// Random search over squares: the image that a query tries, and its acceptance by the margin.
//
//   square_stripes:  candidate = clip01(x +- epsilon), the sign drawn for each column of each channel
//   square_window:   candidate = clip01(ball(best +- 2 epsilon)) inside one square, the sign drawn for each channel
//   square_accept:   best = candidate where its margin is lower, for images that are predicted right so far
//
// Candidate i is that of image rows[i]; its random numbers are block `query` of the image's sample. All but the logits of
// the network has the same bits on every device. The margin is the label's logit less the largest other one, and negative
// exactly where the prediction is wrong: a tie lost by the index counts as -FLT_MIN. NaN marks an image before its first
// query; a logit that is NaN or infinite is a wrong prediction, of margin -infinity.

#include "ops/margin.cuh"

namespace secateur {

constexpr uint32_t SIDE = 32;
constexpr uint32_t IMAGE_UNITS = SIDE * SIDE * 3 / 4;
constexpr uint32_t ACCEPT_THREADS = 256;

struct SquareProposeParams {
    Global<const uint32_t> rows;     // of the images that take part
    Global<const uint32_t> samples;  // count
    Global<const float> images;      // count x 3072: the clean images
    Global<const float> best;        // count x 3072
    Global<float> candidates;        // one for each of the rows
    Philox random;
    uint32_t query;
    uint32_t units;  // rows * 768: four elements each
    uint32_t count;
    uint32_t side;  // of the square
    float epsilon;
    uint32_t padding;
};

/// +1 where bit `bit` is set, -1 elsewhere.
DEVICE float sign_of(uint32_t word, uint32_t bit) { return (word >> bit & 1) != 0 ? 1.0f : -1.0f; }

/// floor(u * choices), u in [0, 1) with 24 random bits.
DEVICE uint32_t choose(uint32_t word, uint32_t choices) { return (word >> 8) * choices >> 24; }

DEVICE float clip(float value, float low, float high) { return fminf(fmaxf(value, low), high); }

template <bool STRIPES>
DEVICE void propose(const SquareProposeParams& p) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.units) return;
    const uint32_t row = p.rows[i / IMAGE_UNITS], unit = i % IMAGE_UNITS;
    Float4 out;
#pragma unroll
    for (int k = 0; k < 4; ++k) out.value[k] = bits_float(0xFFFFFFFFu);
    if (row < p.count) {
        const PhiloxBlock random = p.random.block(p.samples[row], p.query);
        const int64_t at = (int64_t(row) * IMAGE_UNITS + unit) * 4;
        const Float4 x = load_vector<Float4>(p.images, at);
        Float4 best = {};
        if (!STRIPES) best = load_vector<Float4>(p.best, at);
        const uint32_t choices = SIDE - p.side;
        const uint32_t first_row = choose(random.word[0], choices), first_column = choose(random.word[1], choices);
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) {
            const uint32_t element = unit * 4 + k;
            const uint32_t pixel = element / 3, channel = element % 3;
            const uint32_t column = pixel % SIDE;
            const float clean = x.value[k];
            float moved;
            if (STRIPES) {
                const uint32_t word = channel == 0 ? random.word[0] : channel == 1 ? random.word[1] : random.word[2];
                moved = clean + product(p.epsilon, sign_of(word, column));
            } else {
                // Below the first row or column the difference wraps around and is large.
                const bool inside = pixel / SIDE - first_row < p.side && column - first_column < p.side;
                const float change = product(2.0f * p.epsilon, sign_of(random.word[2], channel));
                moved = clip(best.value[k] + (inside ? change : 0.0f), clean - p.epsilon, clean + p.epsilon);
            }
            out.value[k] = clip(moved, 0.0f, 1.0f);
        }
    }
    store_vector(p.candidates, int64_t(i) * 4, out);
}

KERNEL(square_stripes, SquareProposeParams, 256, NoShared) { propose<true>(p); }
KERNEL(square_window, SquareProposeParams, 256, NoShared) { propose<false>(p); }

struct SquareAcceptParams {
    Global<const uint32_t> rows;
    Global<const uint32_t> labels;   // count
    Global<const float> logits;      // one row for each of the rows
    Global<const float> candidates;  // likewise
    Global<float> margins;           // count
    Global<uint32_t> queries;        // count
    Global<float> best;              // count x 3072
    uint32_t count;
    uint32_t classes;
};

// A block takes one image; each of its warps finds the margin.
KERNEL(square_accept, SquareAcceptParams, ACCEPT_THREADS, NoShared) {
    const uint32_t i = blockIdx.x, row = p.rows[i];
    if (row >= p.count) return;
    const float before = p.margins[row];
    const float margin = margin_of(p.logits + int64_t(i) * p.classes, p.classes, p.labels[row]);
    syncthreads();  // all have read the margin that one of them replaces
    if (before < 0.0f) return;

    const bool accepted = margin < before || margin != margin || before != before;
    if (threadIdx.x == 0) {
        p.queries[row] = p.queries[row] + 1;
        if (accepted) p.margins[row] = margin;
    }
    if (!accepted) return;
    const Global<const float> from = p.candidates + int64_t(i) * IMAGE_UNITS * 4;
    const Global<float> to = p.best + int64_t(row) * IMAGE_UNITS * 4;
    for (uint32_t unit = threadIdx.x; unit < IMAGE_UNITS; unit += ACCEPT_THREADS) {
        store_vector(to, int64_t(unit) * 4, load_vector<Float4>(from, int64_t(unit) * 4));
    }
}

}  // namespace secateur
