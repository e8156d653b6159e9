// Batch statistics of a convolution's output, from the partial ones that its epilogue left for each tile of rows.
//
// Tiles are merged pairwise by Chan, Golub and LeVeque's update ("Updating formulae and a pairwise algorithm for computing
// sample variances", 1979), in an order that depends on the number of tiles alone. Outputs, K each: mean, 1/deviation, and
// the affine form of the whole normalisation, scale = gamma/deviation and shift = beta - mean * scale.
// Checked by tests/kernel_norm.rs; called by the train pass behind each convolution.

#include "portable/portable.h"

namespace secateur {

struct StatisticsParams {
    Global<const float> partials;  // tiles x {mean, sum of squared differences from it} x channels
    Global<const float> gamma;
    Global<const float> beta;
    Global<float> running_mean;
    Global<float> running_variance;
    Global<float> statistics;  // {mean, 1/deviation, scale, shift} x channels
    uint32_t rows;
    uint32_t tile_rows;
    uint32_t tiles;
    uint32_t channels;
    float epsilon;
    float momentum;
};

/// Count, mean and sum of squared differences from the mean.
struct Moments {
    float count;
    float mean;
    float squares;
};

DEVICE Moments merged(const Moments& a, const Moments& b) {
    const float count = a.count + b.count;
    if (b.count == 0.0f) return a;
    const float difference = b.mean - a.mean;
    const float share = b.count / count;
    return {count, a.mean + difference * share, a.squares + b.squares + difference * difference * a.count * share};
}

/// 32 strands of tiles for each of 8 neighbouring channels.
struct StatisticsShared {
    Moments strands[32][8];
};

KERNEL(batch_norm_statistics, StatisticsParams, 256, StatisticsShared) {
    const uint32_t lane = threadIdx.x % 8;
    const uint32_t strand = threadIdx.x / 8;
    const uint32_t channel = blockIdx.x * 8 + lane;

    // Each strand walks every 32nd tile.
    Moments own = {0.0f, 0.0f, 0.0f};
    for (uint32_t tile = strand; tile < p.tiles; tile += 32) {
        const uint32_t left = p.rows - tile * p.tile_rows;
        const int64_t at = int64_t(tile) * 2 * p.channels + channel;
        own = merged(own, {float(left < p.tile_rows ? left : p.tile_rows), p.partials[at], p.partials[at + p.channels]});
    }
    shared.strands[strand][lane] = own;

    // Then a tree over the strands.
    for (uint32_t half = 16; half > 0; half /= 2) {
        syncthreads();
        if (strand < half) {
            shared.strands[strand][lane] = merged(shared.strands[strand][lane], shared.strands[strand + half][lane]);
        }
    }

    if (strand == 0) {
        const Moments all = shared.strands[0][lane];
        const float variance = all.squares / all.count;
        const float inverse = 1.0f / sqrtf(variance + p.epsilon);
        const float scale = p.gamma[channel] * inverse;
        p.statistics[channel] = all.mean;
        p.statistics[p.channels + channel] = inverse;
        p.statistics[2 * p.channels + channel] = scale;
        p.statistics[3 * p.channels + channel] = p.beta[channel] - all.mean * scale;
        const float unbiased = all.squares / (all.count - 1.0f);
        const float keep = 1.0f - p.momentum;
        p.running_mean[channel] = keep * p.running_mean[channel] + p.momentum * all.mean;
        p.running_variance[channel] = keep * p.running_variance[channel] + p.momentum * unbiased;
    }
}

}  // namespace secateur
