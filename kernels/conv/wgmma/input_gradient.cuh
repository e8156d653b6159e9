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
    Global<const uint32_t> mask;    // of the input, or null
    uint32_t residual_phase;        // which phase has a residual; none: 4
    uint32_t log2_in_channels;
    uint32_t log2_stride;           // of the input pixels that a phase writes: 0, or 1
    uint32_t parities;              // bits 2 phase + 1 and 2 phase: parity of row and column
    MaskOrder mask_order;
    WgmmaPlan plan;
};

/// Asks for the mask of a tile; of a plain one for the bits of a lane's first pixels, all ones where there is none, and second ones.
template <class T>
DEVICE void load_mask(const WgmmaGradientParams& p, const GroupTile& tile, uint32_t phase, MaskWords<T>& words,
                      MaskWords<T>& second) {
    if (p.mask_order == MaskOrder::Fragments) {
        // A tile of two groups may have none of the second.
        if (tile.at.image >= p.plan.batch) return;
        const auto fragment = load_vector<MaskFragment<T>>(p.mask, mask_fragment_at<T>(tile, p.log2_in_channels));
#pragma unroll
        for (int stage = 0; stage < STAGES<T>; ++stage) words[stage] = fragment.word[stage];
        return;
    }
    const Global<const uint16_t> sixteen = p.mask.as<const uint16_t>();
    const uint32_t row_parity = p.parities >> (2 * phase + 1) & 1, column_parity = p.parities >> (2 * phase) & 1;
    const uint32_t next = 1u << (p.log2_in_channels - 4 + p.log2_stride);
#pragma unroll
    for (uint32_t stage = 0; stage < STAGES<T>; ++stage) {
        words[stage] = ~0u;
        if (!p.mask.present()) continue;
        const MaskPlace place =
            mask_place<T>(p.plan, tile, stage, p.log2_in_channels, p.log2_stride, row_parity, column_parity);
        if (place.valid) {
            words[stage] = sixteen[place.at];
            second[stage] = sixteen[place.at + next];
        }
    }
}

/// Passes on what the mask lets through.
template <class T>
struct MaskEpilogue : Epilogue {
    MaskWords<T> mask = {}, second = {};  // see load_mask

    DEVICE uint32_t pack(int stage, int j, int half, float low, float high) const {
        const uint32_t pair = pack_bf16(low, high);
        return half == 0 ? masked_pair<0>(pair, mask[stage], j) : masked_pair<1>(pair, mask[stage], j);
    }
};

template <class T>
DEVICE void conv_input_gradient(const WgmmaGradientParams& p, WgmmaShared<T>& shared, uint32_t kernel) {
    prefetch_output_maps(p.plan, p.output, p.residual, p.residual_phase < p.plan.phase_count);
    Stager<T> stager(p.residual, p.plan, shared, kernel);
    MaskEpilogue<T> epilogue;
    convolve<T, Direction::Gradient>(
        p.operands, p.plan, shared, kernel,
        [&](const Work& work, uint32_t consumer) {
            const GroupTile tile = group_tile<T>(p.plan, work, consumer);
            if (work.phase_index == p.residual_phase) stager.begin(tile);
            load_mask<T>(p, tile, work.phase_index, epilogue.mask, epilogue.second);
        },
        [&](const Work& work, uint32_t consumer) {
            if (work.phase_index == p.residual_phase) stager.prepare(group_tile<T>(p.plan, work, consumer));
        },
        [&](const Work& work, uint32_t consumer, const FinishedSums<T>& sums) {
            if (p.mask_order == MaskOrder::Plain && p.mask.present()) {
#pragma unroll
                for (int stage = 0; stage < STAGES<T>; ++stage) {
                    epilogue.mask[stage] = transposed(epilogue.mask[stage] | epilogue.second[stage] << 16);
                }
            }
            stager.finish_all(p.output[work.phase_index], group_tile<T>(p.plan, work, consumer),
                              work.phase_index == p.residual_phase, sums, epilogue);
        });
}

#define CONV_INPUT_GRADIENT_WGMMA(shape, T)                                                                    \
    KERNEL_EARLY(conv_input_gradient_wgmma_##shape, WgmmaGradientParams, T::THREADS, WgmmaShared<T>) {         \
        conv_input_gradient<T>(p, shared, kernel);                                                             \
    }

}  // namespace secateur
