// mma, ldmatrix and stmatrix of a whole warp.
//
// Accumulators stay where the lanes have them: a lane's registers of one row of tiles, {c0, c1, c2, c3} for each n-tile, are
// one row of 4 * NT floats, and a product step adds {a, a, a', a'} x {b, b', b, b'} to it. So nothing is gathered or scattered
// but the two operands. Products, which are exact, are added in the order of k: the same bits on every CPU, whatever its vector
// width.

#include "portable/mma.h"

#include <string.h>

#include "host/emulator.h"
#include "host/vectors.h"
#include "portable/matrix_store.h"

namespace secateur::host {

namespace {

constexpr int max_tiles = 16;

__attribute__((always_inline)) inline float widen(uint32_t half) {
    const uint32_t bits = half << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/// Widened operands of a warp tile; kept out of the fiber's small stack.
struct Operands {
    // a[i][g][k]: {row g, row g, row g + 8, row g + 8} of row tile i.
    alignas(64) float a[max_tiles][8][16][4];
    // b[t][k]: {column 2t, 2t + 1, 2t, 2t + 1} of each column tile.
    alignas(64) float b[4][16][4 * max_tiles];
};

__thread Operands operands;

/// ROWS row tiles from `first` on, the columns of a `Vector` at a time: 1, 2 or 4 column tiles. LANES lanes that share their
/// columns go together: eight sums in flight hide the latency of an addition.
template <class Vector, int ROWS, int LANES>
__attribute__((always_inline)) inline void multiply_rows(int first, int column_tiles, void* const* lanes) {
    constexpr int tiles = sizeof(Vector) / 16;
    // A template argument loses the alignment of its typedef, and accumulators are aligned as floats are.
    typedef Vector Unaligned __attribute__((aligned(4), may_alias));
    for (int t = 0; t < 4; ++t) {
        for (int g = 0; g < 8; g += LANES) {
            float* acc[LANES];
#pragma GCC unroll 8
            for (int l = 0; l < LANES; ++l) {
                acc[l] = static_cast<MmaLane*>(lanes[4 * (g + l) + t])->acc + 4 * first * column_tiles;
            }
            for (int j = 0; j < column_tiles; j += tiles) {
                Vector sum[ROWS][LANES];
#pragma GCC unroll 4
                for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 8
                    for (int l = 0; l < LANES; ++l) {
                        sum[i][l] = *reinterpret_cast<Unaligned*>(acc[l] + 4 * (i * column_tiles + j));
                    }
                }
                for (int k = 0; k < 16; ++k) {
                    const Vector b = *reinterpret_cast<const Vector*>(&operands.b[t][k][4 * j]);
#pragma GCC unroll 4
                    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 8
                        for (int l = 0; l < LANES; ++l) {
                            add_product(sum[i][l], repeat<Vector>(operands.a[first + i][g + l][k]), b);
                        }
                    }
                }
#pragma GCC unroll 4
                for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 8
                    for (int l = 0; l < LANES; ++l) {
                        *reinterpret_cast<Unaligned*>(acc[l] + 4 * (i * column_tiles + j)) = sum[i][l];
                    }
                }
            }
        }
    }
}

template <class Vector>
__attribute__((always_inline)) inline void multiply(int row_tiles, int column_tiles, void* const* lanes) {
    int i = 0;
    for (; i + 4 <= row_tiles; i += 4) multiply_rows<Vector, 4, 2>(i, column_tiles, lanes);
    for (; i + 2 <= row_tiles; i += 2) multiply_rows<Vector, 2, 4>(i, column_tiles, lanes);
    for (; i < row_tiles; ++i) multiply_rows<Vector, 1, 8>(i, column_tiles, lanes);
}

__attribute__((always_inline)) inline void spread(int row_tiles, int column_tiles, void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        const auto* self = static_cast<const MmaLane*>(lanes[lane]);
        for (int i = 0; i < row_tiles; ++i) {
            for (int half = 0; half < 2; ++half) {
                const uint32_t top = self->a[4 * i + 2 * half], bottom = self->a[4 * i + 2 * half + 1];
                const int k = 8 * half + 2 * t;
                float* even = operands.a[i][g][k];
                float* odd = operands.a[i][g][k + 1];
                even[0] = even[1] = widen(top & 0xFFFF);
                even[2] = even[3] = widen(bottom & 0xFFFF);
                odd[0] = odd[1] = widen(top >> 16);
                odd[2] = odd[3] = widen(bottom >> 16);
            }
        }
        // This lane holds column g of each column tile, rows 2t, 2t + 1, 2t + 8, 2t + 9.
        for (int j = 0; j < column_tiles; ++j) {
            for (int half = 0; half < 2; ++half) {
                const uint32_t pair = self->b[2 * j + half];
                const int k = 8 * half + 2 * t;
                float* even = &operands.b[g / 2][k][4 * j + g % 2];
                float* odd = &operands.b[g / 2][k + 1][4 * j + g % 2];
                even[0] = even[2] = widen(pair & 0xFFFF);
                odd[0] = odd[2] = widen(pair >> 16);
            }
        }
    }
}

/// With vectors of at most `Widest`: wider ones than the target has would live in memory.
template <class Widest>
__attribute__((always_inline)) inline void multiply_tile(int row_tiles, int column_tiles, void* const* lanes) {
    spread(row_tiles, column_tiles, lanes);
    if (sizeof(Widest) >= sizeof(Hexadecet) && column_tiles % 4 == 0) {
        multiply<Hexadecet>(row_tiles, column_tiles, lanes);
    } else if (sizeof(Widest) >= sizeof(Octet) && column_tiles % 2 == 0) {
        multiply<Octet>(row_tiles, column_tiles, lanes);
    } else {
        multiply<Quad>(row_tiles, column_tiles, lanes);
    }
}

typedef void MultiplyTile(int, int, void* const*);

void multiply_tile_narrow(int row_tiles, int column_tiles, void* const* lanes) {
    multiply_tile<Quad>(row_tiles, column_tiles, lanes);
}

#if SECATEUR_HOST_X86
__attribute__((target("avx2,fma"))) void multiply_tile_avx2(int row_tiles, int column_tiles, void* const* lanes) {
    multiply_tile<Octet>(row_tiles, column_tiles, lanes);
}
__attribute__((target("avx512f"))) void multiply_tile_avx512(int row_tiles, int column_tiles, void* const* lanes) {
    multiply_tile<Hexadecet>(row_tiles, column_tiles, lanes);
}
#endif

/// The one for this CPU; all give the same bits.
MultiplyTile* chosen_multiply_tile() {
#if SECATEUR_HOST_X86
    if (__builtin_cpu_supports("avx512f")) return multiply_tile_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return multiply_tile_avx2;
#endif
    return multiply_tile_narrow;
}

void check_row(const char* what, const void* address, int lane) {
    if (!in_shared(address, 16)) fault("%s: the row of lane %d lies outside the block's shared memory", what, lane);
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
        fault("%s: the row of lane %d is not aligned to 16 bytes", what, lane);
    }
}

}  // namespace

void mma_warp_tile(int row_tiles, int column_tiles, void* const* lanes) {
    if (row_tiles > max_tiles || column_tiles > max_tiles) {
        fault("mma_bf16: a warp tile of %d x %d products, the emulator has room for %d x %d", row_tiles, column_tiles,
              max_tiles, max_tiles);
    }
    static MultiplyTile* const tile = chosen_multiply_tile();
    tile(row_tiles, column_tiles, lanes);
}

void ldmatrix(int count, bool transposed, void* const* lanes) {
    uint32_t* registers[32];
    const void* const* rows[32];
    for (int lane = 0; lane < 32; ++lane) {
        registers[lane] = static_cast<LdmatrixLane*>(lanes[lane])->registers;
        rows[lane] = static_cast<LdmatrixLane*>(lanes[lane])->rows;
    }
    for (int i = 0; i < count; ++i) {
        for (int lane = 0; lane < 32; ++lane) check_row("ldmatrix_x4", rows[lane][i], lane);
        for (int matrix = 0; matrix < 4; ++matrix) {
            const int slot = 4 * i + matrix;
            if (!transposed) {
                for (int g = 0; g < 8; ++g) {
                    const auto* row = static_cast<const uint32_t*>(rows[8 * matrix + g][i]);
                    for (int t = 0; t < 4; ++t) registers[4 * g + t][slot] = row[t];
                }
            } else {
                for (int t = 0; t < 4; ++t) {
                    const auto* even = static_cast<const uint16_t*>(rows[8 * matrix + 2 * t][i]);
                    const auto* odd = static_cast<const uint16_t*>(rows[8 * matrix + 2 * t + 1][i]);
                    for (int g = 0; g < 8; ++g) registers[4 * g + t][slot] = uint32_t(odd[g]) << 16 | even[g];
                }
            }
        }
    }
}

void stmatrix(int count, bool transposed, void* const* lanes) {
    const uint32_t* registers[32];
    void* const* rows[32];
    for (int lane = 0; lane < 32; ++lane) {
        registers[lane] = static_cast<StmatrixLane*>(lanes[lane])->registers;
        rows[lane] = static_cast<StmatrixLane*>(lanes[lane])->rows;
    }
    for (int i = 0; i < count; ++i) {
        for (int lane = 0; lane < 32; ++lane) check_row("stmatrix_x4", rows[lane][i], lane);
        for (int matrix = 0; matrix < 4; ++matrix) {
            const int slot = 4 * i + matrix;
            for (int g = 0; g < 8; ++g) {
                for (int t = 0; t < 4; ++t) {
                    const uint32_t pair = registers[4 * g + t][slot];
                    if (!transposed) {
                        static_cast<uint32_t*>(rows[8 * matrix + g][i])[t] = pair;
                    } else {
                        static_cast<uint16_t*>(rows[8 * matrix + 2 * t][i])[g] = uint16_t(pair);
                        static_cast<uint16_t*>(rows[8 * matrix + 2 * t + 1][i])[g] = uint16_t(pair >> 16);
                    }
                }
            }
        }
    }
}

}  // namespace secateur::host
