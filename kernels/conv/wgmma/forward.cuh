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
    Global<uint32_t> mask;          // the output is positive
    Global<float> statistics;       // [pixel group][mean, M2][K]
    uint32_t has_residual;
    uint32_t log2_out_channels;
    MaskOrder mask_order;
    WgmmaPlan plan;
};

/// The biases of a thread's two channels.
struct Biases {
    float of[2];

    DEVICE void load(const WgmmaForwardParams& p, const GroupTile& tile) {
        const uint32_t channel = own_channel(tile);
        of[0] = p.bias[channel];
        of[1] = p.bias[channel + 8];
    }
};

/// Stores the mask of a tile.
template <class T>
DEVICE void store_mask(const WgmmaForwardParams& p, const GroupTile& tile, const MaskWords<T>& words) {
    if (p.mask_order == MaskOrder::Fragments) {
        MaskFragment<T> fragment;
#pragma unroll
        for (int stage = 0; stage < STAGES<T>; ++stage) fragment.word[stage] = words[stage];
        // A tile of two groups may have none of the second.
        if (tile.at.image < p.plan.batch) store_vector(p.mask, mask_fragment_at<T>(tile, p.log2_out_channels), fragment);
        return;
    }
    const Global<uint16_t> sixteen = p.mask.as<uint16_t>();
#pragma unroll
    for (uint32_t stage = 0; stage < STAGES<T>; ++stage) {
        const uint32_t word = transposed(words[stage]);
        const MaskPlace place = mask_place<T>(p.plan, tile, stage, p.log2_out_channels);
        if (place.valid) {
            sixteen[place.at] = uint16_t(word);
            sixteen[place.at + (1 << (p.log2_out_channels - 4))] = uint16_t(word >> 16);
        }
    }
}

/// Where products hide nothing.
DEVICE void nothing_to_do(const Work&, uint32_t) {}

/// The word of a pair of sums as they are.
DEVICE uint32_t pack_sums(int, int, int, float low, float high) { return pack_bf16(low, high); }

template <class T>
DEVICE void conv_forward_relu(const WgmmaForwardParams& p, WgmmaShared<T>& shared, uint32_t kernel) {
    prefetch_output_maps(p.plan, &p.output, p.residual, p.has_residual != 0);
    Stager<T> stager(p.residual, p.plan, shared, kernel);
    Biases bias;
    convolve<T, Direction::Forward>(
        p.operands, p.plan, shared, kernel,
        [&](const Work& work, uint32_t consumer) {
            const GroupTile tile = group_tile<T>(p.plan, work, consumer);
            bias.load(p, tile);
            if (p.has_residual) stager.begin(tile);
        },
        [&](const Work& work, uint32_t consumer) {
            if (p.has_residual) stager.prepare(group_tile<T>(p.plan, work, consumer));
        },
        [&](const Work& work, uint32_t consumer, const FinishedSums<T>& sums) {
            const GroupTile tile = group_tile<T>(p.plan, work, consumer);
            MaskWords<T> words = {};
            stager.finish_all(
                p.output, tile, p.has_residual != 0, sums, [&](float sum, int half) { return sum + bias.of[half]; },
                [&](int stage, int j, int half, float low, float high) {
                    // A NaN passes: a broken step must show in the loss, not vanish in a ReLU.
                    const uint32_t pair = pack_bf16_relu(low, high);
                    words[stage] += passed_bits(pair, j, half);
                    return pair;
                });
            store_mask<T>(p, tile, words);
        });
}

template <class T>
DEVICE void conv_forward_bias(const WgmmaForwardParams& p, WgmmaShared<T>& shared, uint32_t kernel) {
    prefetch_output_maps(p.plan, &p.output, p.residual, p.has_residual != 0);
    Stager<T> stager(p.residual, p.plan, shared, kernel);
    Biases bias;
    convolve<T, Direction::Forward>(
        p.operands, p.plan, shared, kernel,
        [&](const Work& work, uint32_t consumer) { bias.load(p, group_tile<T>(p.plan, work, consumer)); }, nothing_to_do,
        [&](const Work& work, uint32_t consumer, const FinishedSums<T>& sums) {
            stager.template finish_all<false>(
                p.output, group_tile<T>(p.plan, work, consumer), sums,
                [&](float sum, int half) { return sum + bias.of[half]; }, pack_sums);
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
        p.operands, p.plan, shared, kernel, nothing_to_do, nothing_to_do,
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
            stager.template finish_all<false>(p.output, tile, sums, [](float sum, int) { return sum; }, pack_sums);
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
