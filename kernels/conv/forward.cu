// Forward convolution as an implicit GEMM on tensor cores: rows = output pixels, columns = output channels.
//
// y[n,p,q,k] = sum over r, s, c of x[n, stride p + r - pad, stride q + s - pad, c] w[k,r,s,c], zero outside the image;
// bf16 in, f32 sums. Three epilogues: bias and ReLU with the mask of what passed (a residual added first where one is
// given), bias alone, and the raw sums with statistics for BatchNorm.
#include "conv/epilogue.cuh"
#include "conv/operands.cuh"
#include "conv/tiles.cuh"

namespace secateur {

struct ConvForwardParams {
    Global<const Bf16> input;       // NHWC
    Global<const Bf16> weights;     // KRSC
    Global<const float> bias;       // K
    Global<const Bf16> residual;    // like output, or null
    Global<Bf16> output;            // NHWC
    Global<uint8_t> mask;           // bit c % 8 of byte (pixel * K + c) / 8: the output is positive
    Global<float> statistics;       // [row tile][mean, M2][K]
    Gather gather;
    uint32_t log2_out_channels;
    uint32_t log2_column_tiles;
};

/// Element of the output in this row of the tile, at this thread's columns.
template <class T>
DEVICE int64_t output_index(const ConvForwardParams& p, uint32_t first_row, uint32_t row, uint32_t first_column) {
    return (int64_t(first_row + row) << p.log2_out_channels) + first_column + own_column<T>();
}

/// Bias, residual, ReLU, and one bit a channel for what passed.
struct BiasReluMask {
    template <class T, class Shared>
    DEVICE static void finish(const ConvForwardParams& p, Shared& shared, const Sums<T>& sums, uint32_t first_row,
                              uint32_t first_column) {
        const Eight bias = load_eight(p.bias, first_column + own_column<T>());
        shared.staged.write(sums);
        const uint32_t rows = rows_of_tile<T>(p.gather.pixels, first_row);
        const auto fetch = [&](uint32_t row) {
            const int64_t index = output_index<T>(p, first_row, row, first_column);
            return p.residual.present() ? load_vector<Bytes16>(p.residual, index) : Bytes16{};
        };
        for_each_eight<T>(shared.staged, rows, fetch, [&](uint32_t row, Eight eight, const Bytes16& residual) {
            const int64_t index = output_index<T>(p, first_row, row, first_column);
            add(eight, bias);
            add(eight, unpack_eight(residual));
            uint32_t mask = 0;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                // Written so that a NaN passes: a broken step must show in the loss, not vanish in a ReLU.
                if (!(eight.value[i] <= 0.0f)) {
                    mask |= 1u << i;
                } else {
                    eight.value[i] = 0.0f;
                }
            }
            store_vector(p.output, index, pack_eight(eight));
            p.mask[index >> 3] = uint8_t(mask);
        });
    }
};

/// Bias alone: the shortcut's convolution.
struct Bias {
    template <class T, class Shared>
    DEVICE static void finish(const ConvForwardParams& p, Shared& shared, const Sums<T>& sums, uint32_t first_row,
                              uint32_t first_column) {
        const Eight bias = load_eight(p.bias, first_column + own_column<T>());
        shared.staged.write(sums);
        const uint32_t rows = rows_of_tile<T>(p.gather.pixels, first_row);
        for_each_eight<T>(shared.staged, rows, fetch_nothing, [&](uint32_t row, Eight eight, Nothing) {
            add(eight, bias);
            store_vector(p.output, output_index<T>(p, first_row, row, first_column), pack_eight(eight));
        });
    }
};

/// The sums as they are, and for each channel mean and M2 = sum (y - mean)^2 of this tile's rounded outputs.
struct Statistics {
    template <class T, class Shared>
    DEVICE static void finish(const ConvForwardParams& p, Shared& shared, const Sums<T>& sums, uint32_t first_row,
                              uint32_t first_column) {
        shared.staged.write(sums, [](float sum) { return to_float(to_bf16(sum)); });
        const uint32_t rows = rows_of_tile<T>(p.gather.pixels, first_row);
        for_each_eight<T>(shared.staged, rows, fetch_nothing, [&](uint32_t row, const Eight& eight, Nothing) {
            store_vector(p.output, output_index<T>(p, first_row, row, first_column), pack_eight(eight));
        });

        // A thread owns four channels in RUN rows; PARTS threads share four channels.
        constexpr uint32_t PARTS = 4 * T::THREADS / T::COLUMNS, RUN = T::ROWS / PARTS;
        const uint32_t column = threadIdx.x % (T::COLUMNS / 4) * 4, part = threadIdx.x / (T::COLUMNS / 4);
        float* scratch = shared.scratch + column;
        Float4 partial{};
        // Rows that do not exist are zero, and there is no bias: they add nothing.
        for (uint32_t row = part * RUN; row < (part + 1) * RUN; ++row) {
            const Float4 y = shared.staged.four(row, column);
#pragma unroll
            for (int i = 0; i < 4; ++i) partial.value[i] += y.value[i];
        }
        *reinterpret_cast<Float4*>(scratch + part * T::COLUMNS) = partial;
        syncthreads();
        Float4 mean = total<T, PARTS>(scratch);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            mean.value[i] /= float(rows);
            partial.value[i] = 0.0f;
        }

        for (uint32_t row = part * RUN; row < (part + 1) * RUN; ++row) {
            if (row >= rows) break;
            const Float4 y = shared.staged.four(row, column);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float centred = y.value[i] - mean.value[i];
                partial.value[i] += centred * centred;
            }
        }
        syncthreads();
        *reinterpret_cast<Float4*>(scratch + part * T::COLUMNS) = partial;
        syncthreads();
        if (part == 0) {
            const uint32_t row_tile = first_row / T::ROWS;
            const int64_t index = (int64_t(2 * row_tile) << p.log2_out_channels) + first_column + column;
            store_vector(p.statistics, index, mean);
            store_vector(p.statistics, index + (1 << p.log2_out_channels), total<T, PARTS>(scratch));
        }
    }

    /// The sum over the parts, in their order.
    template <class T, uint32_t PARTS>
    DEVICE static Float4 total(const float* scratch) {
        Float4 sum{};
        for (uint32_t part = 0; part < PARTS; ++part) {
            const Float4 more = *reinterpret_cast<const Float4*>(scratch + part * T::COLUMNS);
#pragma unroll
            for (int i = 0; i < 4; ++i) sum.value[i] += more.value[i];
        }
        return sum;
    }
};

template <class T>
using ForwardShared = ConvShared<T, Contiguous::Reduction, Contiguous::Reduction>;

template <class T, class Ending>
DEVICE void conv_forward(const ConvForwardParams& p, ForwardShared<T>& shared) {
    using O = typename ForwardShared<T>::O;
    // The column tiles of one row tile run side by side: they read the same pixels.
    const uint32_t first_column = (blockIdx.x & ((1u << p.log2_column_tiles) - 1)) * T::COLUMNS;
    const uint32_t first_row = (blockIdx.x >> p.log2_column_tiles) * T::ROWS;
    const uint32_t reduction = p.gather.taps << p.gather.log2_channels;

    const PixelRows<typename O::SlabA, T::THREADS, ForwardTaps> pixels(p.input, p.gather, {}, first_row);
    const WeightRows<typename O::SlabB, T::THREADS> weights{p.weights, reduction, first_column};
    Sums<T> sums;
    multiply<T>(
        shared.operands, (reduction + T::DEPTH - 1) / T::DEPTH,
        [&](uint32_t slab, typename O::SlabA& a, typename O::SlabB& b) {
            pixels.load(slab, a);
            weights.load(slab, b);
        },
        sums);
    Ending::template finish<T>(p, shared, sums, first_row, first_column);
}

#define CONV_FORWARD(symbol, T, Ending) \
    KERNEL(symbol, ConvForwardParams, T::THREADS, ForwardShared<T>) { conv_forward<T, Ending>(p, shared); }

CONV_FORWARD(conv_forward_relu_mma_128x128, Tile128x128, BiasReluMask)
CONV_FORWARD(conv_forward_relu_mma_128x64, Tile128x64, BiasReluMask)
CONV_FORWARD(conv_forward_relu_mma_128x16, Tile128x16, BiasReluMask)
CONV_FORWARD(conv_forward_bias_mma_128x128, Tile128x128, Bias)
CONV_FORWARD(conv_forward_bias_mma_128x64, Tile128x64, Bias)
CONV_FORWARD(conv_forward_bias_mma_128x16, Tile128x16, Bias)
CONV_FORWARD(conv_forward_statistics_mma_128x128, Tile128x128, Statistics)
CONV_FORWARD(conv_forward_statistics_mma_128x64, Tile128x64, Statistics)
CONV_FORWARD(conv_forward_statistics_mma_128x16, Tile128x16, Statistics)

}  // namespace secateur
