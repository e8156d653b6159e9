// What follows the products of a warpgroup: 64 channels of 256 pixels leave the registers in four sub-tiles of 64 pixels, or
// those of 128 pixels in two where two blocks share a tile.
//
// A thread holds two channels of many pixels; memory wants eight channels of one pixel. Transposed stmatrix turns one into the
// other on the way to a staging buffer of 64 pixels x 128 bytes, swizzled as TMA reads it, and TMA stores
// the buffer (it clips what lies outside the tensor). Two buffers a warpgroup: one is filled while the other is stored. A
// residual comes the same way back: loaded into the buffer, read by transposed ldmatrix, added in f32.
#pragma once

#include "conv/wgmma/mask.cuh"
#include "conv/wgmma/pipeline.cuh"

namespace secateur {

/// The sums that a consumer finishes.
template <class T>
using FinishedSums = float[T::FINISHED_PIXELS / 2];

template <class T>
DEVICE GroupTile group_tile(const WgmmaPlan& plan, const Work& work, uint32_t consumer) {
    const uint32_t part = T::RESIDENT ? 0 : consumer;
    const uint32_t group = work.pixel_tile * T::PIXEL_GROUPS + part / T::CHANNEL_GROUPS;
    return {group, (work.channel_tile * T::CHANNEL_GROUPS + part % T::CHANNEL_GROUPS) * GROUP_CHANNELS,
            block_part<T>() * T::FINISHED_PIXELS, pixel_group(plan, group)};
}

/// Sixteen bytes, eight channels, of a staged pixel.
DEVICE uint8_t* staged_chunk(uint8_t* staged, uint32_t pixel, uint32_t chunk) {
    return staged + pixel * PIXEL_BYTES + ((chunk ^ (pixel & 7)) << 4);
}

/// The rows that this lane names to stmatrix and ldmatrix: matrices are (pixels 8 j .., channels 16 warp + 8 half ..), four
/// times two j with both halves.
struct StageRows {
    void* row[4];
};
DEVICE StageRows stage_rows(uint8_t* staged) {
    const uint32_t lane = lane_index(), matrix = lane / 8, warp = warp_index() % 4;
    StageRows rows;
#pragma unroll
    for (uint32_t pair = 0; pair < 4; ++pair) {
        const uint32_t pixel = (2 * pair + matrix / 2) * 8 + lane % 8;
        rows.row[pair] = staged_chunk(staged, pixel, 2 * warp + matrix % 2);
    }
    return rows;
}

/// The registers of a sub-tile as stmatrix takes them: [pair of j][2 (j % 2) + half], two pixels a word.
struct StageWords {
    uint32_t word[4][4];
};

/// Channel of the tile of this thread's sums: the lower one, or the upper.
DEVICE uint32_t tile_channel(int half) { return 16 * (warp_index() % 4) + lane_index() / 4 + 8 * uint32_t(half); }
/// The lower one in the tensor.
DEVICE uint32_t own_channel(const GroupTile& tile) { return tile.channel + tile_channel(0); }

/// The barrier of one consumer warpgroup.
DEVICE void group_barrier(uint32_t consumer) { named_barrier_sync(1 + consumer, 128); }

/// Fetches the maps that the consumers use ahead of their first use.
DEVICE void prefetch_output_maps(const WgmmaPlan& plan, const TensorMap* outputs, const TensorMap& residual, bool has_residual) {
    if (plan.prefetched == 0 || threadIdx.x != 64) return;
    prefetch_maps(outputs, plan.phase_count);
    if (has_residual) prefetch_tensor_map(residual);
}

/// What becomes of the sums: as they are. Others have members of the same names in their place. `half` tells the thread's lower
/// channel (0) from its upper one; pairs are pixels 8 j + 2 (lane % 4) of a sub-tile and the next.
struct Epilogue {
    /// A sum before the residual.
    DEVICE float value(float sum, int) const { return sum; }
    /// The word that is stored of a pair.
    DEVICE uint32_t pack(int, int, int, float low, float high) const { return pack_bf16(low, high); }
    /// Is told that word when the sub-tile is on its way.
    DEVICE void stored(int, int, int, uint32_t) {}
};

/// A warpgroup's way through its staging buffers.
template <class T>
struct Stager {
    const TensorMap& residual;
    const WgmmaPlan& plan;
    WgmmaShared<T>& shared;
    const uint32_t kernel;
    uint32_t consumer;
    bool leader;  // the thread that issues TMA
    uint32_t residual_parity = 0;  // of this work, where each buffer takes one residual; two leave it as it is
    StageWords held[2];            // the residual of the first two sub-tiles of four

    DEVICE Stager(const TensorMap& residual, const WgmmaPlan& plan, WgmmaShared<T>& shared, uint32_t kernel)
        : residual(residual), plan(plan), shared(shared), kernel(kernel), consumer(shfl(threadIdx.x / 128, 0) - 1),
          leader(threadIdx.x % 128 == 0) {}

    DEVICE void load_residual(const GroupTile& tile, uint32_t stage) {
        Mbarrier& full = shared.residual_full[consumer][stage % 2];
        mbarrier_expect_bytes(full, STAGE_BYTES);
        tma_load<4>(shared.staged[consumer][stage % 2], residual, full, T::Pixels::box(plan, tile, stage).at);
    }

    /// While the first products of a work are under way: asks for the residual of its first two sub-tiles. Nobody reads the buffers
    /// any more: a fence and a barrier have followed the last reads.
    DEVICE void begin(const GroupTile& tile) {
        if (leader) {
            tma_store_wait_read<0>();
            load_residual(tile, 0);
            load_residual(tile, 1);
        }
    }

    /// While the last are: where there are four sub-tiles, takes that residual into registers and asks for that of the others, which
    /// are then finished first, in the buffers that hold it.
    DEVICE void prepare(const GroupTile& tile) {
        if constexpr (STAGES<T> == 4) {
#pragma unroll
            for (uint32_t stage = 0; stage < 2; ++stage) read_residual(stage, 0, held[stage]);
            fence_async_proxy(shared.staged[consumer], sizeof shared.staged[consumer]);
            group_barrier(consumer);
            if (leader) {
                load_residual(tile, 2);
                load_residual(tile, 3);
            }
        }
    }

    DEVICE void read_residual(uint32_t stage, uint32_t parity, StageWords& words) {
        const StageRows rows = stage_rows(shared.staged[consumer][stage % 2]);
        mbarrier_wait(shared.residual_full[consumer][stage % 2], parity, {kernel, "residual_full"});
        ldmatrix_x4<4, true>(words.word, {rows.row[0], rows.row[1], rows.row[2], rows.row[3]});
    }

    /// Adds the residual to sub-tile STAGE, and stores it.
    template <int STAGE, bool RESIDUAL, class E>
    DEVICE void finish(const TensorMap& output, const GroupTile& tile, const FinishedSums<T>& sums, E& epilogue) {
        uint8_t* const staged = shared.staged[consumer][STAGE % 2];
        constexpr bool HELD = RESIDUAL && STAGES<T> == 4 && STAGE < 2;
        constexpr bool IN_PLACE = RESIDUAL && !HELD;
        StageWords more;
        if constexpr (HELD) more = held[STAGE];
        if constexpr (IN_PLACE) read_residual(STAGE, STAGES<T> == 4 ? 1 : residual_parity, more);
        StageWords words;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int at = 4 * (8 * STAGE + j) + 2 * half, word = 2 * (j % 2) + half;
                float low = epilogue.value(sums[at], half), high = epilogue.value(sums[at + 1], half);
                if constexpr (RESIDUAL) {
                    low += low_float(more.word[j / 2][word]);
                    high += high_float(more.word[j / 2][word]);
                }
                words.word[j / 2][word] = epilogue.pack(STAGE, j, half, low, high);
            }
        }
        // A buffer is free when the store before the newest has read it; without a residual both are at the first sub-tile.
        if constexpr (!IN_PLACE && (RESIDUAL || STAGE != 1)) {
            if (leader) tma_store_wait_read<STAGE == 0 && !RESIDUAL ? 0 : 1>();
            group_barrier(consumer);
        }
        const StageRows rows = stage_rows(staged);
        stmatrix_x4<4, true>(words.word, rows.row);
        fence_async_proxy(staged, STAGE_BYTES);
        group_barrier(consumer);
        if (leader) {
            tma_store<4>(output, staged, T::Pixels::box(plan, tile, STAGE).at);
            tma_store_commit();
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) epilogue.stored(STAGE, j, half, words.word[j / 2][2 * (j % 2) + half]);
        }
    }

    template <bool RESIDUAL, class E>
    DEVICE void finish_all(const TensorMap& output, const GroupTile& tile, const FinishedSums<T>& sums, E& epilogue) {
        if constexpr (RESIDUAL && STAGES<T> == 4) {
            finish<2, RESIDUAL>(output, tile, sums, epilogue);
            finish<3, RESIDUAL>(output, tile, sums, epilogue);
        }
        finish<0, RESIDUAL>(output, tile, sums, epilogue);
        finish<1, RESIDUAL>(output, tile, sums, epilogue);
        if constexpr (!RESIDUAL && STAGES<T> == 4) {
            finish<2, RESIDUAL>(output, tile, sums, epilogue);
            finish<3, RESIDUAL>(output, tile, sums, epilogue);
        }
        if constexpr (RESIDUAL && STAGES<T> == 2) residual_parity ^= 1;
    }

    /// All sub-tiles of a work, with the residual that `begin` has asked for where there is one.
    template <class E>
    DEVICE void finish_all(const TensorMap& output, const GroupTile& tile, bool has_residual, const FinishedSums<T>& sums,
                           E& epilogue) {
        if (has_residual) {
            finish_all<true>(output, tile, sums, epilogue);
        } else {
            finish_all<false>(output, tile, sums, epilogue);
        }
    }
};

}  // namespace secateur
