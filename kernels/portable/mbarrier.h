// Barriers in shared memory that count arrivals and bytes (mbarrier), named barriers, the fence between ordinary stores and
// the async proxy, and what else a producer and its consumers need on Hopper. For files that say `// Targets: sm_90a`.
//
// A phase ends when all its arrivals have come and all bytes that they expect; its parity is 0, 1, 0, ... from init on. On
// the host a barrier used before its init, more arrivals than were announced, and a wait that nothing ends are errors, and a
// fence names the bytes that it covers: what wgmma or a TMA store reads unfenced is an error there (host/async_proxy.h).
#pragma once

#include "portable/bounded_wait.h"
#include "portable/kernel.h"
#include "portable/mma.h"
#ifndef __CUDACC__
#include "host/async_proxy.h"
#include "host/mbarrier.h"
#endif

namespace secateur {

/// Lives in the block's shared memory.
struct Mbarrier {
    uint64_t state;
};

/// Makes `b` a barrier of `arrivals` arrivals a phase. One thread; fence_mbarrier_init and a barrier of the block (of the
/// cluster, where other blocks use it) must follow.
DEVICE void mbarrier_init(Mbarrier& b, uint32_t arrivals) {
#ifdef __CUDACC__
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&b)), "r"(arrivals) : "memory");
#else
    host::mbarrier_init(&b.state, arrivals);
#endif
}

/// Makes new barriers known to the async proxy and the cluster.
DEVICE void fence_mbarrier_init() {
#ifdef __CUDACC__
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

DEVICE void mbarrier_arrive(Mbarrier& b) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&b)) : "memory");
#else
    host::mbarrier_arrive(&b.state, 0);
#endif
}

/// Announces `bytes` bytes of asynchronous copies for this phase, and arrives.
DEVICE void mbarrier_expect_bytes(Mbarrier& b, uint32_t bytes) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&b)), "r"(bytes)
                 : "memory");
#else
    host::mbarrier_arrive(&b.state, bytes);
#endif
}

/// Whose writes before the end of a phase a wait for it shows: those of the block, or of all blocks of the cluster.
enum class Scope { Block, Cluster };

/// Waits until the phase of this parity has ended: at once where the barrier is in the other one. A wait of more than WAIT_LIMIT
/// ends the launch with an error that names what `waiting` does.
template <Scope SCOPE = Scope::Block>
DEVICE void mbarrier_wait(Mbarrier& b, uint32_t parity, const Waiting& waiting) {
#ifdef __CUDACC__
    if constexpr (SCOPE == Scope::Block) {
        SECATEUR_BOUNDED_WAIT("mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n", b, parity, waiting);
    } else {
        SECATEUR_BOUNDED_WAIT("mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n", b, parity, waiting);
    }
#else
    host::mbarrier_wait(&b.state, parity, SCOPE == Scope::Cluster, waiting.kernel, waiting.barrier.word);
#endif
}

/// Shows what this thread wrote to shared memory by ordinary stores to wgmma and TMA, once the threads that issue them have
/// met this one at a barrier; what it read there before stays ahead of what TMA writes. `written` and `bytes` name that memory;
/// a GPU does not look at them.
DEVICE void fence_async_proxy([[maybe_unused]] const void* written, [[maybe_unused]] uint32_t bytes) {
#ifdef __CUDACC__
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    host::fence_async_proxy(written, bytes);
#endif
}

/// Waits for `threads` threads, full warps, at barrier `id`, 1 to 15; what they wrote to memory before is visible after.
DEVICE void named_barrier_sync(uint32_t id, uint32_t threads) {
#ifdef __CUDACC__
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    host::named_barrier(id, threads);
#endif
}

/// Sets the registers of each thread of the warpgroup to N, more or fewer than it has; all its warps must take part.
template <uint32_t N>
DEVICE void raise_registers() {
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "registers: 24 to 256 in steps of 8");
#ifdef __CUDACC__
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <uint32_t N>
DEVICE void lower_registers() {
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "registers: 24 to 256 in steps of 8");
#ifdef __CUDACC__
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

/// True for one lane of the warp.
DEVICE bool elect_lane() { return lane_index() == 0; }

}  // namespace secateur
