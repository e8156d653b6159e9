// Explicit rows: sums of rows, products with a vector, norms. f64, except the values under the norms.
//
//   subtract_rows: to = from - sum_s factors[s] row_s      sum_rows: to = sum_s row_s
//   row_products: products[i] = <row_i, vector>            row_norms: norms[i] = |row_i|
//
// All are bound by reading the rows once. A block of the sums takes 32 neighbouring columns (64 in the wide kernel, for rows
// on 16 bytes) and its sixteen warps every sixteenth row, so that a few thousand columns still keep a GPU busy; the warps'
// sums are added in the order of the warps. A block of the products takes a row, a warp of the norms likewise.

#include "portable/portable.h"

namespace secateur {

struct alignas(8) Double1 {
    double value[1];
};

constexpr uint32_t COLUMN_WARPS = 16;
/// Rows whose loads a thread has under way at once.
constexpr uint32_t AHEAD = 8;

struct CombineRowsParams {
    Global<const double> rows;     // count x len
    Global<const double> factors;  // count; not read by sum_rows
    Global<const double> from;     // len; not read by sum_rows
    Global<double> to;             // len; may be `from`
    uint32_t count;
    uint32_t len;
};

template <class V>
struct ColumnShared {
    V sums[COLUMN_WARPS][32];
};

template <class V, bool SUM>
DEVICE void combine_rows(const CombineRowsParams& p, ColumnShared<V>& shared) {
    constexpr int WIDTH = sizeof(V) / sizeof(double);
    const uint32_t column = (blockIdx.x * 32 + lane_index()) * WIDTH;
    V sum = {};
    const auto add = [&](double factor, const V& values) {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) sum.value[i] = fma(factor, values.value[i], sum.value[i]);
    };
    if (column < p.len) {
        const auto load = [&](uint32_t row) { return load_vector<V>(p.rows, int64_t(row) * p.len + column); };
        uint32_t row = warp_index();
#pragma unroll 1
        for (; row + (AHEAD - 1) * COLUMN_WARPS < p.count; row += AHEAD * COLUMN_WARPS) {
            V values[AHEAD];
            double factors[AHEAD];
#pragma unroll
            for (uint32_t k = 0; k < AHEAD; ++k) {
                values[k] = load(row + k * COLUMN_WARPS);
                factors[k] = SUM ? 1.0 : p.factors[row + k * COLUMN_WARPS];
            }
#pragma unroll
            for (uint32_t k = 0; k < AHEAD; ++k) add(factors[k], values[k]);
        }
        for (; row < p.count; row += COLUMN_WARPS) add(SUM ? 1.0 : p.factors[row], load(row));
    }
    shared.sums[warp_index()][lane_index()] = sum;
    syncthreads();
    if (warp_index() == 0 && column < p.len) {
#pragma unroll
        for (uint32_t warp = 1; warp < COLUMN_WARPS; ++warp) {
            const V other = shared.sums[warp][lane_index()];
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) sum.value[i] += other.value[i];
        }
        if (!SUM) {
            const V from = load_vector<V>(p.from, column);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) sum.value[i] = from.value[i] - sum.value[i];
        }
        store_vector(p.to, column, sum);
    }
}

KERNEL(subtract_rows, CombineRowsParams, COLUMN_WARPS * 32, ColumnShared<Double1>) {
    combine_rows<Double1, false>(p, shared);
}
KERNEL(subtract_rows_wide, CombineRowsParams, COLUMN_WARPS * 32, ColumnShared<Double2>) {
    combine_rows<Double2, false>(p, shared);
}
KERNEL(sum_rows, CombineRowsParams, COLUMN_WARPS * 32, ColumnShared<Double1>) {
    combine_rows<Double1, true>(p, shared);
}

constexpr uint32_t PRODUCT_THREADS = 256;

struct RowProductsParams {
    Global<const double> rows;    // rows x len
    Global<const double> vector;  // len
    Global<double> products;      // rows
    uint32_t len;
    uint32_t padding;
};

struct RowProductsShared {
    double scratch[PRODUCT_THREADS / 32];
};

template <class V>
DEVICE void row_products(const RowProductsParams& p, RowProductsShared& shared) {
    constexpr uint32_t WIDTH = sizeof(V) / sizeof(double);
    const int64_t row = int64_t(blockIdx.x) * p.len;
    constexpr uint32_t STEP = PRODUCT_THREADS * WIDTH;
    V sum = {};
    const auto add = [&](const V& values, const V& factors) {
#pragma unroll
        for (uint32_t k = 0; k < WIDTH; ++k) sum.value[k] = fma(values.value[k], factors.value[k], sum.value[k]);
    };
    uint32_t i = threadIdx.x * WIDTH;
#pragma unroll 1
    for (; i + (AHEAD - 1) * STEP < p.len; i += AHEAD * STEP) {
        V values[AHEAD], factors[AHEAD];
#pragma unroll
        for (uint32_t k = 0; k < AHEAD; ++k) {
            values[k] = load_vector<V>(p.rows, row + i + k * STEP);
            factors[k] = load_vector<V>(p.vector, i + k * STEP);
        }
#pragma unroll
        for (uint32_t k = 0; k < AHEAD; ++k) add(values[k], factors[k]);
    }
    for (; i < p.len; i += STEP) add(load_vector<V>(p.rows, row + i), load_vector<V>(p.vector, i));
    double own = sum.value[0];
    if (WIDTH == 2) own += sum.value[WIDTH - 1];
    const double total = block_sum<PRODUCT_THREADS>(own, shared.scratch);
    if (threadIdx.x == 0) p.products[blockIdx.x] = total;
}

KERNEL(row_products, RowProductsParams, PRODUCT_THREADS, RowProductsShared) { row_products<Double1>(p, shared); }
KERNEL(row_products_wide, RowProductsParams, PRODUCT_THREADS, RowProductsShared) { row_products<Double2>(p, shared); }

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
