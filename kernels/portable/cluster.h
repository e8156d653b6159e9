// Clusters: blocks that run together and reach each other's shared memory. For files that say `// Targets: sm_90a`.
//
// KERNEL_CLUSTER(symbol, Params, threads, blocks, Shared) declares a kernel whose grid is cut along x into clusters of `blocks`
// blocks; the grid's x must be a multiple. On the host the blocks of a cluster share one scheduler.
#pragma once

#include "portable/kernel.h"
#include "portable/mbarrier.h"
#ifndef __CUDACC__
#include "host/cluster.h"
#endif

namespace secateur {

#ifdef __CUDACC__
#define KERNEL_CLUSTER(name, Params, threads, blocks, ...) \
    SECATEUR_KERNEL(name, Params, threads, 1, __cluster_dims__(blocks, 1, 1), start_in_order, __VA_ARGS__)
#else
#define KERNEL_CLUSTER(name, Params, threads, blocks, ...) \
    SECATEUR_KERNEL(name, Params, threads, blocks, start_in_order, __VA_ARGS__)
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

/// Arrives at the barrier that lies in block `rank` where `b` lies in this one.
DEVICE void mbarrier_arrive_remote(Mbarrier& b, uint32_t rank) {
#ifdef __CUDACC__
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
        "}" ::"r"(shared_address(&b)),
        "r"(rank)
        : "memory");
#else
    host::mbarrier_arrive_remote(&b.state, rank);
#endif
}

}  // namespace secateur
