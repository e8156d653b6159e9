// TMA: copies between device and shared memory by one thread, through tensor maps (cp.async.bulk). For files that say
// `// Targets: sm_90a`.
//
// A map is made on the Rust side (driver/tensor_map.rs) and is a member of the kernel's parameter struct. Coordinates name the
// first element of a box, innermost dimension first; what lies outside the tensor is read as zero and not written. The
// destination, 128-byte aligned, gets the dense box, innermost first, 16-byte chunks swizzled as the map says: bits 4 to 6 of
// an address ^= its bits 7 to 9 for 128 bytes. A load adds the bytes of its whole box to `full`.
#pragma once

#include "portable/global.h"
#include "portable/mbarrier.h"
#ifndef __CUDACC__
#include "host/tma.h"
#endif

namespace secateur {

/// A CUtensorMap on a GPU, the emulator's encoding on the host.
struct alignas(64) TensorMap {
    uint64_t word[16];
};

/// Fetches the map itself ahead of its first use.
DEVICE void prefetch_tensor_map(const TensorMap& map) {
#ifdef __CUDACC__
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#else
    host::prefetch_tensor_map(&map);
#endif
}

/// Loads the box at `at`.
template <int RANK>
DEVICE void tma_load(void* to, const TensorMap& map, Mbarrier& full, const int32_t (&at)[RANK]) {
    static_assert(RANK >= 2 && RANK <= 5, "tensors have 2 to 5 dimensions");
#ifdef __CUDACC__
#define SECATEUR_TMA_LOAD(rank, coordinates, ...)                                                                    \
    asm volatile("cp.async.bulk.tensor." #rank "d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "        \
                 "[%1, {" coordinates "}], [%2];" ::"r"(shared_address(to)),                                         \
                 "l"(&map), "r"(shared_address(&full)), __VA_ARGS__                                                  \
                 : "memory")
    if constexpr (RANK == 2) {
        SECATEUR_TMA_LOAD(2, "%3, %4", "r"(at[0]), "r"(at[1]));
    } else if constexpr (RANK == 3) {
        SECATEUR_TMA_LOAD(3, "%3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]));
    } else if constexpr (RANK == 4) {
        SECATEUR_TMA_LOAD(4, "%3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
    } else {
        SECATEUR_TMA_LOAD(5, "%3, %4, %5, %6, %7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]));
    }
#undef SECATEUR_TMA_LOAD
#else
    host::tma_load(to, &map, &full.state, RANK, at, 0);
#endif
}

/// Loads the box into every block of the cluster whose bit is set in `blocks`, at the same place in its shared memory, and
/// adds the bytes to the barrier at the same place there.
template <int RANK>
DEVICE void tma_load_multicast(void* to, const TensorMap& map, Mbarrier& full, const int32_t (&at)[RANK],
                               uint16_t blocks) {
    static_assert(RANK >= 2 && RANK <= 5, "tensors have 2 to 5 dimensions");
#ifdef __CUDACC__
#define SECATEUR_TMA_LOAD(rank, coordinates, ...)                                                                    \
    asm volatile("cp.async.bulk.tensor." #rank "d.shared::cluster.global.mbarrier::complete_tx::bytes"               \
                 ".multicast::cluster [%0], [%1, {" coordinates "}], [%2], %3;" ::"r"(shared_address(to)),           \
                 "l"(&map), "r"(shared_address(&full)), "h"(blocks), __VA_ARGS__                                     \
                 : "memory")
    if constexpr (RANK == 2) {
        SECATEUR_TMA_LOAD(2, "%4, %5", "r"(at[0]), "r"(at[1]));
    } else if constexpr (RANK == 3) {
        SECATEUR_TMA_LOAD(3, "%4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]));
    } else if constexpr (RANK == 4) {
        SECATEUR_TMA_LOAD(4, "%4, %5, %6, %7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
    } else {
        SECATEUR_TMA_LOAD(5, "%4, %5, %6, %7, %8", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]));
    }
#undef SECATEUR_TMA_LOAD
#else
    host::tma_load(to, &map, &full.state, RANK, at, blocks);
#endif
}

/// Loads one filter tap of the pixels from `at` (c, w, h, n) on, as the map's pixel box orders them: w, then h, then n. Each
/// pixel is read `offset_w` and `offset_h` further on.
DEVICE void tma_load_im2col(void* to, const TensorMap& map, Mbarrier& full, const int32_t (&at)[4], uint16_t offset_w,
                            uint16_t offset_h) {
#ifdef __CUDACC__
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&full)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "h"(offset_w),
        "h"(offset_h)
        : "memory");
#else
    host::tma_load_im2col(to, &map, &full.state, at, offset_w, offset_h);
#endif
}

/// Stores the box at `at` from shared memory; belongs to the group that this thread commits next.
template <int RANK>
DEVICE void tma_store(const TensorMap& map, const void* from, const int32_t (&at)[RANK]) {
    static_assert(RANK >= 2 && RANK <= 5, "tensors have 2 to 5 dimensions");
#ifdef __CUDACC__
#define SECATEUR_TMA_STORE(rank, coordinates, ...)                                                                   \
    asm volatile("cp.async.bulk.tensor." #rank "d.global.shared::cta.bulk_group [%0, {" coordinates "}], [%1];" ::"l"( \
                     &map),                                                                                          \
                 "r"(shared_address(from)), __VA_ARGS__                                                              \
                 : "memory")
    if constexpr (RANK == 2) {
        SECATEUR_TMA_STORE(2, "%2, %3", "r"(at[0]), "r"(at[1]));
    } else if constexpr (RANK == 3) {
        SECATEUR_TMA_STORE(3, "%2, %3, %4", "r"(at[0]), "r"(at[1]), "r"(at[2]));
    } else if constexpr (RANK == 4) {
        SECATEUR_TMA_STORE(4, "%2, %3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
    } else {
        SECATEUR_TMA_STORE(5, "%2, %3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]));
    }
#undef SECATEUR_TMA_STORE
#else
    host::tma_store(&map, from, RANK, at);
#endif
}

/// Closes the group of the stores that this thread issued since its last commit.
DEVICE void tma_store_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
    host::tma_store_commit();
#endif
}

/// Waits until all but the newest N groups of this thread have read their shared memory, which may be written again.
template <int N>
DEVICE void tma_store_wait_read() {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
#else
    host::tma_store_wait(N, true);
#endif
}

/// Waits until all but the newest N groups of this thread are written.
template <int N>
DEVICE void tma_store_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
#else
    host::tma_store_wait(N, false);
#endif
}

/// Copies `bytes` bytes from element `index` of `from` on, all multiples of 16; adds them to `full`.
template <class T>
DEVICE void bulk_load(void* to, Global<const T> from, int64_t index, uint32_t bytes, Mbarrier& full) {
#ifdef __CUDACC__
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(to)),
        "l"(from.pointer + index), "r"(bytes), "r"(shared_address(&full))
        : "memory");
#else
    host::bulk_load(to, (from + index).address, bytes, &full.state);
#endif
}

}  // namespace secateur
