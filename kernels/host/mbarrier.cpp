// Barriers in shared memory that count arrivals and bytes, and named barriers.

#include "host/mbarrier.h"

#include <stdio.h>
#include <string.h>

#include <algorithm>

#include "host/scheduler.h"

namespace secateur::host {

namespace {

// The eight bytes, from the low end: arrivals missing, arrivals a phase, bytes missing (may be negative, since copies may end
// before they are announced), phase, and a mark that neither 0x00 nor 0xFF bytes have.
constexpr int count_bits = 20;
constexpr int64_t max_count = (1 << count_bits) - 1;
constexpr uint64_t mark = 2;

struct State {
    uint32_t missing;
    uint32_t arrivals;
    int32_t bytes;
    uint32_t phase;
};

uint64_t encode(const State& s) {
    return uint64_t(s.missing) | uint64_t(s.arrivals) << 20 | (uint64_t(uint32_t(s.bytes)) & 0x1FFFFF) << 40 |
           uint64_t(s.phase) << 61 | mark << 62;
}

bool decode(uint64_t word, State& s) {
    s.missing = uint32_t(word & 0xFFFFF);
    s.arrivals = uint32_t(word >> 20 & 0xFFFFF);
    s.bytes = int32_t(uint32_t(word >> 40) << 11) >> 11;
    s.phase = uint32_t(word >> 61 & 1);
    return word >> 62 == mark;
}

/// Where the barrier lies in its block, for messages.
uint32_t place(const uint64_t* state) {
    const char* address = reinterpret_cast<const char*>(state);
    for (uint32_t rank = 0; rank < emulator->block_count; ++rank) {
        const BlockState& block = *emulator->blocks[rank];
        if (address >= block.shared && address < block.shared + block.shared_bytes) return uint32_t(address - block.shared);
    }
    return 0;
}

void check_place(const uint64_t* state) {
    if (!in_shared(state, 8)) fault("an mbarrier outside the block's shared memory");
    if (reinterpret_cast<uintptr_t>(state) % 8 != 0) fault("mbarrier at byte %u: not aligned to 8 bytes", place(state));
}

bool contains(const std::vector<const uint64_t*>& barriers, const uint64_t* state) {
    return std::find(barriers.begin(), barriers.end(), state) != barriers.end();
}

State load(const uint64_t* state) {
    State s;
    if (!decode(*state, s)) fault("mbarrier at byte %u of shared memory: used before mbarrier_init", place(state));
    return s;
}

/// Stores the state; ends the phase where nothing is missing. Whether it did.
bool store(uint64_t* state, State s) {
    if (s.bytes > max_count || s.bytes < -max_count) {
        fault("mbarrier at byte %u: %d bytes missing, the limit is %lld", place(state), s.bytes, (long long)max_count);
    }
    const bool ended = s.missing == 0 && s.bytes == 0;
    if (ended) {
        s.phase ^= 1;
        s.missing = s.arrivals;
    }
    *state = encode(s);
    if (!ended) return false;
    auto& waiting = emulator->waiting;
    const auto goes_on = [state](Thread* thread) {
        if (thread->barrier != state) return false;
        wake(*thread);
        return true;
    };
    waiting.erase(std::remove_if(waiting.begin(), waiting.end(), goes_on), waiting.end());
    return true;
}

void arrive(uint64_t* state, uint32_t bytes) {
    State s = load(state);
    if (s.missing == 0) {
        fault("mbarrier at byte %u: more than the %u arrivals of a phase that its init announced", place(state),
              s.arrivals);
    }
    --s.missing;
    s.bytes += int32_t(bytes);
    if (store(state, s) && emulator->early) give_way(*current_thread);
}

}  // namespace

void mbarrier_init(uint64_t* state, uint32_t arrivals) {
    check_place(state);
    if (arrivals == 0 || arrivals > max_count) {
        fault("mbarrier_init: %u arrivals, a barrier takes 1 to %lld", arrivals, (long long)max_count);
    }
    *state = encode({arrivals, arrivals, 0, 0});
    if (emulator->block_count > 1) emulator->fresh_barriers.push_back(state);
}

void mbarrier_arrive(uint64_t* state, uint32_t bytes) {
    check_place(state);
    if (bytes > max_count) fault("mbarrier_expect_bytes: %u bytes, the limit is %lld", bytes, (long long)max_count);
    arrive(state, bytes);
}

uint64_t* mbarrier_remote(const uint64_t* state, uint32_t rank, const char* what) {
    check_place(state);
    const Emulator& r = *emulator;
    if (rank >= r.block_count) fault("%s: block %u of a cluster of %u", what, rank, r.block_count);
    BlockState& target = *r.blocks[rank];
    if (target.exited == r.kernel->threads) fault("%s: block %u of the cluster has left the kernel", what, rank);
    auto* const there = reinterpret_cast<uint64_t*>(target.shared_memory() + place(state));
    State s;
    if (!decode(*there, s) || contains(r.fresh_barriers, there)) {
        fault("%s: the mbarrier at byte %u of block %u of the cluster may not be initialised yet: no cluster_sync after "
              "mbarrier_init", what, place(state), rank);
    }
    return there;
}

void mbarrier_arrive_remote(uint64_t* state, uint32_t rank) {
    arrive(mbarrier_remote(state, rank, "mbarrier_arrive_remote"), 0);
}

void mbarrier_wait(uint64_t* state, uint32_t parity, bool cluster, uint32_t kernel, const uint32_t name[4]) {
    check_place(state);
    if (kernel != emulator->kernel->id) fault("mbarrier_wait: waits under the name of another kernel than %s", emulator->kernel->name);
    if (parity > 1) fault("mbarrier_wait: parity %u, it is 0 or 1", parity);
    Thread& self = *current_thread;
    memcpy(self.barrier_name, name, sizeof self.barrier_name);
    // Again after waking: the barrier may have gone round once more before this thread's turn.
    while (load(state).phase == parity) {
        self.barrier = state;
        self.parity = parity;
        emulator->waiting.push_back(&self);
        park(self, "mbarrier_wait");
        self.barrier = nullptr;
    }
    if (!cluster && contains(emulator->filled_remotely, state)) {
        fault("mbarrier_wait, byte %u of shared memory: another block stored what this barrier counts, which only "
              "mbarrier_wait_cluster shows", place(state));
    }
}

void mbarrier_complete_bytes(uint64_t* state, uint32_t bytes) {
    State s = load(state);
    s.bytes -= int32_t(bytes);
    store(state, s);
}

void mbarrier_check(const uint64_t* state) {
    check_place(state);
    load(state);
}

void mbarrier_describe(const Thread& thread, char* text, uint32_t capacity) {
    State s;
    decode(*thread.barrier, s);
    const auto at = uint32_t(reinterpret_cast<const char*>(thread.barrier) - block_of(thread).shared);
    int used = snprintf(text, capacity, "mbarrier_wait, byte %u of shared memory, parity %u: %u of %u arrivals missing", at,
                        thread.parity, s.missing, s.arrivals);
    if (s.bytes > 0 && used > 0) snprintf(text + used, capacity - uint32_t(used), ", %d bytes missing", s.bytes);
    if (s.bytes < 0 && used > 0) snprintf(text + used, capacity - uint32_t(used), ", %d bytes more than expected", -s.bytes);
}

std::string mbarrier_gave_up(const Thread& thread) {
    const std::string name(thread.barrier_name, strnlen(thread.barrier_name, sizeof thread.barrier_name));
    return "barrier " + name + ": waited for more than 1 s";
}

void named_barrier(uint32_t id, uint32_t threads) {
    Thread& self = *current_thread;
    BlockState& block = block_of(self);
    if (id < 1 || id > 15) fault("named_barrier_sync: barrier %u, they are numbered 1 to 15", id);
    if (threads == 0 || threads % 32 != 0 || threads > block.dim.x) {
        fault("named_barrier_sync: %u threads, expected full warps of the block's %u threads", threads, block.dim.x);
    }
    NamedBarrier& barrier = block.named[id];
    if (barrier.waiting.empty()) {
        barrier.threads = threads;
    } else if (barrier.threads != threads) {
        fault("named_barrier_sync: barrier %u of %u threads, thread %u waits there for %u", id, threads,
              barrier.waiting.front()->index.x, barrier.threads);
    }
    if (barrier.waiting.size() + 1 == threads) {
        for (Thread* thread : barrier.waiting) wake(*thread);
        barrier.waiting.clear();
        return;
    }
    barrier.waiting.push_back(&self);
    park(self, "named_barrier_sync");
}

}  // namespace secateur::host
