// Scheduling of the threads of a cluster over fibers.

#include "host/scheduler.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/async_proxy.h"
#include "host/mbarrier.h"
#include "host/tma.h"

namespace secateur::host {

__thread Thread* current_thread;
__thread Block* current_block;
__thread Emulator* emulator;

namespace {

// Of the same alignment as shared memory.
constexpr size_t guard_bytes = 1024;
constexpr unsigned char guard_byte = 0xA5;

/// The lane's fiber, made at its first turn.
void start(Warp& warp, Thread& thread) {
    const uint32_t bit = 1u << lane_of(thread);
    if (!(warp.started & bit)) {
        warp.started |= bit;
        thread.fiber = emulator->fibers.take();
    }
}

/// Goes on with the next lane of the warp that can run, else with the scheduler.
void switch_away(Thread& self) {
    Warp& warp = *self.warp;
    Context& here = self.fiber->context;
    if (warp.ready == 0) {
        switch_context(here, emulator->scheduler);
        return;
    }
    const uint32_t lane = lane_of(self);
    const uint32_t above = lane == 31 ? 0 : warp.ready & (all_lanes << (lane + 1));
    Thread& next = warp.threads[__builtin_ctz(above != 0 ? above : warp.ready)];
    start(warp, next);
    current_thread = &next;
    switch_context(here, next.fiber->context);
}

void run_kernel() {
    const BlockState& block = block_of(*current_thread);
    emulator->kernel->invoke(emulator->params, block.shared_memory());
}

/// Runs threads of a warp, one after another as long as none of them waits.
void fiber_main() {
    for (;;) {
        Emulator& r = *emulator;
        const bool good = guarded(run_kernel);
        Thread& self = *current_thread;
        Fiber* fiber = self.fiber;
        if (!good) {
            switch_context(fiber->context, r.scheduler);
            abort();  // a failed block is never resumed
        }
        Warp& warp = *self.warp;
        warp.ready &= ~(1u << lane_of(self));
        self.waits_at = "its end";
        ++block_of(self).exited;
        const uint32_t fresh = warp.ready & ~warp.started;
        if (fresh != 0) {
            Thread& next = warp.threads[__builtin_ctz(fresh)];
            warp.started |= 1u << lane_of(next);
            next.fiber = fiber;
            current_thread = &next;
            continue;
        }
        r.fibers.give(fiber);
        switch_away(self);
        abort();  // a fiber that was given back is started anew, not resumed
    }
}

}  // namespace

BlockState::BlockState() : Block{}, storage_(static_cast<char*>(aligned_alloc(1024, max_shared + 2 * guard_bytes))) {
    if (storage_ == nullptr) throw std::bad_alloc();
    shared = storage_ + guard_bytes;
}

BlockState::~BlockState() {
    free(storage_);
    free(proxy);
}

void BlockState::begin(const KernelEntry& kernel) {
    dim = {kernel.threads, 1, 1};
    shared_bytes = kernel.shared_bytes;
    for (uint32_t i = 0; i < kernel.threads; ++i) {
        Thread& thread = threads[i];
        thread.index = {i, 0, 0};
        thread.warp = &warps[i / 32];
        thread.waits_at = nullptr;
        thread.copies.clear();
        thread.copies_done = 0;
        thread.waited = false;
        thread.open_group = 0;
        thread.block = this;
        thread.barrier = nullptr;
        thread.store_groups = thread.wgmma_issued = thread.wgmma_groups = 0;
        thread.wgmma_fenced = false;
    }
    for (uint32_t i = 0; i < kernel.threads / 32; ++i) {
        warps[i].ready = all_lanes;
        warps[i].started = 0;
        warps[i].arrived = 0;
        warps[i].threads = &threads[32 * i];
    }
    for (NamedBarrier& barrier : named) barrier.waiting.clear();
    for (Warpgroup& group : warpgroups) {
        group.issues.clear();
        group.done = group.arrived = 0;
    }
    exited = at_barrier = 0;
    proxy_used = false;
    char* memory = shared_memory();
    memset(memory - guard_bytes, guard_byte, guard_bytes);
    memset(memory, 0xFF, shared_bytes);
    memset(memory + shared_bytes, guard_byte, guard_bytes);
}

bool BlockState::intact() const {
    for (size_t i = 0; i < guard_bytes; ++i) {
        if (static_cast<unsigned char>(shared[-1 - int64_t(i)]) != guard_byte) return false;
        if (static_cast<unsigned char>(shared[shared_bytes + i]) != guard_byte) return false;
    }
    return true;
}

Emulator::Emulator() : fibers(fiber_main) { blocks.push_back(std::make_unique<BlockState>()); }

void Emulator::begin(const KernelEntry& entry, const void* parameters, const uint32_t grid[3], const uint32_t block[3]) {
    kernel = &entry;
    params = parameters;
    block_count = entry.cluster_blocks;
    while (blocks.size() < block_count) blocks.push_back(std::make_unique<BlockState>());
    for (uint32_t rank = 0; rank < block_count; ++rank) {
        blocks[rank]->index = {block[0] + rank, block[1], block[2]};
        blocks[rank]->grid = {grid[0], grid[1], grid[2]};
        blocks[rank]->rank = rank;
        blocks[rank]->begin(entry);
    }
    waiting.clear();
    gave_way.clear();
    loads.clear();
    fresh_barriers.clear();
    filled_remotely.clear();
    stores.clear();
    at_cluster_barrier = 0;
    failed = false;
    fibers.reset();
}

/// Whether any warp ran.
bool Emulator::run_ready_warps() {
    const uint32_t warp_count = kernel->threads / 32;
    bool ran = false;
    for (uint32_t rank = 0; rank < block_count; ++rank) {
        BlockState& block = *blocks[reversed ? block_count - 1 - rank : rank];
        current_block = &block;
        for (uint32_t i = 0; i < warp_count; ++i) {
            Warp& warp = block.warps[reversed ? warp_count - 1 - i : i];
            if (warp.ready == 0) continue;
            ran = true;
            Thread& first = warp.threads[__builtin_ctz(warp.ready)];
            start(warp, first);
            current_thread = &first;
            switch_context(scheduler, first.fiber->context);
            if (failed) return true;
        }
    }
    return ran;
}

/// Whether a barrier was open that everybody had reached.
bool Emulator::open_barriers() {
    const uint32_t warp_count = kernel->threads / 32;
    const bool cluster = at_cluster_barrier == block_count * kernel->threads;
    bool opened = cluster;
    if (cluster) {
        at_cluster_barrier = 0;
        fresh_barriers.clear();
    }
    for (uint32_t rank = 0; rank < block_count; ++rank) {
        BlockState& block = *blocks[rank];
        const bool whole = block.at_barrier == kernel->threads;
        if (whole) block.at_barrier = 0;
        if (!whole && !cluster) continue;
        opened = true;
        for (uint32_t i = 0; i < warp_count; ++i) block.warps[i].ready = all_lanes;
    }
    return opened;
}

void Emulator::run() {
    for (;;) {
        const bool ran = run_ready_warps();
        if (failed) return;
        if (ran) continue;
        if (!gave_way.empty()) {
            wake(*gave_way.front());
            gave_way.pop_front();
            continue;
        }
        if (open_barriers()) continue;
        bool over = true;
        for (uint32_t rank = 0; rank < block_count; ++rank) over = over && blocks[rank]->exited == kernel->threads;
        if (over) break;
        if (loads.empty()) {
            failed = true;
            // Of threads that wait at an mbarrier the first says what it would say on a GPU.
            current_thread = waiting.empty() ? nullptr : waiting.front();
            message = explain_deadlock();
            if (current_thread != nullptr) message = mbarrier_gave_up(*current_thread) + "; " + message;
            return;
        }
        if (!guarded(execute_oldest_load)) return;
    }
    current_thread = nullptr;
    if (guarded(tma_check_end) && guarded(wgmma_check_end)) finish();
}

/// What can only be seen at the end.
void Emulator::finish() {
    char text[128];
    for (uint32_t rank = 0; rank < block_count; ++rank) {
        if (blocks[rank]->intact()) continue;
        failed = true;
        snprintf(text, sizeof text, "wrote outside its shared memory of %u bytes", kernel->shared_bytes);
        message = text;
        current_block = blocks[rank].get();
        return;
    }
    if (fibers.overflowed()) {
        failed = true;
        snprintf(text, sizeof text, "a thread needs more than the %zu bytes of stack that the emulator has for it",
                 FiberPool::stack_bytes);
        message = text;
    }
}

/// Says who waits where: the first thread of each place.
std::string Emulator::explain_deadlock() const {
    struct Place {
        std::string name;
        uint32_t first, count;
    };
    std::vector<Place> places;
    for (uint32_t rank = 0; rank < block_count; ++rank) {
        for (uint32_t i = 0; i < kernel->threads; ++i) {
            const Thread& thread = blocks[rank]->threads[i];
            char name[160];
            int used = 0;
            if (block_count > 1) used = snprintf(name, sizeof name, "block %u of the cluster, ", rank);
            if (thread.barrier != nullptr) {
                mbarrier_describe(thread, name + used, uint32_t(sizeof name) - uint32_t(used));
            } else {
                snprintf(name + used, sizeof name - size_t(used), "%s", thread.waits_at);
            }
            bool known = false;
            for (Place& place : places) {
                if (place.name != name) continue;
                known = true;
                ++place.count;
            }
            if (!known) places.push_back({name, i, 1});
        }
    }
    std::string text = "deadlock:";
    for (size_t i = 0; i < places.size() && i < 8; ++i) {
        char part[256];
        snprintf(part, sizeof part, "%s %u thread%s (the first is %u) at %s", i == 0 ? "" : ",", places[i].count,
                 places[i].count == 1 ? "" : "s", places[i].first, places[i].name.c_str());
        text += part;
    }
    return text;
}

void park(Thread& self, const char* place) {
    self.warp->ready &= ~(1u << lane_of(self));
    self.waits_at = place;
    switch_away(self);
    self.waits_at = nullptr;
}

void wake(Thread& thread) { thread.warp->ready |= 1u << lane_of(thread); }

void give_way(Thread& self) {
    emulator->gave_way.push_back(&self);
    park(self, "its turn");
}

}  // namespace secateur::host
