// cp.async: copies from device to shared memory that run beside the arithmetic, in groups (sm_80 and later).
//
// On the host a copy is checked when it is issued and happens at the wait that covers its group, so that a missing wait
// leaves the NaN with which shared memory starts. A wait covers the thread's own copies only: syncthreads() must follow
// before other threads may read them.
#pragma once

#include "portable/global.h"
#include "portable/mma.h"

namespace secateur {

/// Copies 16 bytes from element `index` of `from` to `to` in shared memory, both 16-byte aligned; writes zeros, and reads
/// nothing, where not `valid`.
template <class T>
DEVICE void cp_async_16(void* to, Global<T> from, int64_t index, bool valid = true) {
#ifdef __CUDACC__
    // Where nothing is read the address still has to be one; the base always is.
    const void* source = from.pointer + (valid ? index : 0);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(source),
                 "r"(valid ? 16 : 0)
                 : "memory");
#else
    host::cp_async(to, valid ? from.template at<const Bytes16>(index) : nullptr, 16);
#endif
}

/// Closes the group of the copies issued since the last commit.
DEVICE void cp_async_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    host::cp_async_commit();
#endif
}

/// Waits until at most the newest N groups are still under way.
template <int N>
DEVICE void cp_async_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#else
    host::cp_async_wait(N);
#endif
}

}  // namespace secateur
