// The inside of the emulator: the blocks of a cluster, their threads, and what they wait for. For the files of host/ only; what
// kernels see is host/emulator.h.
//
// One OS thread runs one cluster (mostly of one block). Warps run in turn, each until all its lanes wait. When nobody can go on:
// threads that gave way go on, barriers that everybody has reached open, then the oldest deferred load happens, one at a time.
// Where none of that helps it is a deadlock, and who waits where is the message.
#pragma once

#include <deque>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "host/fiber.h"
#include "host/kernel_entry.h"
#include "host/emulator.h"
#include "host/tensor_map.h"
#include "host/wgmma.h"

namespace secateur::host {

constexpr uint32_t all_lanes = 0xFFFFFFFFu;
constexpr uint32_t max_threads = 1024;
constexpr size_t max_shared = 228 * 1024;
constexpr uint32_t max_cluster = 16;

/// The lanes of a warp, as bit masks.
struct Warp {
    uint32_t ready;    // can run: not started, or not waiting
    uint32_t started;  // has a fiber
    uint32_t arrived;  // waits at `collective`
    const Collective* collective;
    void* arguments[32];
    Thread* threads;
};

/// bar.sync 1 .. 15.
struct NamedBarrier {
    uint32_t threads;
    std::vector<Thread*> waiting;
};

/// A block with all that belongs to it.
struct BlockState : Block {
    BlockState();
    ~BlockState();
    BlockState(const BlockState&) = delete;
    BlockState& operator=(const BlockState&) = delete;

    void begin(const KernelEntry& kernel);
    /// Whether the bytes around its shared memory are as they were.
    bool intact() const;
    char* shared_memory() const { return const_cast<char*>(shared); }

    uint32_t rank = 0;
    uint32_t exited = 0;
    uint32_t at_barrier = 0;
    Thread threads[max_threads];
    Warp warps[max_threads / 32];
    NamedBarrier named[16];
    Warpgroup warpgroups[max_threads / 128];
    /// Shared memory as the async proxy sees it (host/async_proxy.cpp); null until a block uses the proxy.
    char* proxy = nullptr;
    bool proxy_used = false;

private:
    char* storage_ = nullptr;
};

/// Everything an OS thread needs to run blocks, kept from block to block.
struct Emulator {
    Emulator();
    void begin(const KernelEntry& kernel, const void* params, const uint32_t grid[3], const uint32_t block[3]);
    void run();

    FiberPool fibers;
    Context scheduler{};
    /// The cluster that runs is the first `block_count` of them.
    std::vector<std::unique_ptr<BlockState>> blocks;
    uint32_t block_count = 1;
    const KernelEntry* kernel = nullptr;
    const void* params = nullptr;
    bool reversed = false;
    /// AsyncOrder::Early of the Rust side.
    bool early = false;
    /// Threads at an mbarrier.
    std::vector<Thread*> waiting;
    /// Threads that let others go first.
    std::deque<Thread*> gave_way;
    /// TMA and stores to other blocks under way (host/tma.cpp).
    std::deque<PendingLoad> loads;
    /// Barriers of a cluster initialised since its last cluster_sync: other blocks must not use them yet.
    std::vector<const uint64_t*> fresh_barriers;
    /// Barriers that count bytes which another block stores.
    std::vector<const uint64_t*> filled_remotely;
    std::vector<PendingStore> stores;
    uint32_t at_cluster_barrier = 0;
    bool failed = false;
    std::string message;

private:
    bool run_ready_warps();
    bool open_barriers();
    void finish();
    std::string explain_deadlock() const;
};

extern __thread Emulator* emulator;

inline BlockState& block_of(const Thread& thread) { return *thread.block; }
inline uint32_t lane_of(const Thread& thread) { return thread.index.x % 32; }

/// Stops this thread until somebody wakes it. `place` is for messages.
void park(Thread& self, const char* place);
/// Lets a parked thread go on.
void wake(Thread& thread);
/// Stops this thread until no other can go on.
void give_way(Thread& self);
/// What `f` throws becomes the failure of the launch; false then.
bool guarded(void (*f)());

}  // namespace secateur::host
