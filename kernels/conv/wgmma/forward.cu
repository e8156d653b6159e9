// Forward convolution on wgmma: the same operation and endings as conv/forward.cu, for channels that are multiples of 64.
//
// Targets: sm_90a
//
// Endings: bias and ReLU with the mask of what passed (a residual added first where one is given), bias alone, and the raw sums
// with statistics for BatchNorm. A thread holds whole rows of the product, that is, channels, so biases are two registers and
// statistics are sums over registers and four lanes. Checked by tests/conv_forward.rs against f64; launched by
// src/engine/cuda/launch/conv/wgmma/.
#include "conv/wgmma/epilogue.cuh"

namespace secateur {

struct WgmmaForwardParams {
    WgmmaOperands operands;
    TensorMap output;
    TensorMap residual;             // like output
    Global<const float> bias;       // K
    Global<uint32_t> mask;          // bit c % 32 of word (pixel * K + c) / 32: the output is positive
    Global<float> statistics;       // [pixel group][mean, M2][K]
    uint32_t has_residual;
    uint32_t log2_out_channels;
    WgmmaPlan plan;
};

/// Where the mask bits of this thread's share of a sub-tile go, and whether its pixel exists.
struct MaskPlace {
    uint32_t word;
    bool valid;
};
DEVICE MaskPlace mask_place(const WgmmaForwardParams& p, const GroupTile& tile, uint32_t stage) {
    const GridPixel pixel = grid_pixel(p.plan, tile, stage * STAGE_PIXELS + share_pixel());
    const uint32_t index = (((pixel.image << p.plan.log2_side) + pixel.row) << p.plan.log2_side) + pixel.column;
    return {(index << (p.log2_out_channels - 5)) + (tile.channel >> 5) + share_half(), pixel.valid};
}

template <class T>
DEVICE void conv_forward_relu(const WgmmaForwardParams& p, WgmmaShared<T>& shared) {
    Stager<WgmmaShared<T>> stager(p.output, p.residual, p.plan, shared, threadIdx.x / 128 - 1);
    convolve<T, Direction::Forward>(
        p.operands, p.plan, shared,
        [&](const Work& work, uint32_t consumer) {
            if (p.has_residual) stager.begin(group_tile<T>(p.plan, work, consumer));
        },
        [&](const Work& work, uint32_t consumer, const WgmmaSums& sums) {
            const GroupTile tile = group_tile<T>(p.plan, work, consumer);
            const float bias[2] = {p.bias[own_channel(tile)], p.bias[own_channel(tile) + 8]};
            stager.template finish_all<false>(
                tile, p.has_residual != 0, sums,
                [&](float sum, int half, float residual) {
                    const float y = sum + bias[half] + residual;
                    // Written so that a NaN passes: a broken step must show in the loss, not vanish in a ReLU.
                    return y <= 0.0f ? 0.0f : y;
                },
                [&](uint32_t stage, uint8_t* staged) {
                    uint32_t bits = 0;
#pragma unroll
                    for (uint32_t chunk = 0; chunk < 4; ++chunk) {
                        const Bytes16 eight = share_chunk(staged, chunk);
#pragma unroll
                        for (uint32_t i = 0; i < 4; ++i) {
                            bits |= uint32_t((eight.word[i] & 0xFFFFu) != 0) << (8 * chunk + 2 * i);
                            bits |= uint32_t((eight.word[i] >> 16) != 0) << (8 * chunk + 2 * i + 1);
                        }
                    }
                    const MaskPlace place = mask_place(p, tile, stage);
                    if (place.valid) p.mask[place.word] = bits;
                });
        });
}

template <class T>
DEVICE void conv_forward_bias(const WgmmaForwardParams& p, WgmmaShared<T>& shared) {
    Stager<WgmmaShared<T>> stager(p.output, p.residual, p.plan, shared, threadIdx.x / 128 - 1);
    convolve<T, Direction::Forward>(
        p.operands, p.plan, shared, [](const Work&, uint32_t) {},
        [&](const Work& work, uint32_t consumer, const WgmmaSums& sums) {
            const GroupTile tile = group_tile<T>(p.plan, work, consumer);
            const float bias[2] = {p.bias[own_channel(tile)], p.bias[own_channel(tile) + 8]};
            stager.template finish_all<false>(
                tile, false, sums, [&](float sum, int half, float) { return sum + bias[half]; },
                [](uint32_t, uint8_t*) {});
        });
}

/// Mean and M2 = sum (y - mean)^2 of this group's rounded outputs, for the thread's two channels.
template <class T>
DEVICE void store_statistics(const WgmmaForwardParams& p, const GroupTile& tile, const WgmmaSums& sums) {
    const uint32_t pixels = p.plan.batch << (2 * p.plan.log2_side), first = tile.group * GROUP_PIXELS;
    if (first >= pixels) return;
    const uint32_t count = pixels - first < GROUP_PIXELS ? pixels - first : GROUP_PIXELS;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const auto rounded = [&](int j, int e) { return to_float(to_bf16(sums[4 * j + 2 * half + e])); };
        // Pixels that do not exist have sums of zero: they add nothing.
        float total = 0.0f;
#pragma unroll
        for (int j = 0; j < 32; ++j) total += rounded(j, 0) + rounded(j, 1);
        total += shfl_xor(total, 1);
        total += shfl_xor(total, 2);
        const float mean = total / float(count);
        float squares = 0.0f;
#pragma unroll
        for (int j = 0; j < 32; ++j) {
            // Two neighbours are of one row, so of one image.
            const float low = rounded(j, 0) - mean, high = rounded(j, 1) - mean;
            const bool valid = grid_pixel(p.plan, tile, 8 * j + lane_index() % 4 * 2).valid;
            squares += valid ? low * low + high * high : 0.0f;
        }
        squares += shfl_xor(squares, 1);
        squares += shfl_xor(squares, 2);
        if (lane_index() % 4 == 0) {
            const int64_t at = (int64_t(2 * tile.group) << p.log2_out_channels) + own_channel(tile) + 8 * half;
            p.statistics[at] = mean;
            p.statistics[at + (1 << p.log2_out_channels)] = squares;
        }
    }
}

template <class T>
DEVICE void conv_forward_statistics(const WgmmaForwardParams& p, WgmmaShared<T>& shared) {
    Stager<WgmmaShared<T>> stager(p.output, p.residual, p.plan, shared, threadIdx.x / 128 - 1);
    convolve<T, Direction::Forward>(
        p.operands, p.plan, shared, [](const Work&, uint32_t) {},
        [&](const Work& work, uint32_t consumer, const WgmmaSums& sums) {
            const GroupTile tile = group_tile<T>(p.plan, work, consumer);
            store_statistics<T>(p, tile, sums);
            stager.template finish_all<false>(
                tile, false, sums, [](float sum, int, float) { return sum; }, [](uint32_t, uint8_t*) {});
        });
}

#define CONV_FORWARD_WGMMA(operation, shape, T) \
    KERNEL_EARLY(operation##_wgmma_##shape, WgmmaForwardParams, T::THREADS, WgmmaShared<T>) { operation<T>(p, shared); }

CONV_FORWARD_WGMMA(conv_forward_relu, 128x256, Wgmma128x256)
CONV_FORWARD_WGMMA(conv_forward_relu, 64x512, Wgmma64x512)
CONV_FORWARD_WGMMA(conv_forward_relu, 64x256, Wgmma64x256)
CONV_FORWARD_WGMMA(conv_forward_relu, resident, WgmmaResident)
CONV_FORWARD_WGMMA(conv_forward_bias, 128x256, Wgmma128x256)
CONV_FORWARD_WGMMA(conv_forward_bias, 64x512, Wgmma64x512)
CONV_FORWARD_WGMMA(conv_forward_bias, 64x256, Wgmma64x256)
CONV_FORWARD_WGMMA(conv_forward_bias, resident, WgmmaResident)
CONV_FORWARD_WGMMA(conv_forward_statistics, 128x256, Wgmma128x256)
CONV_FORWARD_WGMMA(conv_forward_statistics, 64x512, Wgmma64x512)
CONV_FORWARD_WGMMA(conv_forward_statistics, 64x256, Wgmma64x256)
CONV_FORWARD_WGMMA(conv_forward_statistics, resident, WgmmaResident)

}  // namespace secateur
