// Clusters: blocks that run together and reach each other's shared memory. For files that say `// Targets: sm_90a`.
//
// KERNEL_CLUSTER(symbol, Params, threads, blocks, Shared) declares a kernel whose grid is cut along x into clusters of `blocks`
// blocks; the grid's x must be a multiple. KERNEL_CLUSTER_EARLY is to it what KERNEL_EARLY is to KERNEL. On the host the blocks
// of a cluster share one scheduler.
//
// What one block stores in another's shared memory must find its barrier initialised (cluster_sync after mbarrier_init) and
// the other block still there: it may leave only when all has come that is on its way to it.
#pragma once

#include "portable/global.h"
#include "portable/kernel.h"
#include "portable/mbarrier.h"
#ifndef __CUDACC__
#include "host/cluster.h"
#endif

namespace secateur {

#ifdef __CUDACC__
#define KERNEL_CLUSTER(name, Params, threads, blocks, ...) \
    SECATEUR_KERNEL(name, Params, threads, 1, __cluster_dims__(blocks, 1, 1), start_in_order, __VA_ARGS__)
#define KERNEL_CLUSTER_EARLY(name, Params, threads, blocks, ...) \
    SECATEUR_KERNEL(name, Params, threads, 1, __cluster_dims__(blocks, 1, 1), start_early, __VA_ARGS__)
#else
#define KERNEL_CLUSTER(name, Params, threads, blocks, ...) \
    SECATEUR_KERNEL(name, Params, threads, blocks, start_in_order, __VA_ARGS__)
#define KERNEL_CLUSTER_EARLY(name, Params, threads, blocks, ...) \
    SECATEUR_KERNEL(name, Params, threads, blocks, start_early, __VA_ARGS__)
#endif

/// Position of the block in its cluster.
DEVICE uint32_t cluster_rank() {
#ifdef __CUDACC__
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#else
    return host::cluster_rank();
#endif
}

/// Waits for every thread of the cluster; what they wrote to memory before, shared memory of others too, is visible after.
DEVICE void cluster_sync() {
#ifdef __CUDACC__
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
#else
    host::cluster_barrier();
#endif
}

#ifdef __CUDACC__
/// The address in the cluster of what lies in block `rank` where `pointer` lies in this one.
__device__ __forceinline__ uint32_t remote_address(const void* pointer, uint32_t rank) {
    uint32_t remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared_address(pointer)), "r"(rank));
    return remote;
}
#endif

/// Arrives at the barrier that lies in block `rank` where `b` lies in this one.
DEVICE void mbarrier_arrive_remote(Mbarrier& b, uint32_t rank) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(remote_address(&b, rank))
                 : "memory");
#else
    host::mbarrier_arrive_remote(&b.state, rank);
#endif
}

/// Stores `value` in block `rank` where `to` lies in this one, and adds its bytes to the barrier that lies there where `full`
/// lies here. Asynchronous: only mbarrier_wait_cluster on that barrier shows the value.
DEVICE void store_remote(Bytes16& to, const Bytes16& value, Mbarrier& full, uint32_t rank) {
#ifdef __CUDACC__
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                     remote_address(&to, rank)),
                 "r"(value.word[0]), "r"(value.word[1]), "r"(value.word[2]), "r"(value.word[3]),
                 "r"(remote_address(&full, rank))
                 : "memory");
#else
    host::store_remote(&to, &value, sizeof value, &full.state, rank);
#endif
}
DEVICE void store_remote(Bytes8& to, const Bytes8& value, Mbarrier& full, uint32_t rank) {
#ifdef __CUDACC__
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
                     remote_address(&to, rank)),
                 "r"(value.word[0]), "r"(value.word[1]), "r"(remote_address(&full, rank))
                 : "memory");
#else
    host::store_remote(&to, &value, sizeof value, &full.state, rank);
#endif
}

/// mbarrier_wait for a phase that other blocks of the cluster end: shows what they stored or read before.
DEVICE void mbarrier_wait_cluster(Mbarrier& b, uint32_t parity, const Waiting& waiting) {
    mbarrier_wait<Scope::Cluster>(b, parity, waiting);
}

}  // namespace secateur
