// The mask of a ReLU on wgmma: a bit for each sum, made and applied in the registers of the thread that has it.
//
// A thread has one word a sub-tile. Bit 16 e + 8 half + j is that of its lower (half 0) or upper channel (1) and of pixel
// 8 j + 2 (lane % 4) + e. In memory (MaskOrder in src/cuda/launch/conv/mask.rs) the bits lie in one of two orders.
// Fragments: [group of 256 pixels][64 channels][thread of the warpgroup][sub-tile], whole groups, between a convolution and an
// input gradient of stride 1 whose tiles are the same. Plain, for all others: bit c % 8 of byte (pixel * channels + c) / 8. The
// eight lanes of one lane % 4 hold eight neighbouring channels in the same bit of their words, so a transposition of 8 x 8 bits,
// three shuffles, leads from one order to the other: a lane then has 16 channels of pixels 2 lane and 2 lane + 1.
#pragma once

#include "conv/wgmma/plan.cuh"
#include "portable/halves.h"

namespace secateur {

enum class MaskOrder : uint32_t { Plain, Fragments };

/// Sub-tiles that a consumer finishes.
template <class T>
constexpr int STAGES = T::FINISHED_PIXELS / int(STAGE_PIXELS);
template <class T>
using MaskWords = uint32_t[STAGES<T>];

/// The bits of a packed pair of outputs of a ReLU, in their places.
DEVICE uint32_t passed_bits(uint32_t pair, int j, int half) { return positive_halves(pair) << (8 * half + j); }

/// A packed pair without what did not pass.
template <int HALF>
DEVICE uint32_t masked_pair(uint32_t pair, uint32_t word, int j) {
    return pair & halves_of_signs<HALF, 2 + HALF>(word << (7 - j));
}

/// Bit i of each byte of lane 4 g + t becomes bit g of lane 4 i + t.
DEVICE uint32_t transposed(uint32_t word) {
#pragma unroll
    for (uint32_t distance = 4; distance > 0; distance /= 2) {
        const uint32_t low = distance == 4 ? 0x0F0F0F0Fu : distance == 2 ? 0x33333333u : 0x55555555u;
        const bool upper = (lane_index() / 4 & distance) != 0;
        const uint32_t kept = upper ? ~low : low, left = upper ? 32 - distance : distance;
        const uint32_t other = shfl_xor(word, 4 * distance);
        word = (word & kept) | ((other << left | other >> (32 - left)) & ~kept);
    }
    return word;
}

/// A thread's words of a tile in the order of fragments.
template <class T>
struct alignas(4 * STAGES<T>) MaskFragment {
    uint32_t word[STAGES<T>];
};
template <class T>
DEVICE int64_t mask_fragment_at(const GroupTile& tile, uint32_t log2_channels) {
    const uint32_t warpgroup = (tile.group << (log2_channels - 6)) + (tile.channel >> 6);
    return int64_t(warpgroup * 128 + threadIdx.x % 128) * (GROUP_PIXELS / STAGE_PIXELS) + tile.first / STAGE_PIXELS;
}

/// Where in a plain mask, in 16 channels, this lane's first pixel of a sub-tile lies, and whether it is there. The tensor's
/// pixels are those of the grid, or those of one parity of rows and columns where `log2_stride` is 1.
struct MaskPlace {
    int64_t at;
    bool valid;
};
template <class T>
DEVICE MaskPlace mask_place(const WgmmaPlan& plan, const GroupTile& tile, uint32_t stage, uint32_t log2_channels,
                            uint32_t log2_stride = 0, uint32_t row_parity = 0, uint32_t column_parity = 0) {
    const GridPixel pixel = T::Pixels::pixel(plan, tile, stage * STAGE_PIXELS + 2 * lane_index());
    const uint32_t log2_side = plan.log2_side + log2_stride;
    const uint32_t row = (pixel.row << log2_stride) + row_parity, column = (pixel.column << log2_stride) + column_parity;
    const uint32_t index = (((pixel.image << log2_side) + row) << log2_side) + column;
    return {int64_t((index << (log2_channels - 4)) + (tile.channel >> 4) + warp_index() % 4), pixel.valid};
}

}  // namespace secateur
