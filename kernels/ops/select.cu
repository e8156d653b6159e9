// Ranking of per-sample values: the k largest by radix select, and all values at or above a threshold. Stable by position,
// written in ascending order of position; NaN is reported and never ranked.
//
// One block walks the values (50,000 losses are 200 KB: they stay in cache). Radix select finds the key of the k-th largest
// value four bits at a time: each thread counts its values by digit in registers, the block adds up. Then every thread owns
// a run of neighbouring positions, a scan over the runs gives each its place in the output, and equal values are taken from
// the lowest position on. Integers only: the result is exact and the same on every run.

#include "portable/portable.h"

namespace secateur {

constexpr uint32_t SELECT_THREADS = 512;
constexpr uint32_t NO_POSITION = 0xFFFFFFFFu;

struct SelectParams {
    Global<const float> values;
    Global<uint32_t> positions;
    Global<uint32_t> outcome;  // {how many were selected, position of the first NaN or 0xFFFFFFFF}
    uint32_t count;
    uint32_t k;       // top_k
    float threshold;  // at_least
};

struct SelectShared {
    union {
        uint32_t digits[16][SELECT_THREADS];
        uint32_t scan[2][SELECT_THREADS];
    };
    uint32_t totals[16];
};

/// Order-preserving: a < b as floats exactly if key(a) < key(b); both zeros are one.
DEVICE uint32_t order_key(float value) {
    const uint32_t bits = float_bits(value == 0.0f ? 0.0f : value);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/// Sum of the values of all threads before this one; `total` is the sum of all.
DEVICE uint32_t exclusive_scan(uint32_t value, uint32_t (&scan)[2][SELECT_THREADS], uint32_t& total) {
    const uint32_t t = threadIdx.x;
    int from = 0;
    scan[0][t] = value;
    syncthreads();
    for (uint32_t distance = 1; distance < SELECT_THREADS; distance *= 2) {
        scan[1 - from][t] = scan[from][t] + (t >= distance ? scan[from][t - distance] : 0);
        from = 1 - from;
        syncthreads();
    }
    const uint32_t inclusive = scan[from][t];
    total = scan[from][SELECT_THREADS - 1];
    syncthreads();
    return inclusive - value;
}

/// Position of the first NaN, or NO_POSITION.
DEVICE uint32_t first_nan(const SelectParams& p, SelectShared& shared) {
    uint32_t first = NO_POSITION;
    for (uint32_t i = threadIdx.x; i < p.count && first == NO_POSITION; i += SELECT_THREADS) {
        const float value = p.values[i];
        if (value != value) first = i;
    }
    shared.scan[0][threadIdx.x] = first;
    for (uint32_t half = SELECT_THREADS / 2; half > 0; half /= 2) {
        syncthreads();
        if (threadIdx.x < half) {
            const uint32_t other = shared.scan[0][threadIdx.x + half];
            if (other < shared.scan[0][threadIdx.x]) shared.scan[0][threadIdx.x] = other;
        }
    }
    syncthreads();
    first = shared.scan[0][0];
    syncthreads();
    return first;
}

/// Writes, in ascending order, the positions of all values with a key above `key`, and of the first `ties` equal to it.
DEVICE void compact(const SelectParams& p, SelectShared& shared, uint32_t key, uint32_t ties, uint32_t nan_position) {
    const uint32_t run = (p.count + SELECT_THREADS - 1) / SELECT_THREADS;
    const uint32_t start = threadIdx.x * run < p.count ? threadIdx.x * run : p.count;
    const uint32_t end = p.count - start < run ? p.count : start + run;
    uint32_t above = 0, equal = 0;
    for (uint32_t i = start; i < end; ++i) {
        const uint32_t own = order_key(p.values[i]);
        above += own > key;
        equal += own == key;
    }
    uint32_t all_above, all_equal;
    const uint32_t above_before = exclusive_scan(above, shared.scan, all_above);
    uint32_t equal_before = exclusive_scan(equal, shared.scan, all_equal);

    uint32_t to = above_before + (equal_before < ties ? equal_before : ties);
    for (uint32_t i = start; i < end; ++i) {
        const uint32_t own = order_key(p.values[i]);
        if (own > key || (own == key && equal_before < ties)) p.positions[to++] = i;
        if (own == key) ++equal_before;
    }
    if (threadIdx.x == 0) {
        p.outcome[0] = all_above + (all_equal < ties ? all_equal : ties);
        p.outcome[1] = nan_position;
    }
}

KERNEL(select_top_k, SelectParams, SELECT_THREADS, SelectShared) {
    const uint32_t nan_position = first_nan(p, shared);
    if (nan_position != NO_POSITION) {
        if (threadIdx.x == 0) {
            p.outcome[0] = 0;
            p.outcome[1] = nan_position;
        }
        return;
    }

    // `prefix` is what is known of the key of the k-th largest value, `rank` its rank among the values that share it.
    uint32_t prefix = 0, rank = p.k;
    for (int shift = 28; shift >= 0; shift -= 4) {
        uint32_t counts[16] = {};
        for (uint32_t i = threadIdx.x; i < p.count; i += SELECT_THREADS) {
            const uint32_t key = order_key(p.values[i]);
            const bool shares = shift == 28 || (key >> (shift + 4)) == (prefix >> (shift + 4));
            const uint32_t digit = shares ? (key >> shift) & 15 : 16;
#pragma unroll
            for (uint32_t d = 0; d < 16; ++d) counts[d] += digit == d;
        }
#pragma unroll
        for (uint32_t d = 0; d < 16; ++d) shared.digits[d][threadIdx.x] = counts[d];
        syncthreads();
        // A warp a digit.
        uint32_t sum = 0;
        for (uint32_t t = lane_index(); t < SELECT_THREADS; t += 32) sum += shared.digits[warp_index()][t];
        sum = warp_sum(sum);
        if (lane_index() == 0) shared.totals[warp_index()] = sum;
        syncthreads();

        uint32_t digit = 15;
        while (digit > 0 && shared.totals[digit] < rank) rank -= shared.totals[digit--];
        prefix |= digit << shift;
        syncthreads();
    }
    compact(p, shared, prefix, rank, NO_POSITION);
}

KERNEL(select_at_least, SelectParams, SELECT_THREADS, SelectShared) {
    const uint32_t nan_position = first_nan(p, shared);
    if (nan_position != NO_POSITION) {
        if (threadIdx.x == 0) {
            p.outcome[0] = 0;
            p.outcome[1] = nan_position;
        }
        return;
    }
    compact(p, shared, order_key(p.threshold), p.count, NO_POSITION);
}

}  // namespace secateur
