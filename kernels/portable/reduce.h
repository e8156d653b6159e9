// Reductions over a warp and over a block, in a fixed order: the same bits on every run.
#pragma once

#include "portable/warp.h"

namespace secateur {

/// The sum over the warp, in every lane: a butterfly, so that all lanes get the same bits.
DEVICE float warp_sum(float value) {
#pragma unroll
    for (uint32_t mask = 16; mask > 0; mask /= 2) value += shfl_xor(value, mask);
    return value;
}
DEVICE double warp_sum(double value) {
#pragma unroll
    for (uint32_t mask = 16; mask > 0; mask /= 2) value += shfl_xor(value, mask);
    return value;
}
DEVICE uint32_t warp_sum(uint32_t value) {
#pragma unroll
    for (uint32_t mask = 16; mask > 0; mask /= 2) value += shfl_xor(value, mask);
    return value;
}
/// The largest value of the warp, in every lane; NaN where any is NaN.
DEVICE float warp_max(float value) {
#pragma unroll
    for (uint32_t mask = 16; mask > 0; mask /= 2) {
        const float other = shfl_xor(value, mask);
        value = (other > value || other != other) ? other : value;
    }
    return value;
}

/// The sum over a block of `THREADS` threads, in every thread. `scratch` is THREADS / 32 elements of shared memory, free to
/// be used again as soon as the call returns.
template <int THREADS, class T>
DEVICE T block_sum(T value, T* scratch) {
    static_assert(THREADS % 32 == 0, "full warps only");
    value = warp_sum(value);
    if (lane_index() == 0) scratch[warp_index()] = value;
    syncthreads();
    T total = scratch[0];
#pragma unroll
    for (int warp = 1; warp < THREADS / 32; ++warp) total += scratch[warp];
    syncthreads();
    return total;
}

/// The largest value of a block, likewise; NaN where any is NaN.
template <int THREADS>
DEVICE float block_max(float value, float* scratch) {
    static_assert(THREADS % 32 == 0, "full warps only");
    value = warp_max(value);
    if (lane_index() == 0) scratch[warp_index()] = value;
    syncthreads();
    float largest = scratch[0];
#pragma unroll
    for (int warp = 1; warp < THREADS / 32; ++warp) {
        const float other = scratch[warp];
        largest = (other > largest || other != other) ? other : largest;
    }
    syncthreads();
    return largest;
}

}  // namespace secateur
