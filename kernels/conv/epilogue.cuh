// What follows the products: the tile of sums is staged in shared memory, so that device memory sees 16-byte accesses.
//
// Fragments scatter a row over many lanes. They are written as f32 into shared memory, which the operands no longer
// need, and read back eight channels of one pixel a thread: one store of 16 bytes of bf16, one byte of mask.
#pragma once

#include "conv/tile.cuh"

namespace secateur {

/// A tile of sums in shared memory, its 16-byte chunks swizzled: the fragments of a half warp (four rows) and a row read by
/// a quarter warp both fall into different banks.
template <class T>
struct Staged {
    static constexpr int ROWS = T::ROWS, COLUMNS = T::COLUMNS;
    static constexpr uint32_t PAIRS = COLUMNS / 8 < 4 ? COLUMNS / 8 : 4;
    static constexpr uint32_t ROWS_A_LINE = COLUMNS < 32 ? 32 / COLUMNS : 1;

    float sum[ROWS * COLUMNS];

    DEVICE float* at(uint32_t row, uint32_t column) {
        const uint32_t chunk = column >> 2;
        const uint32_t flip = ((row / ROWS_A_LINE) & (PAIRS - 1)) << 1 ^ ((chunk >> 3) & 1);
        return sum + row * COLUMNS + (chunk ^ flip) * 4 + (column & 3);
    }
    DEVICE Float4 four(uint32_t row, uint32_t column) { return *reinterpret_cast<const Float4*>(at(row, column)); }

    /// Writes the block's sums, each through `convert`, and waits for all of them.
    template <class Convert>
    DEVICE void write(const Sums<T>& sums, const Convert& convert) {
        const uint32_t row = warp_row<T>() + lane_index() / 4, column = warp_column<T>() + lane_index() % 4 * 2;
#pragma unroll
        for (int i = 0; i < T::MT; ++i) {
#pragma unroll
            for (int j = 0; j < T::NT; ++j) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const Float2 pair{convert(sums.value[i][j][2 * half]), convert(sums.value[i][j][2 * half + 1])};
                    *reinterpret_cast<Float2*>(at(row + 16 * i + 8 * half, column + 8 * j)) = pair;
                }
            }
        }
        syncthreads();
    }
    DEVICE void write(const Sums<T>& sums) {
        write(sums, [](float sum) { return sum; });
    }
};

/// Shared memory of a block: the operands, then the staged sums in the same place.
template <class T, Contiguous A, Contiguous B>
struct ConvShared {
    using O = Operands<T, A, B>;
    union {
        O operands;
        struct {
            Staged<T> staged;
            float scratch[4 * T::THREADS];  // for sums over rows
        };
    };
};

/// Eight neighbouring channels of one pixel.
struct Eight {
    float value[8];
};

DEVICE Eight eight_floats(const Float4& low, const Float4& high) {
    Eight eight;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        eight.value[i] = low.value[i];
        eight.value[4 + i] = high.value[i];
    }
    return eight;
}
DEVICE Eight load_eight(Global<const float> from, int64_t index) {
    return eight_floats(load_vector<Float4>(from, index), load_vector<Float4>(from, index + 4));
}
DEVICE Eight unpack_eight(const Bytes16& words) {
    Eight eight;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        eight.value[2 * i] = low_float(words.word[i]);
        eight.value[2 * i + 1] = high_float(words.word[i]);
    }
    return eight;
}
DEVICE Bytes16 pack_eight(const Eight& eight) {
    Bytes16 words;
#pragma unroll
    for (int i = 0; i < 4; ++i) words.word[i] = pack_bf16(eight.value[2 * i], eight.value[2 * i + 1]);
    return words;
}
DEVICE void add(Eight& to, const Eight& other) {
#pragma unroll
    for (int i = 0; i < 8; ++i) to.value[i] += other.value[i];
}

/// First of the eight columns that this thread finishes, in every row it comes to.
template <class T>
DEVICE uint32_t own_column() {
    static_assert(T::THREADS % (T::COLUMNS / 8) == 0, "a thread keeps its columns from pass to pass");
    return threadIdx.x % (T::COLUMNS / 8) * 8;
}

/// For each of this thread's groups of eight channels in the tile's first `rows` rows: `extra = fetch(row)` reads what the
/// ending needs from device memory, then `visit(row, eight, extra)` finishes it. Fetches of several groups go out together, so
/// that their latencies overlap.
template <class T, class Fetch, class Visit>
DEVICE void for_each_eight(Staged<T>& staged, uint32_t rows, const Fetch& fetch, const Visit& visit) {
    constexpr uint32_t STEP = T::THREADS / (T::COLUMNS / 8);
    constexpr int PASSES = T::ROWS / STEP;
    constexpr int TOGETHER = PASSES < 4 ? PASSES : 4;
    static_assert(PASSES % TOGETHER == 0, "whole rounds");
    using Extra = decltype(fetch(0u));
    const uint32_t column = own_column<T>();

#pragma unroll 1
    for (int round = 0; round < PASSES / TOGETHER; ++round) {
        const uint32_t first = threadIdx.x / (T::COLUMNS / 8) + uint32_t(round * TOGETHER) * STEP;
        Extra extra[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            if (first + i * STEP < rows) extra[i] = fetch(first + i * STEP);
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            const uint32_t row = first + i * STEP;
            if (row < rows) visit(row, eight_floats(staged.four(row, column), staged.four(row, column + 4)), extra[i]);
        }
    }
}

/// An ending that reads nothing.
struct Nothing {};
DEVICE Nothing fetch_nothing(uint32_t) { return {}; }

/// Rows of a tile that exist: the last tile of a tensor may be cut short.
template <class T>
DEVICE uint32_t rows_of_tile(uint32_t rows, uint32_t first) {
    return rows - first < uint32_t(T::ROWS) ? rows - first : uint32_t(T::ROWS);
}

}  // namespace secateur
