// Backward pass of train-mode BatchNorm in three kernels. With xhat = (y - mean) / deviation and M rows:
//
//   dbeta = sum g, dgamma = sum g * xhat, dy = gamma / deviation * (g - dbeta / M - xhat * dgamma / M)
//
// (Ioffe and Szegedy, 2015, section 3). Partial sums of fixed blocks of rows come first, then a reduction in a fixed order,
// then one elementwise pass. g is already masked by the ReLU after the normalisation.
//
// Sets of images that lie one after the other have statistics, and so sums, of their own: the second dimension of the
// grids. The gradients of gamma and beta are added up over the sets in their order, as by one launch for each.

#include "portable/portable.h"

namespace secateur {

struct NormSumsParams {
    Global<const Bf16> g;  // sets x rows x channels
    Global<const Bf16> y;
    Global<const float> statistics;  // sets x {mean, 1/deviation, scale, shift} x channels
    Global<float> partials;          // sets x blocks x {sum g, sum g * xhat} x channels
    uint32_t rows;                   // of a set
    uint32_t rows_per_block;
    uint32_t channels;  // 16 to 1024, a power of two
};

struct NormSumsShared {
    Float8 g[256];
    Float8 gx[256];
};

KERNEL(batch_norm_backward_sums, NormSumsParams, 256, NormSumsShared) {
    // Threads side by side take the vectors of a row; rows are dealt out over what is left of the block.
    const uint32_t vectors = p.channels / 8;
    const uint32_t strands = 256 / vectors;
    const uint32_t vector = threadIdx.x & (vectors - 1);
    const uint32_t strand = threadIdx.x / vectors;
    const uint32_t first = blockIdx.x * p.rows_per_block;
    const uint32_t last = first + p.rows_per_block < p.rows ? first + p.rows_per_block : p.rows;

    const uint32_t moments = blockIdx.y * 4 * p.channels + vector * 8;
    const int64_t set_rows = int64_t(blockIdx.y) * p.rows;

    const Float8 mean = load_float8(p.statistics, moments);
    const Float8 inverse = load_float8(p.statistics, moments + p.channels);
    Float8 sum_g = {}, sum_gx = {};
    for (uint32_t row = first + strand; row < last; row += strands) {
        const int64_t at = (set_rows + row) * p.channels + vector * 8;
        const Float8 g = load_bf16x8(p.g, at);
        const Float8 y = load_bf16x8(p.y, at);
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            sum_g.value[c] += g.value[c];
            sum_gx.value[c] += g.value[c] * ((y.value[c] - mean.value[c]) * inverse.value[c]);
        }
    }
    shared.g[threadIdx.x] = sum_g;
    shared.gx[threadIdx.x] = sum_gx;
    syncthreads();

    // One thread a channel adds the strands up.
    for (uint32_t channel = threadIdx.x; channel < p.channels; channel += 256) {
        float g = 0.0f, gx = 0.0f;
        for (uint32_t s = 0; s < strands; ++s) {
            g += shared.g[s * vectors + channel / 8].value[channel % 8];
            gx += shared.gx[s * vectors + channel / 8].value[channel % 8];
        }
        const int64_t at = (int64_t(blockIdx.y) * gridDim.x + blockIdx.x) * 2 * p.channels + channel;
        p.partials[at] = g;
        p.partials[at + p.channels] = gx;
    }
}

struct NormFinishParams {
    Global<const float> partials;
    Global<const float> statistics;
    Global<const float> gamma;
    Global<float> gamma_gradient;  // null where only the input gradient is wanted
    Global<float> beta_gradient;
    Global<float> coefficients;  // sets x {gamma/deviation, dbeta/M, dgamma/(M*deviation)} x channels
    uint32_t sets;               // 1, 2, 4 or 8
    uint32_t blocks;             // of a set, as are the rows
    uint32_t rows;
    uint32_t channels;
    uint32_t accumulate;
};

/// 32 strands of blocks for each of 8 columns: neighbouring channels of every set.
struct NormFinishShared {
    float g[32][8];
    float gx[32][8];
};

KERNEL(batch_norm_backward_finish, NormFinishParams, 256, NormFinishShared) {
    const uint32_t lanes = 8 / p.sets;
    const uint32_t column = threadIdx.x % 8;
    const uint32_t strand = threadIdx.x / 8;
    const uint32_t set = column / lanes;
    const uint32_t channel = blockIdx.x * lanes + column % lanes;

    float g = 0.0f, gx = 0.0f;
    for (uint32_t block = strand; block < p.blocks; block += 32) {
        const int64_t at = (int64_t(set) * p.blocks + block) * 2 * p.channels + channel;
        g += p.partials[at];
        gx += p.partials[at + p.channels];
    }
    shared.g[strand][column] = g;
    shared.gx[strand][column] = gx;
    for (uint32_t half = 16; half > 0; half /= 2) {
        syncthreads();
        if (strand < half) {
            shared.g[strand][column] += shared.g[strand + half][column];
            shared.gx[strand][column] += shared.gx[strand + half][column];
        }
    }
    syncthreads();

    if (strand == 0) {
        const float inverse = p.statistics[(set * 4 + 1) * p.channels + channel];
        const float share = 1.0f / float(p.rows);
        const uint32_t at = set * 3 * p.channels + channel;
        p.coefficients[at] = p.gamma[channel] * inverse;
        p.coefficients[at + p.channels] = shared.g[0][column] * share;
        p.coefficients[at + 2 * p.channels] = shared.gx[0][column] * share * inverse;
    }
    if (strand == 0 && set == 0 && p.gamma_gradient.present()) {
        g = p.accumulate ? p.beta_gradient[channel] + shared.g[0][column] : shared.g[0][column];
        gx = p.accumulate ? p.gamma_gradient[channel] + shared.gx[0][column] : shared.gx[0][column];
        for (uint32_t s = 1; s < p.sets; ++s) {
            g += shared.g[0][s * lanes + column];
            gx += shared.gx[0][s * lanes + column];
        }
        p.beta_gradient[channel] = g;
        p.gamma_gradient[channel] = gx;
    }
}

struct NormBackwardParams {
    Global<const Bf16> g;
    Global<const Bf16> y;
    Global<const float> statistics;
    Global<const float> coefficients;
    Global<Bf16> dy;    // may be g
    uint32_t vectors;   // of a set: rows * channels / 8
    uint32_t channels;  // a power of two
};

KERNEL(batch_norm_backward_apply, NormBackwardParams, 256, NoShared) {
    const uint32_t in_set = blockIdx.x * blockDim.x + threadIdx.x;
    if (in_set >= p.vectors) return;
    const int64_t at = (int64_t(blockIdx.y) * p.vectors + in_set) * 8;
    const uint32_t channel = (in_set * 8) & (p.channels - 1);
    const uint32_t first = blockIdx.y * 3 * p.channels + channel;

    const Float8 g = load_bf16x8(p.g, at);
    const Float8 y = load_bf16x8(p.y, at);
    const Float8 mean = load_float8(p.statistics, blockIdx.y * 4 * p.channels + channel);
    const Float8 scale = load_float8(p.coefficients, first);
    const Float8 beta_share = load_float8(p.coefficients, first + p.channels);
    const Float8 gamma_share = load_float8(p.coefficients, first + 2 * p.channels);
    Float8 dy;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
        const float centred = y.value[c] - mean.value[c];
        dy.value[c] = scale.value[c] * (g.value[c] - beta_share.value[c] - centred * gamma_share.value[c]);
    }
    store_bf16x8(p.dy, at, dy);
}

}  // namespace secateur
