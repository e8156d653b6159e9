// Tensor-core products and their fragment loads: mma.sync m16n8k16 (bf16 x bf16 + f32) and ldmatrix, sm_80 and later.
//
// Fragments, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k16"); pairs lie low half first:
//   A, 16 x 16, row-major:  a[0] = (g, 2t..), a[1] = (g + 8, 2t..), a[2] = (g, 2t + 8..), a[3] = (g + 8, 2t + 8..)
//   B, 16 x 8 (k x n):      b[0] = (2t.., g), b[1] = (2t + 8.., g)
//   C, 16 x 8:              c[0], c[1] = (g, 2t..), c[2], c[3] = (g + 8, 2t..)
// On the host a whole warp tile is one rendezvous, so the cost of 32 fiber switches is spread over all its products.
#pragma once

#include "portable/kernel.h"

namespace secateur {

#ifndef __CUDACC__
namespace host {

/// What a lane brings to a warp tile.
struct MmaLane {
    float* acc;
    const uint32_t* a;
    const uint32_t* b;
};
/// The product of a warp tile, `lanes` being 32 MmaLane*; host/mma.cpp.
void mma_warp_tile(int row_tiles, int column_tiles, void* const* lanes);

template <int MT, int NT>
struct Mma {
    static void work(void* const* lanes) { mma_warp_tile(MT, NT, lanes); }
    static constexpr Collective collective{"mma_bf16", work};
};

/// What a lane brings to ldmatrix.
struct LdmatrixLane {
    uint32_t* registers;
    const void* const* rows;
};
void ldmatrix(int count, bool transposed, void* const* lanes);

template <int COUNT, bool TRANSPOSED>
struct Ldmatrix {
    static void work(void* const* lanes) { ldmatrix(COUNT, TRANSPOSED, lanes); }
    static constexpr Collective collective{"ldmatrix_x4", work};
};

}  // namespace host
#else

/// The address of an object in shared memory, as PTX wants it.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

#endif

/// Loads COUNT groups of four 8x8 bf16 matrices from shared memory: lane l passes in `row[i]` the address of row l % 8 of
/// matrix l / 8, 16 bytes, 16-byte aligned. Register j of a lane is of matrix j: elements (g, 2t) and (g, 2t + 1); where
/// TRANSPOSED, (2t, g) and (2t + 1, g).
template <int COUNT, bool TRANSPOSED = false>
DEVICE void ldmatrix_x4(uint32_t (&registers)[COUNT][4], const void* const (&row)[COUNT]) {
#ifdef __CUDACC__
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        if constexpr (TRANSPOSED) {
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(registers[i][0]), "=r"(registers[i][1]), "=r"(registers[i][2]), "=r"(registers[i][3])
                         : "r"(shared_address(row[i]))
                         : "memory");
        } else {
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(registers[i][0]), "=r"(registers[i][1]), "=r"(registers[i][2]), "=r"(registers[i][3])
                         : "r"(shared_address(row[i]))
                         : "memory");
        }
    }
#else
    host::LdmatrixLane lane{&registers[0][0], row};
    host::meet(host::Ldmatrix<COUNT, TRANSPOSED>::collective, &lane);
#endif
}

/// acc[i][j] += a[i] * b[j] for a warp tile of MT x NT products of 16 x 8 x 16.
template <int MT, int NT>
DEVICE void mma_bf16(float (&acc)[MT][NT][4], const uint32_t (&a)[MT][4], const uint32_t (&b)[NT][2]) {
#ifdef __CUDACC__
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
        for (int j = 0; j < NT; ++j) {
            asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                "{%0, %1, %2, %3};"
                : "+f"(acc[i][j][0]), "+f"(acc[i][j][1]), "+f"(acc[i][j][2]), "+f"(acc[i][j][3])
                : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
        }
    }
#else
    host::MmaLane lane{&acc[0][0][0], &a[0][0], &b[0][0]};
    host::meet(host::Mma<MT, NT>::collective, &lane);
#endif
}

}  // namespace secateur
