// Scheduling of a block's threads over fibers. Checked by tests/runner.rs; called through secateur_host_run_block.

#include "host/runner.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <exception>
#include <memory>
#include <string>

#include "host/fiber.h"
#include "host/library.h"

namespace secateur::host {

__thread Thread* current_thread;
__thread Block* current_block;

/// The lanes of a warp, as bit masks.
struct Warp {
    uint32_t ready;    // can run: not started, or not waiting
    uint32_t started;  // has a fiber
    uint32_t arrived;  // waits at `collective`
    const Collective* collective;
    void* arguments[32];
    Thread* threads;
};

namespace {

constexpr uint32_t all_lanes = 0xFFFFFFFFu;
constexpr uint32_t max_threads = 1024;
constexpr size_t guard_bytes = 1024;
constexpr unsigned char guard_byte = 0xA5;
constexpr size_t max_shared = 228 * 1024;

/// Thrown inside a fiber, caught at its entry.
struct Fault {
    std::string message;
};

void fiber_main();

/// Everything an OS thread needs to run blocks, kept from block to block.
struct Runner {
    FiberPool fibers{fiber_main};
    Context scheduler{};
    Thread threads[max_threads];
    Warp warps[max_threads / 32];
    Block block{};
    const KernelEntry* kernel = nullptr;
    const void* params = nullptr;
    char* shared = nullptr;
    char* shared_storage = nullptr;
    uint32_t exited = 0;
    uint32_t at_barrier = 0;
    bool failed = false;
    std::string message;

    Runner() : shared_storage(static_cast<char*>(aligned_alloc(1024, max_shared + 2 * guard_bytes))) {
        if (shared_storage == nullptr) throw std::bad_alloc();
        shared = shared_storage + guard_bytes;
    }
    ~Runner() { free(shared_storage); }

    void begin();
    void run(bool reversed);
    std::string explain_deadlock() const;
    bool shared_intact() const;
};

__thread Runner* runner;

struct RunnerOwner {
    std::unique_ptr<Runner> owned;
};
thread_local RunnerOwner runner_owner;

uint32_t lane_of(const Thread& thread) { return thread.index.x % 32; }

/// Goes on with the next lane of the warp that can run, else with the scheduler.
void switch_away(Thread& self) {
    Warp& warp = *self.warp;
    Context& here = self.fiber->context;
    if (warp.ready == 0) {
        switch_context(here, runner->scheduler);
        return;
    }
    const uint32_t lane = lane_of(self);
    const uint32_t above = lane == 31 ? 0 : warp.ready & (all_lanes << (lane + 1));
    Thread& next = warp.threads[__builtin_ctz(above != 0 ? above : warp.ready)];
    const uint32_t bit = 1u << lane_of(next);
    if (!(warp.started & bit)) {
        warp.started |= bit;
        next.fiber = runner->fibers.take();
    }
    current_thread = &next;
    switch_context(here, next.fiber->context);
}

/// Runs threads of a warp, one after another as long as none of them waits.
void fiber_main() {
    for (;;) {
        Runner& r = *runner;
        try {
            r.kernel->invoke(r.params, r.shared);
        } catch (const Fault& f) {
            r.failed = true;
            r.message = f.message;
        } catch (const std::exception& e) {
            r.failed = true;
            r.message = e.what();
        }
        Thread& self = *current_thread;
        Fiber* fiber = self.fiber;
        if (r.failed) {
            switch_context(fiber->context, r.scheduler);
            abort();  // a failed block is never resumed
        }
        Warp& warp = *self.warp;
        warp.ready &= ~(1u << lane_of(self));
        self.waits_at = "its end";
        ++r.exited;
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

void Runner::begin() {
    const uint32_t threads_a_block = kernel->threads;
    for (uint32_t i = 0; i < threads_a_block; ++i) {
        Thread& thread = threads[i];
        thread.index = {i, 0, 0};
        thread.warp = &warps[i / 32];
        thread.waits_at = nullptr;
        thread.copies.clear();
        thread.copies_done = 0;
        thread.open_group = 0;
    }
    for (uint32_t i = 0; i < threads_a_block / 32; ++i) {
        warps[i].ready = all_lanes;
        warps[i].started = 0;
        warps[i].arrived = 0;
        warps[i].threads = &threads[32 * i];
    }
    exited = at_barrier = 0;
    failed = false;
    fibers.reset();
    memset(shared - guard_bytes, guard_byte, guard_bytes);
    memset(shared, 0xFF, kernel->shared_bytes);
    memset(shared + kernel->shared_bytes, guard_byte, guard_bytes);
}

void Runner::run(bool reversed) {
    const uint32_t warp_count = kernel->threads / 32;
    for (;;) {
        for (uint32_t i = 0; i < warp_count; ++i) {
            Warp& warp = warps[reversed ? warp_count - 1 - i : i];
            if (warp.ready == 0) continue;
            Thread& first = warp.threads[__builtin_ctz(warp.ready)];
            const uint32_t bit = 1u << lane_of(first);
            if (!(warp.started & bit)) {
                warp.started |= bit;
                first.fiber = fibers.take();
            }
            current_thread = &first;
            switch_context(scheduler, first.fiber->context);
            if (failed) return;
        }
        if (exited == kernel->threads) break;
        if (at_barrier != kernel->threads) {
            failed = true;
            current_thread = nullptr;
            message = explain_deadlock();
            return;
        }
        at_barrier = 0;
        for (uint32_t i = 0; i < warp_count; ++i) warps[i].ready = all_lanes;
    }
    current_thread = nullptr;
    if (!shared_intact()) {
        failed = true;
        char text[128];
        snprintf(text, sizeof text, "wrote outside its shared memory of %u bytes", kernel->shared_bytes);
        message = text;
    } else if (fibers.overflowed()) {
        failed = true;
        char text[128];
        snprintf(text, sizeof text, "a thread needs more than the %zu bytes of stack that the host runner has for it",
                 FiberPool::stack_bytes);
        message = text;
    }
}

/// Says who waits where: the first thread of each place.
std::string Runner::explain_deadlock() const {
    std::string text = "deadlock:";
    const char* places[8];
    int count = 0;
    for (uint32_t i = 0; i < kernel->threads; ++i) {
        const char* place = threads[i].waits_at;
        bool known = false;
        for (int k = 0; k < count; ++k) known = known || strcmp(places[k], place) == 0;
        if (known || count == 8) continue;
        places[count++] = place;
        uint32_t alike = 0;
        for (uint32_t j = i; j < kernel->threads; ++j) alike += strcmp(threads[j].waits_at, place) == 0;
        char part[128];
        snprintf(part, sizeof part, "%s %u thread%s (the first is %u) at %s", count == 1 ? "" : ",", alike,
                 alike == 1 ? "" : "s", i, place);
        text += part;
    }
    return text;
}

bool Runner::shared_intact() const {
    for (size_t i = 0; i < guard_bytes; ++i) {
        if (static_cast<unsigned char>(shared[-1 - int64_t(i)]) != guard_byte) return false;
        if (static_cast<unsigned char>(shared[kernel->shared_bytes + i]) != guard_byte) return false;
    }
    return true;
}

const KernelEntry* first_entry;

}  // namespace

KernelEntry::KernelEntry(const char* name, uint32_t threads, uint32_t cluster_blocks, size_t shared_bytes,
                         size_t params_bytes, void (*invoke)(const void*, void*))
    : name(name),
      threads(threads),
      cluster_blocks(cluster_blocks),
      shared_bytes(uint32_t(shared_bytes)),
      params_bytes(uint32_t(params_bytes)),
      invoke(invoke),
      next(first_entry) {
    first_entry = this;
}

void fault(const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    throw Fault{text};
}

void meet(const Collective& collective, void* argument) {
    Thread& self = *current_thread;
    Warp& warp = *self.warp;
    const uint32_t lane = lane_of(self);
    if (warp.arrived == 0) {
        warp.collective = &collective;
    } else if (warp.collective != &collective) {
        fault("warp %u: lane %u is at %s while lane %d waits at %s%s: all lanes of a warp must take part in the same one",
              self.index.x / 32, lane, collective.name, __builtin_ctz(warp.arrived), warp.collective->name,
              strcmp(collective.name, warp.collective->name) == 0 ? " of another type or size" : "");
    }
    warp.arguments[lane] = argument;
    warp.arrived |= 1u << lane;
    if (warp.arrived == all_lanes) {
        collective.work(warp.arguments);
        warp.arrived = 0;
        warp.ready = all_lanes;
        return;
    }
    warp.ready &= ~(1u << lane);
    self.waits_at = collective.name;
    switch_away(self);
    self.waits_at = nullptr;
}

void block_barrier() {
    Thread& self = *current_thread;
    self.warp->ready &= ~(1u << lane_of(self));
    self.waits_at = "syncthreads";
    ++runner->at_barrier;
    switch_away(self);
    self.waits_at = nullptr;
}

void cp_async(void* to, const void* from, uint32_t bytes) {
    if (!in_shared(to, bytes)) fault("cp.async to outside the block's shared memory");
    if (reinterpret_cast<uintptr_t>(to) % bytes != 0) fault("cp.async: destination not aligned to %u bytes", bytes);
    Thread& self = *current_thread;
    self.copies.push_back({to, from, bytes, self.open_group});
}

void cp_async_commit() { ++current_thread->open_group; }

void cp_async_wait(uint32_t newest) {
    Thread& self = *current_thread;
    const size_t issued = self.copies.size();
    size_t next = self.copies_done;
    for (; next < issued && self.copies[next].group + newest < self.open_group; ++next) {
        const PendingCopy& copy = self.copies[next];
        if (copy.from != nullptr) {
            memcpy(copy.to, copy.from, copy.bytes);
        } else {
            memset(copy.to, 0, copy.bytes);
        }
    }
    // The room of copies that are done is used again once they outnumber the others.
    if (2 * next >= issued) {
        self.copies.erase(self.copies.begin(), self.copies.begin() + std::ptrdiff_t(next));
        next = 0;
    }
    self.copies_done = next;
}

}  // namespace secateur::host

using namespace secateur::host;

const KernelEntry* secateur_host_kernels() { return first_entry; }

int secateur_host_run_block(const KernelEntry* kernel, const void* params, const uint32_t grid[3],
                            const uint32_t block[3], int reversed, char* message, size_t message_bytes) {
    try {
        if (runner == nullptr) {
            runner_owner.owned = std::make_unique<Runner>();
            runner = runner_owner.owned.get();
        }
        Runner& r = *runner;
        if (kernel->shared_bytes > max_shared) {
            snprintf(message, message_bytes, "%u bytes of shared memory, more than the %zu of any GPU",
                     kernel->shared_bytes, max_shared);
            return 1;
        }
        r.kernel = kernel;
        r.params = params;
        r.block = {{block[0], block[1], block[2]}, {kernel->threads, 1, 1}, {grid[0], grid[1], grid[2]}, r.shared, kernel->shared_bytes};
        current_block = &r.block;
        r.begin();
        r.run(reversed != 0);
        if (!r.failed) return 0;
        if (current_thread != nullptr) {
            snprintf(message, message_bytes, "block (%u, %u, %u), thread %u: %s", block[0], block[1], block[2],
                     current_thread->index.x, r.message.c_str());
        } else {
            snprintf(message, message_bytes, "block (%u, %u, %u): %s", block[0], block[1], block[2], r.message.c_str());
        }
    } catch (const std::exception& e) {
        snprintf(message, message_bytes, "%s", e.what());
    }
    return 1;
}
