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

/// Adds the biases of the thread's two channels.
struct BiasEpilogue : Epilogue {
    float bias[2];

    DEVICE void load(const WgmmaForwardParams& p, const GroupTile& tile) {
        const uint32_t channel = own_channel(tile);
        bias[0] = p.bias[channel];
        bias[1] = p.bias[channel + 8];
    }
    DEVICE float value(float sum, int half) const { return sum + bias[half]; }
};

/// The same, then ReLU, and the mask of what passed.
template <class T>
struct ReluEpilogue : BiasEpilogue {
    MaskWords<T> mask;

    // A NaN passes: a broken step must show in the loss, not vanish in a ReLU.
    DEVICE uint32_t pack(int, int, int, float low, float high) const { return pack_bf16_relu(low, high); }
    DEVICE void stored(int stage, int j, int half, uint32_t pair) {
        const uint32_t bits = passed_bits(pair, j, half);
        mask[stage] = j + half == 0 ? bits : mask[stage] + bits;
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

template <class T>
DEVICE void conv_forward_relu(const WgmmaForwardParams& p, WgmmaShared<T>& shared, uint32_t kernel) {
    prefetch_output_maps(p.plan, &p.output, p.residual, p.has_residual != 0);
    Stager<T> stager(p.residual, p.plan, shared, kernel);
    ReluEpilogue<T> epilogue;
    convolve<T, Direction::Forward>(
        p.operands, p.plan, shared, kernel,
        [&](const Work& work, uint32_t consumer) {
            const GroupTile tile = group_tile<T>(p.plan, work, consumer);
            epilogue.load(p, tile);
            if (p.has_residual) stager.begin(tile);
        },
        [&](const Work& work, uint32_t consumer) {
            if (p.has_residual) stager.prepare(group_tile<T>(p.plan, work, consumer));
        },
        [&](const Work& work, uint32_t consumer, const FinishedSums<T>& sums) {
            const GroupTile tile = group_tile<T>(p.plan, work, consumer);
            stager.finish_all(p.output, tile, p.has_residual != 0, sums, epilogue);
            store_mask<T>(p, tile, epilogue.mask);
        });
}

template <class T>
DEVICE void conv_forward_bias(const WgmmaForwardParams& p, WgmmaShared<T>& shared, uint32_t kernel) {
    prefetch_output_maps(p.plan, &p.output, p.residual, p.has_residual != 0);
    Stager<T> stager(p.residual, p.plan, shared, kernel);
    BiasEpilogue epilogue;
    convolve<T, Direction::Forward>(
        p.operands, p.plan, shared, kernel,
        [&](const Work& work, uint32_t consumer) { epilogue.load(p, group_tile<T>(p.plan, work, consumer)); }, nothing_to_do,
        [&](const Work& work, uint32_t consumer, const FinishedSums<T>& sums) {
            stager.template finish_all<false>(p.output, group_tile<T>(p.plan, work, consumer), sums, epilogue);
        });
}

/// The sum of what the four threads have that share a channel.
DEVICE float sum_over_pixels(float part) {
    part += shfl_xor(part, 1);
    return part + shfl_xor(part, 2);
}

/// Bit j: pixel 8 j + 2 (lane % 4) of each sub-tile exists, and so does its neighbour of the same row. Rows of planes have all
/// images of a group, and sub-tiles are whole rows.
template <class T>
DEVICE uint32_t existing_pixels(const WgmmaPlan& plan, const GroupTile& tile) {
    uint32_t exist = 0;
#pragma unroll 1
    for (uint32_t j = 0; j < 8; ++j) {
        exist |= uint32_t(T::Pixels::pixel(plan, tile, 8 * j + lane_index() % 4 * 2).valid) << j;
    }
    return exist;
}

/// The rounded outputs of a thread, two of a channel a word: [j][half].
template <class T>
using RoundedSums = uint32_t[T::FINISHED_PIXELS / 8][2];

/// Keeps the rounded outputs, and adds them up for each channel. Pixels that do not exist have sums of zero: they add nothing.
template <class T>
struct StatisticsEpilogue : Epilogue {
    RoundedSums<T> rounded;
    float totals[2] = {};

    DEVICE void stored(int stage, int j, int half, uint32_t pair) {
        uint32_t& word = rounded[8 * stage + j][half] = pair;
        totals[half] += low_float(pair) + high_float(pair);
        // In registers for 64 words, not for 128 floats.
        keep_in_register(totals[half]);
        keep_in_register(word);
    }
};

/// Sums of squared differences from the means of the rounded outputs of the thread's channels, over the pixels that `exist`.
template <class T>
DEVICE void square_differences(const RoundedSums<T>& rounded, const float (&means)[2], uint32_t exist, float (&squares)[2]) {
#pragma unroll
    for (int j = 0; j < T::FINISHED_PIXELS / 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float low = low_float(rounded[j][half]) - means[half], high = high_float(rounded[j][half]) - means[half];
            if ((exist >> (j % 8) & 1) != 0) squares[half] = fmaf(high, high, fmaf(low, low, squares[half]));
        }
    }
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
            StatisticsEpilogue<T> epilogue;
            stager.template finish_all<false>(p.output, tile, sums, epilogue);
            const uint32_t pixels = p.plan.batch << (2 * p.plan.log2_side), first = tile.group * GROUP_PIXELS;
            // A tile of two groups may have none of the second.
            const uint32_t left = first < pixels ? pixels - first : 0, count = left < GROUP_PIXELS ? left : GROUP_PIXELS;
            // The halves of a group have the same images.
            const uint32_t own_count = count / T::PARTS;
            const bool whole = count == GROUP_PIXELS;
            const float share = whole ? 1.0f / float(T::FINISHED_PIXELS) : count == 0 ? 0.0f : 1.0f / float(own_count);
            const uint32_t exist = whole ? 0xFF : existing_pixels<T>(p.plan, tile);
            const float means[2] = {sum_over_pixels(epilogue.totals[0]) * share, sum_over_pixels(epilogue.totals[1]) * share};
            float squares[2] = {};
            square_differences<T>(epilogue.rounded, means, exist, squares);
            Moments own[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                own[half] = {float(own_count), means[half], sum_over_pixels(squares[half])};
                if (T::PARTS == 1 && count > 0) store_statistics(p, tile, half, own[half]);
                if constexpr (T::PARTS == 2) {
                    if (block_part<T>() == 1 && lane_index() % 4 == 0) {
                        send_statistics(shared.exchange, tile_channel(half), own[half].mean, own[half].squares);
                    }
                }
            }
            if constexpr (T::PARTS == 2) {
                if (block_part<T>() == 1) return;
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
