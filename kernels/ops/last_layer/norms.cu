// norms[i] = |row_i|, the squares added up in f64. A warp takes a row: it is bound by reading the rows once.

#include "portable/portable.h"

namespace secateur {

/// Loads that a thread has under way at once.
constexpr uint32_t AHEAD = 8;

struct RowNormsParams {
    Global<const float> values;  // rows x len
    Global<float> norms;         // rows
    uint32_t rows;
    uint32_t len;
};

struct alignas(4) Float1 {
    float value[1];
};

template <class V>
DEVICE void row_norms(const RowNormsParams& p) {
    constexpr uint32_t WIDTH = sizeof(V) / sizeof(float), STEP = 32 * WIDTH;
    const uint32_t row = blockIdx.x * 8 + warp_index();
    if (row >= p.rows) return;
    double squares = 0.0;
    const auto load = [&](uint32_t i) { return load_vector<V>(p.values, int64_t(row) * p.len + i); };
    const auto add = [&](const V& values) {
#pragma unroll
        for (uint32_t k = 0; k < WIDTH; ++k) squares = fma(double(values.value[k]), double(values.value[k]), squares);
    };
    uint32_t i = lane_index() * WIDTH;
#pragma unroll 1
    for (; i + (AHEAD - 1) * STEP < p.len; i += AHEAD * STEP) {
        V values[AHEAD];
#pragma unroll
        for (uint32_t k = 0; k < AHEAD; ++k) values[k] = load(i + k * STEP);
#pragma unroll
        for (uint32_t k = 0; k < AHEAD; ++k) add(values[k]);
    }
    for (; i < p.len; i += STEP) add(load(i));
    squares = warp_sum(squares);
    if (lane_index() == 0) p.norms[row] = float(sqrt(squares));
}

KERNEL(row_norms, RowNormsParams, 256, NoShared) { row_norms<Float1>(p); }
KERNEL(row_norms_wide, RowNormsParams, 256, NoShared) { row_norms<Float4>(p); }

}  // namespace secateur
