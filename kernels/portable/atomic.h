// Integer atomics. There are none on floats: a sum of floats has a fixed order here.
#pragma once

#include "portable/global.h"

namespace secateur {

/// Adds to a word in device memory (blocks run at the same time on both sides); returns the value before.
DEVICE uint32_t atomic_add(Global<uint32_t> g, int64_t i, uint32_t value) {
#ifdef __CUDACC__
    return atomicAdd(g.pointer + i, value);
#else
    return __atomic_fetch_add(g.at<uint32_t>(i), value, __ATOMIC_RELAXED);
#endif
}

/// Raises a word in device memory to at least `value`; returns the value before.
DEVICE uint32_t atomic_max(Global<uint32_t> g, int64_t i, uint32_t value) {
#ifdef __CUDACC__
    return atomicMax(g.pointer + i, value);
#else
    uint32_t* word = g.at<uint32_t>(i);
    uint32_t before = __atomic_load_n(word, __ATOMIC_RELAXED);
    while (before < value &&
           !__atomic_compare_exchange_n(word, &before, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return before;
#endif
}

/// The same on a word in shared memory.
DEVICE uint32_t atomic_add(uint32_t& word, uint32_t value) {
#ifdef __CUDACC__
    return atomicAdd(&word, value);
#else
    const uint32_t before = word;
    word = before + value;
    return before;
#endif
}
DEVICE uint32_t atomic_max(uint32_t& word, uint32_t value) {
#ifdef __CUDACC__
    return atomicMax(&word, value);
#else
    const uint32_t before = word;
    word = before < value ? value : before;
    return before;
#endif
}

/// Makes this thread's writes to device memory visible to other blocks before what it writes next.
DEVICE void threadfence() {
#ifdef __CUDACC__
    __threadfence();
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

}  // namespace secateur
