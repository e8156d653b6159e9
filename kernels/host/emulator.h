// The emulator: executes the threads of one block on the calling OS thread.
//
// Threads run one after another, warp by warp, each until it has to wait. Warp collectives are rendezvous of 32 lanes whose
// last to arrive does the work of all; __syncthreads is a rendezvous of the block. What cannot happen on a correct launch ends
// the block with a message: a bad access, lanes at different collectives, a barrier that some thread never reaches, an overrun
// of shared memory. A kernel that never waits runs as a plain loop on one stack.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace secateur::host {

struct Dim3 {
    uint32_t x, y, z;
};

/// An operation of a whole warp. Two lanes are at the same one if the addresses of these are the same.
struct Collective {
    const char* name;
    /// Does the work, given what each of the 32 lanes brought.
    void (*work)(void* const* lanes);
};

struct Warp;
struct Fiber;
struct BlockState;

/// A cp.async under way: read when it completes.
struct PendingCopy {
    void* to;
    const void* from;  // null: zeros
    uint32_t bytes;
    uint32_t group;
};

/// A CUDA thread.
struct Thread {
    Dim3 index;
    Warp* warp;
    Fiber* fiber;
    /// Where it waits, for messages; null while it runs.
    const char* waits_at;
    /// Copies not yet waited for: those from `copies_done` on.
    std::vector<PendingCopy> copies;
    size_t copies_done;
    uint32_t open_group;
    BlockState* block;
    /// The mbarrier it waits for, and the parity that must end; null elsewhere.
    const uint64_t* barrier;
    uint32_t parity;
    char barrier_name[16];
    /// Groups of TMA stores committed.
    uint32_t store_groups;
    /// Products issued and groups of them committed; whether a fence came since the last wait.
    uint32_t wgmma_issued;
    uint32_t wgmma_groups;
    bool wgmma_fenced;
    /// Whether it may touch device memory: portable/launch_order.h.
    bool waited;
};

/// The block that runs on this OS thread.
struct Block {
    Dim3 index, dim, grid;
    const char* shared;
    size_t shared_bytes;
};

extern __thread Thread* current_thread;
extern __thread Block* current_block;

/// The rendezvous of a warp; `argument` must live until it returns.
void meet(const Collective& collective, void* argument);

/// The rendezvous of the block.
void block_barrier();

/// Ends the block with this message (printf style), which will name kernel, block and thread.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fault(const char* format, ...);

/// Whether these bytes lie in the block's shared memory.
inline bool in_shared(const void* pointer, size_t bytes) {
    const size_t offset = size_t(static_cast<const char*>(pointer) - current_block->shared);
    return offset < current_block->shared_bytes && current_block->shared_bytes - offset >= bytes;
}

/// Ends the block if this thread has not waited for the launches before.
inline void check_waited() {
    if (__builtin_expect(!current_thread->waited, 0)) {
        fault("device memory touched before wait_for_prerequisites(): launches before may still be under way");
    }
}

void cp_async(void* to, const void* from, uint32_t bytes);
void cp_async_commit();
void cp_async_wait(uint32_t newest);

}  // namespace secateur::host
