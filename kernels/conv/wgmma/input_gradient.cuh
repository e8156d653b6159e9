// Input gradient of a convolution on wgmma: the same operation as conv/input_gradient.cu, for channels that are multiples of 64.
//
// The weights are read as they lie, [output channel][tap][input channel]: their rows are now the reduction, so the M side of the
// product is MN-major. A stride of 2 makes four phases, one for each parity of input row and column, with 4, 2, 2 and 1 taps;
// each writes its own quarter of the pixels through a tensor map of twice the stride. Epilogue: dx = (sum + residual) * mask, both
// where given; the residual of a strided convolution is compact and belongs to phase (0, 0), the last.
#pragma once

#include "conv/wgmma/epilogue.cuh"

namespace secateur {

struct WgmmaGradientParams {
    WgmmaOperands operands;
    TensorMap output[4];            // of each phase
    TensorMap residual;
    Global<const uint32_t> mask;    // of the input: bit c % 32 of word (pixel * C + c) / 32; or null
    uint32_t residual_phase;        // which phase has a residual; none: 4
    uint32_t log2_in_channels;
    uint32_t log2_stride;           // of the input pixels that a phase writes: 0, or 1
    uint32_t parities;              // bits 2 phase + 1 and 2 phase: parity of row and column
    WgmmaPlan plan;
};

/// The mask bits of this thread's share of a sub-tile.
template <class T>
DEVICE uint32_t mask_bits(const WgmmaGradientParams& p, const GroupTile& tile, uint32_t phase, uint32_t stage) {
    const GridPixel pixel = T::Pixels::pixel(p.plan, tile, stage * STAGE_PIXELS + share_pixel());
    if (!pixel.valid || !p.mask.present()) return ~0u;
    const uint32_t row = (pixel.row << p.log2_stride) + (p.parities >> (2 * phase + 1) & 1);
    const uint32_t column = (pixel.column << p.log2_stride) + (p.parities >> (2 * phase) & 1);
    const uint32_t log2_side = p.plan.log2_side + p.log2_stride;
    const uint32_t index = (((pixel.image << log2_side) + row) << log2_side) + column;
    return p.mask[(index << (p.log2_in_channels - 5)) + (tile.channel >> 5) + share_half()];
}

/// Zeros the elements of a share whose bit is not set.
DEVICE void apply_mask(uint8_t* staged, uint32_t bits) {
#pragma unroll
    for (uint32_t chunk = 0; chunk < 4; ++chunk) {
        Bytes16& eight = share_chunk(staged, chunk);
        Bytes16 masked = eight;
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            if (!(bits >> (8 * chunk + 2 * i) & 1)) masked.word[i] &= 0xFFFF0000u;
            if (!(bits >> (8 * chunk + 2 * i + 1) & 1)) masked.word[i] &= 0x0000FFFFu;
        }
        eight = masked;
    }
}

template <class T>
DEVICE void conv_input_gradient(const WgmmaGradientParams& p, WgmmaShared<T>& shared, uint32_t kernel) {
    prefetch_output_maps(p.plan, p.output, p.residual, p.residual_phase < p.plan.phase_count);
    Stager<T> stager(p.residual, p.plan, shared, kernel);
    uint32_t bits[STAGES<T>] = {};
    convolve<T, Direction::Gradient>(
        p.operands, p.plan, shared, kernel,
        [&](const Work& work, uint32_t consumer) {
            const GroupTile tile = group_tile<T>(p.plan, work, consumer);
            if (work.phase_index == p.residual_phase) stager.begin(tile);
            // Asked for before the products, so that they are there after them.
#pragma unroll
            for (uint32_t stage = 0; stage < STAGES<T>; ++stage) bits[stage] = mask_bits<T>(p, tile, work.phase_index, stage);
        },
        [&](const Work& work, uint32_t consumer, const FinishedSums<T>& sums) {
            stager.template finish_all<true>(
                p.output[work.phase_index], group_tile<T>(p.plan, work, consumer),
                work.phase_index == p.residual_phase, sums, [](float sum, int, float residual) { return sum + residual; },
                [&](uint32_t stage, uint8_t* staged) { apply_mask(staged, bits[stage]); });
        });
}

#define CONV_INPUT_GRADIENT_WGMMA(shape, T)                                                                    \
    KERNEL_EARLY(conv_input_gradient_wgmma_##shape, WgmmaGradientParams, T::THREADS, WgmmaShared<T>) {         \
        conv_input_gradient<T>(p, shared, kernel);                                                             \
    }

}  // namespace secateur
