// Forward convolution on wgmma: the same operation and epilogues as conv/forward.cu, for channels that are multiples of 64.
//
// Epilogues: bias and ReLU with the mask of what passed (a residual added first where one is given), bias alone, and the raw sums
// with statistics for BatchNorm. A thread holds whole rows of the product, that is, channels, so biases are two registers and
// statistics are sums over registers and four lanes; of a split tile each block has those of its pixels, and the first stores
// what both have found.
#pragma once

#include "conv/wgmma/epilogue.cuh"
#include "norm/moments.h"

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
template <class T>
DEVICE MaskPlace mask_place(const WgmmaForwardParams& p, const GroupTile& tile, uint32_t stage) {
    const GridPixel pixel = T::Pixels::pixel(p.plan, tile, stage * STAGE_PIXELS + share_pixel());
    const uint32_t index = (((pixel.image << p.plan.log2_side) + pixel.row) << p.plan.log2_side) + pixel.column;
    return {(index << (p.log2_out_channels - 5)) + (tile.channel >> 5) + share_half(), pixel.valid};
}

template <class T>
DEVICE void conv_forward_relu(const WgmmaForwardParams& p, WgmmaShared<T>& shared, uint32_t kernel) {
    prefetch_output_maps(p.plan, &p.output, p.residual, p.has_residual != 0);
    Stager<T> stager(p.residual, p.plan, shared, kernel);
    convolve<T, Direction::Forward>(
        p.operands, p.plan, shared, kernel,
        [&](const Work& work, uint32_t consumer) {
            if (p.has_residual) stager.begin(group_tile<T>(p.plan, work, consumer));
        },
        [&](const Work& work, uint32_t consumer, const FinishedSums<T>& sums) {
            const GroupTile tile = group_tile<T>(p.plan, work, consumer);
            const float bias[2] = {p.bias[own_channel(tile)], p.bias[own_channel(tile) + 8]};
            stager.template finish_all<false>(
                p.output, tile, p.has_residual != 0, sums,
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
                    const MaskPlace place = mask_place<T>(p, tile, stage);
                    if (place.valid) p.mask[place.word] = bits;
                });
        });
}

template <class T>
DEVICE void conv_forward_bias(const WgmmaForwardParams& p, WgmmaShared<T>& shared, uint32_t kernel) {
    prefetch_output_maps(p.plan, &p.output, p.residual, p.has_residual != 0);
    Stager<T> stager(p.residual, p.plan, shared, kernel);
    convolve<T, Direction::Forward>(
        p.operands, p.plan, shared, kernel, [](const Work&, uint32_t) {},
        [&](const Work& work, uint32_t consumer, const FinishedSums<T>& sums) {
            const GroupTile tile = group_tile<T>(p.plan, work, consumer);
            const float bias[2] = {p.bias[own_channel(tile)], p.bias[own_channel(tile) + 8]};
            stager.template finish_all<false>(
                p.output, tile, false, sums, [&](float sum, int half, float) { return sum + bias[half]; },
                [](uint32_t, uint8_t*) {});
        });
}

/// Moments of the rounded outputs of the thread's lower or upper channel, over the tile that it finishes.
template <class T>
DEVICE Moments tile_statistics(const WgmmaForwardParams& p, const GroupTile& tile, uint32_t count, int half,
                                  const FinishedSums<T>& sums) {
    constexpr int COLUMNS = T::FINISHED_PIXELS / 8;
    const auto rounded = [&](int j, int e) { return to_float(to_bf16(sums[4 * j + 2 * half + e])); };
    // Pixels that do not exist have sums of zero: they add nothing.
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) total += rounded(j, 0) + rounded(j, 1);
    total += shfl_xor(total, 1);
    total += shfl_xor(total, 2);
    const float mean = count == 0 ? 0.0f : total / float(count);
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
        // Two neighbours are of one row, so of one image.
        const float low = rounded(j, 0) - mean, high = rounded(j, 1) - mean;
        const bool valid = T::Pixels::pixel(p.plan, tile, 8 * j + lane_index() % 4 * 2).valid;
        squares += valid ? low * low + high * high : 0.0f;
    }
    squares += shfl_xor(squares, 1);
    squares += shfl_xor(squares, 2);
    return {float(count), mean, squares};
}

DEVICE void store_statistics(const WgmmaForwardParams& p, const GroupTile& tile, int half, const Moments& of) {
    if (lane_index() % 4 != 0) return;
    const int64_t at = (int64_t(2 * tile.group) << p.log2_out_channels) + own_channel(tile) + 8 * half;
    p.statistics[at] = of.mean;
    p.statistics[at + (1 << p.log2_out_channels)] = of.squares;
}

template <class T>
DEVICE void conv_forward_statistics(const WgmmaForwardParams& p, WgmmaShared<T>& shared, uint32_t kernel) {
    prefetch_output_maps(p.plan, &p.output, p.residual, p.has_residual != 0);
    Stager<T> stager(p.residual, p.plan, shared, kernel);
    uint32_t parity = 0;
    convolve<T, Direction::Forward>(
        p.operands, p.plan, shared, kernel, [](const Work&, uint32_t) {},
        [&](const Work& work, uint32_t consumer, const FinishedSums<T>& sums) {
            const GroupTile tile = group_tile<T>(p.plan, work, consumer);
            const uint32_t pixels = p.plan.batch << (2 * p.plan.log2_side), first = tile.group * GROUP_PIXELS;
            // A tile of two groups may have none of the second.
            const uint32_t left = first < pixels ? pixels - first : 0, count = left < GROUP_PIXELS ? left : GROUP_PIXELS;
            // The halves of a group have the same images.
            const uint32_t own_count = count / T::PARTS;
            Moments own[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                own[half] = tile_statistics<T>(p, tile, own_count, half, sums);
                if (T::PARTS == 1 && count > 0) store_statistics(p, tile, half, own[half]);
                if constexpr (T::PARTS == 2) {
                    if (block_part<T>() == 1 && lane_index() % 4 == 0) {
                        send_statistics(shared.exchange, tile_channel(half), own[half].mean, own[half].squares);
                    }
                }
            }
            stager.template finish_all<false>(
                p.output, tile, false, sums, [](float sum, int, float) { return sum; }, [](uint32_t, uint8_t*) {});
            if constexpr (T::PARTS == 2) {
                if (block_part<T>() == 1) return;
                // They were sent before the other block staged its sub-tiles: a short wait.
                await_statistics(shared.exchange, parity, kernel);
                parity ^= 1;
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const Bytes8 sent = shared.exchange.statistics[tile_channel(half)];
                    const Moments other{float(count - own_count), bits_float(sent.word[0]), bits_float(sent.word[1])};
                    store_statistics(p, tile, half, merged(own[half], other));
                }
            }
        });
}

#define CONV_FORWARD_WGMMA(operation, shape, T) \
    KERNEL_EARLY(operation##_wgmma_##shape, WgmmaForwardParams, T::THREADS, WgmmaShared<T>) { operation<T>(p, shared, kernel); }

}  // namespace secateur
