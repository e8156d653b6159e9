// Batch statistics of a convolution's output, from the partial ones that its epilogue left for each tile of rows.
//
// Tiles are merged pairwise (norm/moments.h), in an order that depends on the number of tiles alone. Outputs, K each: mean,
// 1/deviation, and the affine form of the whole normalisation, scale = gamma/deviation and shift = beta - mean * scale.
//
// Sets of images that lie one after the other, no tile in two of them, have statistics of their own; the running ones
// move by each set in turn, as by one launch for each.

#include "norm/moments.h"

namespace secateur {

struct StatisticsParams {
    Global<const float> partials;  // sets x tiles x {mean, sum of squared differences from it} x channels
    Global<const float> gamma;
    Global<const float> beta;
    Global<float> running_mean;
    Global<float> running_variance;
    Global<float> statistics;  // sets x {mean, 1/deviation, scale, shift} x channels
    uint32_t sets;             // 1, 2, 4 or 8
    uint32_t rows;             // of a set, as are the tiles
    uint32_t tile_rows;
    uint32_t tiles;
    uint32_t channels;
    float epsilon;
    float momentum;
};

/// 32 strands of tiles for each of 8 columns: neighbouring channels of every set.
struct StatisticsShared {
    Moments strands[32][8];
};

KERNEL(batch_norm_statistics, StatisticsParams, 256, StatisticsShared) {
    const uint32_t lanes = 8 / p.sets;
    const uint32_t column = threadIdx.x % 8;
    const uint32_t strand = threadIdx.x / 8;
    const uint32_t set = column / lanes;
    const uint32_t channel = blockIdx.x * lanes + column % lanes;

    // Each strand walks every 32nd tile of its set.
    Moments own = {0.0f, 0.0f, 0.0f};
    for (uint32_t tile = strand; tile < p.tiles; tile += 32) {
        const uint32_t left = p.rows - tile * p.tile_rows;
        const int64_t at = (int64_t(set) * p.tiles + tile) * 2 * p.channels + channel;
        own = merged(own, {float(left < p.tile_rows ? left : p.tile_rows), p.partials[at], p.partials[at + p.channels]});
    }
    shared.strands[strand][column] = own;

    // Then a tree over the strands.
    for (uint32_t half = 16; half > 0; half /= 2) {
        syncthreads();
        if (strand < half) {
            shared.strands[strand][column] =
                merged(shared.strands[strand][column], shared.strands[strand + half][column]);
        }
    }
    syncthreads();

    if (strand == 0) {
        const Moments all = shared.strands[0][column];
        const float variance = all.squares / all.count;
        const float inverse = 1.0f / sqrtf(variance + p.epsilon);
        const float scale = p.gamma[channel] * inverse;
        const int64_t at = int64_t(set) * 4 * p.channels + channel;
        p.statistics[at] = all.mean;
        p.statistics[at + p.channels] = inverse;
        p.statistics[at + 2 * p.channels] = scale;
        p.statistics[at + 3 * p.channels] = p.beta[channel] - all.mean * scale;
    }
    if (strand == 0 && set == 0) {
        const float keep = 1.0f - p.momentum;
        float mean = p.running_mean[channel], variance = p.running_variance[channel];
        for (uint32_t s = 0; s < p.sets; ++s) {
            const Moments all = shared.strands[0][s * lanes + column];
            mean = keep * mean + p.momentum * all.mean;
            variance = keep * variance + p.momentum * (all.squares / (all.count - 1.0f));
        }
        p.running_mean[channel] = mean;
        p.running_variance[channel] = variance;
    }
}

}  // namespace secateur
