// stmatrix: the mirror of ldmatrix_x4 (sm_90 and later). For files that say `// Targets: sm_90a`.
#pragma once

#include "portable/mma.h"

namespace secateur {

#ifndef __CUDACC__
namespace host {

/// What a lane brings to stmatrix.
struct StmatrixLane {
    const uint32_t* registers;
    void* const* rows;
};
/// In host/mma.cpp.
void stmatrix(int count, bool transposed, void* const* lanes);

template <int COUNT, bool TRANSPOSED>
struct Stmatrix {
    static void work(void* const* lanes) { stmatrix(COUNT, TRANSPOSED, lanes); }
    static constexpr Collective collective{"stmatrix_x4", work};
};

}  // namespace host
#endif

/// Stores COUNT groups of four 8x8 bf16 matrices to shared memory: lane l passes in `row[i]` the address of row l % 8 of matrix
/// l / 8, 16 bytes, 16-byte aligned. Register j of a lane is of matrix j, with g = lane / 4 and t = lane % 4: elements (g, 2t)
/// and (g, 2t + 1); where TRANSPOSED, (2t, g) and (2t + 1, g).
template <int COUNT, bool TRANSPOSED = false>
DEVICE void stmatrix_x4(const uint32_t (&registers)[COUNT][4], void* const (&row)[COUNT]) {
#ifdef __CUDACC__
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        if constexpr (TRANSPOSED) {
            asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                             shared_address(row[i])),
                         "r"(registers[i][0]), "r"(registers[i][1]), "r"(registers[i][2]), "r"(registers[i][3])
                         : "memory");
        } else {
            asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                             shared_address(row[i])),
                         "r"(registers[i][0]), "r"(registers[i][1]), "r"(registers[i][2]), "r"(registers[i][3])
                         : "memory");
        }
    }
#else
    host::StmatrixLane lane{&registers[0][0], row};
    host::meet(host::Stmatrix<COUNT, TRANSPOSED>::collective, &lane);
#endif
}

}  // namespace secateur
