// Input gradient of a convolution as an implicit GEMM: rows = input pixels, columns = input channels.
//
// Stride 1: dx[n,h,w,c] = sum over r, s, k of dy[n, h + 1 - r, w + 1 - s, k] w[k,r,s,c], the same weights as forward.
// Stride 2: the input pixels (2i + a, 2j + b) of each phase (a, b) see 1, 2, 2 or 4 of the nine taps, so each phase is
// a GEMM of its own and nothing is multiplied by zero. A 1 x 1 kernel of stride 2 reaches phase (0, 0) alone; its
// gradient is written as a compact tensor (a row for each output pixel), which the 3 x 3 kernel of the same block adds
// in its phase (0, 0). Epilogue: dx = (sum + residual) * mask, both where given.
#include "conv/epilogue.cuh"
#include "conv/operands.cuh"
#include "conv/tiles.cuh"

namespace secateur {

struct ConvInputGradientParams {
    Global<const Bf16> output_gradient;  // NHWC
    Global<const Bf16> weights;          // KRSC
    Global<const Bf16> residual;         // like input_gradient (stride 1), compact (stride 2), or null
    Global<const uint8_t> mask;          // of the input: bit c % 8 of byte (pixel * C + c) / 8; or null
    Global<Bf16> input_gradient;         // NHWC, or compact
    Gather gather;                       // the image is the output gradient
    uint32_t kernel_taps;                // 9 or 1
    uint32_t log2_in_channels;
    uint32_t log2_column_tiles;
};

template <class T>
using InputGradientShared = ConvShared<T, Contiguous::Reduction, Contiguous::Outside>;

template <class T, class Taps>
DEVICE void multiply_gradient(const ConvInputGradientParams& p, const Gather& gather, const Taps& taps,
                              InputGradientShared<T>& shared, uint32_t first_row, uint32_t first_column, Sums<T>& sums) {
    using O = typename InputGradientShared<T>::O;
    const uint32_t reduction = gather.taps << gather.log2_channels;
    const PixelRows<typename O::SlabA, T::THREADS, Taps> pixels(p.output_gradient, gather, taps, first_row);
    const WeightColumns<typename O::SlabB, T::THREADS, Taps> weights{
        p.weights,     taps,        reduction, gather.log2_channels, p.kernel_taps, 1u << p.log2_in_channels,
        first_column};
    multiply<T>(
        shared.operands, (reduction + T::DEPTH - 1) / T::DEPTH,
        [&](uint32_t slab, typename O::SlabA& a, typename O::SlabB& b) {
            pixels.load(slab, a);
            weights.load(slab, b);
        },
        sums);
}

/// What the ending reads: eight channels of the residual and of the mask.
struct Extra {
    Bytes16 residual;
    uint32_t mask;
};

/// Stores the staged tile; `pixel_at(row)` is the input pixel of a GEMM row.
template <class T, class PixelAt>
DEVICE void store_gradient(const ConvInputGradientParams& p, InputGradientShared<T>& shared, const Sums<T>& sums,
                           bool add_residual, uint32_t first_row, uint32_t first_column, const PixelAt& pixel_at) {
    shared.staged.write(sums);
    const uint32_t rows = rows_of_tile<T>(p.gather.pixels, first_row);
    const uint32_t column = first_column + own_column<T>();
    const auto index_of = [&](uint32_t pixel) { return (int64_t(pixel) << p.log2_in_channels) + column; };
    const auto fetch = [&](uint32_t row) {
        Extra extra{{}, 0xFF};
        const uint32_t gemm_row = first_row + row;
        if (add_residual) extra.residual = load_vector<Bytes16>(p.residual, index_of(gemm_row));
        if (p.mask.present()) extra.mask = p.mask[index_of(pixel_at(gemm_row)) >> 3];
        return extra;
    };
    for_each_eight<T>(shared.staged, rows, fetch, [&](uint32_t row, Eight eight, const Extra& extra) {
        add(eight, unpack_eight(extra.residual));
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (!(extra.mask >> i & 1)) eight.value[i] = 0.0f;
        }
        store_vector(p.input_gradient, index_of(pixel_at(first_row + row)), pack_eight(eight));
    });
}

template <class T>
DEVICE void conv_input_gradient_stride1(const ConvInputGradientParams& p, InputGradientShared<T>& shared) {
    const uint32_t first_column = (blockIdx.x & ((1u << p.log2_column_tiles) - 1)) * T::COLUMNS;
    const uint32_t first_row = (blockIdx.x >> p.log2_column_tiles) * T::ROWS;
    Sums<T> sums;
    multiply_gradient<T>(p, p.gather, MirroredTaps{}, shared, first_row, first_column, sums);
    store_gradient<T>(p, shared, sums, p.residual.present(), first_row, first_column, [](uint32_t row) { return row; });
}

template <class T>
DEVICE void conv_input_gradient_stride2(const ConvInputGradientParams& p, InputGradientShared<T>& shared) {
    const uint32_t first_column = (blockIdx.x & ((1u << p.log2_column_tiles) - 1)) * T::COLUMNS;
    const uint32_t first_row = (blockIdx.x >> p.log2_column_tiles) * T::ROWS;
    // The grid has four layers for a 3 x 3 kernel, the four taps of phase (1, 1) first, and one for a 1 x 1 kernel.
    const uint32_t phase = gridDim.z - 1 - blockIdx.z;
    const PhaseTaps taps{phase >> 1, phase & 1, p.kernel_taps};
    Gather gather = p.gather;
    gather.taps = (1 + taps.row) * (1 + taps.column);

    Sums<T> sums;
    multiply_gradient<T>(p, gather, taps, shared, first_row, first_column, sums);
    const uint32_t log2_side = p.gather.log2_grid_side, within = (1u << log2_side) - 1;
    store_gradient<T>(p, shared, sums, p.residual.present() && phase == 0, first_row, first_column, [&](uint32_t row) {
        if (p.kernel_taps == 1) return row;
        const uint32_t h = 2 * (row >> log2_side & within) + taps.row, w = 2 * (row & within) + taps.column;
        return ((row >> (2 * log2_side)) << (2 * log2_side + 2)) + (h << (log2_side + 1)) + w;
    });
}

#define CONV_INPUT_GRADIENT(symbol, T, body) \
    KERNEL(symbol, ConvInputGradientParams, T::THREADS, InputGradientShared<T>) { body<T>(p, shared); }

CONV_INPUT_GRADIENT(conv_input_gradient_stride1_mma_128x128, Tile128x128, conv_input_gradient_stride1)
CONV_INPUT_GRADIENT(conv_input_gradient_stride1_mma_128x64, Tile128x64, conv_input_gradient_stride1)
CONV_INPUT_GRADIENT(conv_input_gradient_stride1_mma_128x16, Tile128x16, conv_input_gradient_stride1)
CONV_INPUT_GRADIENT(conv_input_gradient_stride2_mma_128x128, Tile128x128, conv_input_gradient_stride2)
CONV_INPUT_GRADIENT(conv_input_gradient_stride2_mma_128x64, Tile128x64, conv_input_gradient_stride2)
CONV_INPUT_GRADIENT(conv_input_gradient_stride2_mma_128x16, Tile128x16, conv_input_gradient_stride2)

}  // namespace secateur
