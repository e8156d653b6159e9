// Rows by index: a batch compacted to some of its samples, and back. Words are moved, not read: f32 and u32 alike.
//
//   gather:  to[i] = from[rows[i]]        scatter: to[rows[i]] = from[i], no row named twice
//
// A thread moves one word, or four where rows and addresses allow. A gathered row that is not there becomes NaN with an
// impossible label, so that the loss shows it; a scattered one goes nowhere.

#include "portable/portable.h"

namespace secateur {

struct RowsParams {
    Global<const uint32_t> from;
    Global<const uint32_t> rows;
    Global<uint32_t> to;
    uint32_t row_units;  // units (words, or four of them) a row
    uint32_t units;      // rows * row_units
    uint32_t limit;      // rows that the indexed side has
    uint32_t padding;
};

struct alignas(4) Word {
    uint32_t word[1];
};

template <class Unit, bool SCATTER>
DEVICE void move_rows(const RowsParams& p) {
    constexpr int64_t WORDS = sizeof(Unit) / 4;
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.units) return;
    const uint32_t row = p.rows[i / p.row_units];
    const int64_t near = int64_t(i) * WORDS;
    const int64_t far = (int64_t(row) * p.row_units + i % p.row_units) * WORDS;
    const bool known = row < p.limit;
    if constexpr (SCATTER) {
        if (known) store_vector(p.to, far, load_vector<Unit>(p.from, near));
    } else {
        Unit unit;
#pragma unroll
        for (int k = 0; k < WORDS; ++k) unit.word[k] = 0xFFFFFFFFu;
        if (known) unit = load_vector<Unit>(p.from, far);
        store_vector(p.to, near, unit);
    }
}

KERNEL(gather_rows, RowsParams, 256, NoShared) { move_rows<Word, false>(p); }
KERNEL(gather_rows_wide, RowsParams, 256, NoShared) { move_rows<Bytes16, false>(p); }
KERNEL(scatter_rows, RowsParams, 256, NoShared) { move_rows<Word, true>(p); }
KERNEL(scatter_rows_wide, RowsParams, 256, NoShared) { move_rows<Bytes16, true>(p); }

}  // namespace secateur
