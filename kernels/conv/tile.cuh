// The GEMM of one block: tiles in shared memory, the cp.async pipeline, and the products of a warp.
//
// A block computes a ROWS x COLUMNS tile of C = A B. Slabs of DEPTH of the reduction pass through STAGES buffers:
// while one is multiplied the next ones are under way, with one barrier a slab. An operand lies in shared memory
// either with the reduction contiguous (loaded by plain ldmatrix) or across the rows (loaded by transposed ldmatrix),
// whichever way it is contiguous in device memory. Chunks of 16 bytes are XOR-swizzled so that the eight rows of an
// 8x8 matrix lie in different banks. Loaders: operands.cuh; what follows the loop: epilogue.cuh.
#pragma once

#include "portable/portable.h"

namespace secateur {

constexpr int CHUNK = 8;  // bf16 elements in 16 bytes

/// Shape of a block's tile and of its warps.
template <int ROWS_, int COLUMNS_, int DEPTH_, int WARP_ROWS_, int WARP_COLUMNS_, int STAGES_>
struct Tile {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, DEPTH = DEPTH_, STAGES = STAGES_;
    static constexpr int WARP_ROWS = WARP_ROWS_, WARP_COLUMNS = WARP_COLUMNS_;
    static constexpr int THREADS = 32 * WARP_ROWS * WARP_COLUMNS;
    /// Products of 16 x 8 x 16 a warp: down and across.
    static constexpr int MT = ROWS / WARP_ROWS / 16, NT = COLUMNS / WARP_COLUMNS / 8;

    static_assert(ROWS == WARP_ROWS * MT * 16 && COLUMNS == WARP_COLUMNS * NT * 8, "the warps cover the tile");
    static_assert(NT % 2 == 0, "ldmatrix brings two column tiles at a time");
    static_assert(DEPTH % 16 == 0 && (STAGES & (STAGES - 1)) == 0, "whole products; a power of two of stages");
};

/// A slab of an operand: ROWS x COLUMNS bf16, row by row, its chunks swizzled.
template <int ROWS_, int COLUMNS_>
struct Slab {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, CHUNKS = COLUMNS / CHUNK;
    static_assert(CHUNKS % 8 == 0 || CHUNKS == 4 || CHUNKS == 2, "rows fill 128 bytes, alone or together");

    Bf16 element[ROWS * COLUMNS];

    DEVICE Bf16* chunk(uint32_t row, uint32_t chunk) {
        const uint32_t flip = CHUNKS % 8 == 0 ? row & 7 : (row / (8 / CHUNKS)) & (CHUNKS - 1);
        return element + row * COLUMNS + (chunk ^ flip) * CHUNK;
    }
};

/// How an operand lies in shared memory.
enum class Contiguous { Reduction, Outside };

template <class T, Contiguous A, Contiguous B>
struct Operands {
    static constexpr bool A_TRANSPOSED = A == Contiguous::Outside, B_TRANSPOSED = B == Contiguous::Outside;
    using SlabA = Slab<A_TRANSPOSED ? T::DEPTH : T::ROWS, A_TRANSPOSED ? T::ROWS : T::DEPTH>;
    using SlabB = Slab<B_TRANSPOSED ? T::DEPTH : T::COLUMNS, B_TRANSPOSED ? T::COLUMNS : T::DEPTH>;

    SlabA a[T::STAGES];
    SlabB b[T::STAGES];
};

/// The sums of a thread: fragments of the warp's MT x NT products.
template <class T>
struct Sums {
    float value[T::MT][T::NT][4];
};

/// First row and column of the warp in the block's tile.
template <class T>
DEVICE uint32_t warp_row() {
    return warp_index() / T::WARP_COLUMNS * (T::MT * 16);
}
template <class T>
DEVICE uint32_t warp_column() {
    return warp_index() % T::WARP_COLUMNS * (T::NT * 8);
}

/// Adds the product of one slab.
template <class T, class O>
DEVICE void multiply_slab(typename O::SlabA& a, typename O::SlabB& b, uint32_t first_row, uint32_t first_column,
                          Sums<T>& sums) {
    const uint32_t lane = lane_index();
    // The row of a matrix that this lane addresses: matrices 0, 1 one below the other, or 0, 2.
    const uint32_t below = lane & 15, beside = lane >> 4;
    const uint32_t below_2 = (lane & 7) + ((lane >> 4) << 3), beside_2 = (lane >> 3) & 1;

#pragma unroll
    for (int k = 0; k < T::DEPTH / 16; ++k) {
        const void* rows_a[T::MT];
#pragma unroll
        for (int i = 0; i < T::MT; ++i) {
            const uint32_t first = first_row + 16 * i;
            rows_a[i] = O::A_TRANSPOSED ? a.chunk(16 * k + below_2, first / CHUNK + beside_2)
                                        : a.chunk(first + below, 2 * k + beside);
        }
        const void* rows_b[T::NT / 2];
#pragma unroll
        for (int j = 0; j < T::NT / 2; ++j) {
            const uint32_t first = first_column + 16 * j;
            rows_b[j] = O::B_TRANSPOSED ? b.chunk(16 * k + below, first / CHUNK + beside)
                                        : b.chunk(first + below_2, 2 * k + beside_2);
        }

        uint32_t fragments_a[T::MT][4], pairs_b[T::NT / 2][4], fragments_b[T::NT][2];
        ldmatrix_x4<T::MT, O::A_TRANSPOSED>(fragments_a, rows_a);
        ldmatrix_x4<T::NT / 2, O::B_TRANSPOSED>(pairs_b, rows_b);
#pragma unroll
        for (int j = 0; j < T::NT; ++j) {
            fragments_b[j][0] = pairs_b[j / 2][j % 2 * 2];
            fragments_b[j][1] = pairs_b[j / 2][j % 2 * 2 + 1];
        }
        mma_bf16<T::MT, T::NT>(sums.value, fragments_a, fragments_b);
    }
}

/// sums = A B over `slabs` slabs. `load(slab, a, b)` issues the copies of one slab into its buffers. On return all copies are
/// done and no thread reads the operands any more: their memory is free.
template <class T, class O, class Load>
DEVICE void multiply(O& operands, uint32_t slabs, const Load& load, Sums<T>& sums) {
    const uint32_t first_row = warp_row<T>(), first_column = warp_column<T>();
#pragma unroll
    for (int i = 0; i < T::MT; ++i) {
#pragma unroll
        for (int j = 0; j < T::NT; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) sums.value[i][j][e] = 0.0f;
        }
    }

#pragma unroll 1
    for (uint32_t slab = 0; slab < T::STAGES - 1; ++slab) {
        if (slab < slabs) load(slab, operands.a[slab], operands.b[slab]);
        cp_async_commit();
    }
#pragma unroll 1
    for (uint32_t slab = 0; slab < slabs; ++slab) {
        // This slab has arrived for every thread, and every thread has left the buffer of the slab before.
        cp_async_wait<T::STAGES - 2>();
        syncthreads();
        const uint32_t ahead = slab + T::STAGES - 1;
        if (ahead < slabs) load(ahead, operands.a[ahead % T::STAGES], operands.b[ahead % T::STAGES]);
        cp_async_commit();
        multiply_slab<T, O>(operands.a[slab % T::STAGES], operands.b[slab % T::STAGES], first_row, first_column, sums);
    }
    cp_async_wait<0>();
    syncthreads();
}

}  // namespace secateur
