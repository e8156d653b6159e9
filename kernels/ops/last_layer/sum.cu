// The weighted sum of last-layer gradients, f64: sum = sum_i w_i g_i, cut over the samples into parts.
//
//   partials[part][c][f] = sum over the samples of the part of w_i dz_i[c] h_i[f], and h = 1 for f = features
//
// A block takes ten classes, 128 features and one part; its warps take every eighth sample. A lane holds 4 features x 10
// classes in registers, so that a feature, read once, serves ten classes; the factors w dz are spread by shared memory.
// `sum_rows` adds the parts up: a block takes 32 neighbouring columns and its sixteen warps every sixteenth part, whose sums are added
// in the order of the warps. How many parts there are depends on the shape alone.

#include "ops/last_layer/gradients.h"

namespace secateur {

constexpr uint32_t SUM_WARPS = 8;
constexpr int SUM_CLASSES = 10;
constexpr int SUM_SAMPLES = 4;  // of a warp in one round
constexpr uint32_t SUM_ROUND = SUM_WARPS * SUM_SAMPLES;

struct GradientSumParams {
    Gradients gradients;
    Global<const double> weights;  // len; null for ones
    Global<double> partials;       // parts x classes x (width + 1)
    uint32_t part_len;             // samples of a part
    uint32_t padding;
};

struct GradientSumShared {
    union {
        double factors[2][SUM_ROUND][SUM_CLASSES];
        double sums[SUM_WARPS][2][WARP_FEATURES];
    };
};

KERNEL_OCCUPANCY(gradient_sum, GradientSumParams, SUM_WARPS * 32, 2, GradientSumShared) {
    const Gradients& g = p.gradients;
    const uint32_t feature = blockIdx.x * WARP_FEATURES + lane_index() * 4;
    const uint32_t first_class = blockIdx.y * SUM_CLASSES;
    const uint32_t first = blockIdx.z * p.part_len;
    const uint32_t last = g.len - first < p.part_len ? g.len : first + p.part_len;

    double sums[SUM_CLASSES][4] = {};
    double bias = 0.0;
    for (uint32_t term = 0; term < g.terms; ++term) {
        const Global<const float> features = g.features[term], logit_gradient = g.logit_gradient[term];
        syncthreads();
        for (uint32_t base = first; base < last; base += SUM_ROUND) {
            const uint32_t buffer = base / SUM_ROUND % 2;
            // Beyond the end the factors are 0, and the first sample, whose features count anyway, stands in.
            Float4 h[SUM_SAMPLES];
#pragma unroll
            for (int s = 0; s < SUM_SAMPLES; ++s) {
                const uint32_t sample = base + s * SUM_WARPS + warp_index();
                h[s] = load_vector<Float4>(features, int64_t(sample < last ? sample : first) * g.width + feature);
            }
            // A loop: unrolled, its addresses would not fit beside the sums.
#pragma unroll 1
            for (uint32_t i = threadIdx.x; i < SUM_ROUND * SUM_CLASSES; i += SUM_WARPS * 32) {
                const uint32_t sample = base + i / SUM_CLASSES, c = first_class + i % SUM_CLASSES;
                double factor = 0.0;
                if (sample < last && c < g.classes) {
                    factor = logit_gradient[int64_t(sample) * g.classes + c];
                    if (p.weights.present()) factor *= p.weights[sample];
                }
                shared.factors[buffer][i / SUM_CLASSES][i % SUM_CLASSES] = factor;
            }
            // The other buffer may still be read; this one was last read before the barrier of the round between.
            syncthreads();
#pragma unroll
            for (int s = 0; s < SUM_SAMPLES; ++s) {
                const double(&factors)[SUM_CLASSES] = shared.factors[buffer][s * SUM_WARPS + warp_index()];
                double wide[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) wide[i] = h[s].value[i];
#pragma unroll
                for (int c = 0; c < SUM_CLASSES; ++c) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) sums[c][i] = fused(factors[c], wide[i], sums[c][i]);
                }
                if (lane_index() < SUM_CLASSES) bias += factors[lane_index()];
            }
        }
    }

    // The warps' sums in the order of the warps, two classes at a time.
    const int64_t row = g.width + 1;
    const int64_t part = int64_t(blockIdx.z) * g.classes * row;
#pragma unroll
    for (int pair = 0; pair < SUM_CLASSES; pair += 2) {
        syncthreads();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int i = 0; i < 4; ++i) shared.sums[warp_index()][half][lane_index() * 4 + i] = sums[pair + half][i];
        }
        syncthreads();
        const uint32_t half = threadIdx.x / WARP_FEATURES, f = threadIdx.x % WARP_FEATURES;
        const uint32_t c = first_class + pair + half;
        double total = shared.sums[0][half][f];
#pragma unroll
        for (uint32_t warp = 1; warp < SUM_WARPS; ++warp) total += shared.sums[warp][half][f];
        if (c < g.classes) p.partials[part + c * row + blockIdx.x * WARP_FEATURES + f] = total;
    }
    syncthreads();
    if (lane_index() < SUM_CLASSES) shared.sums[warp_index()][0][lane_index()] = bias;
    syncthreads();
    const uint32_t c = first_class + threadIdx.x;
    if (blockIdx.x == 0 && threadIdx.x < SUM_CLASSES && c < g.classes) {
        double total = shared.sums[0][0][threadIdx.x];
        for (uint32_t warp = 1; warp < SUM_WARPS; ++warp) total += shared.sums[warp][0][threadIdx.x];
        p.partials[part + c * row + g.width] = total;
    }
}

constexpr uint32_t COLUMN_WARPS = 16;
/// Parts whose loads a thread has under way at once.
constexpr uint32_t AHEAD = 8;

struct SumRowsParams {
    Global<const double> rows;  // count x len
    Global<double> to;          // len
    uint32_t count;
    uint32_t len;
};

struct SumRowsShared {
    double sums[COLUMN_WARPS][32];
};

KERNEL(sum_rows, SumRowsParams, COLUMN_WARPS * 32, SumRowsShared) {
    const uint32_t column = blockIdx.x * 32 + lane_index();
    double sum = 0.0;
    if (column < p.len) {
        const auto load = [&](uint32_t row) { return p.rows[int64_t(row) * p.len + column]; };
        uint32_t row = warp_index();
#pragma unroll 1
        for (; row + (AHEAD - 1) * COLUMN_WARPS < p.count; row += AHEAD * COLUMN_WARPS) {
            double values[AHEAD];
#pragma unroll
            for (uint32_t k = 0; k < AHEAD; ++k) values[k] = load(row + k * COLUMN_WARPS);
#pragma unroll
            for (uint32_t k = 0; k < AHEAD; ++k) sum += values[k];
        }
        for (; row < p.count; row += COLUMN_WARPS) sum += load(row);
    }
    shared.sums[warp_index()][lane_index()] = sum;
    syncthreads();
    if (warp_index() == 0 && column < p.len) {
#pragma unroll
        for (uint32_t warp = 1; warp < COLUMN_WARPS; ++warp) sum += shared.sums[warp][lane_index()];
        p.to[column] = sum;
    }
}

}  // namespace secateur
