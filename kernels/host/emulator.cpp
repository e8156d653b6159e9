// What every thread may do: meet its warp, wait for its block, copy, fail; and the way in from Rust.

#include "host/emulator.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "host/cluster.h"
#include "host/library.h"
#include "host/scheduler.h"

namespace secateur::host {

namespace {

/// Thrown by fault, caught at the entry of a fiber or in the scheduler.
struct Fault {
    std::string message;
};

struct EmulatorOwner {
    std::unique_ptr<Emulator> owned;
};
thread_local EmulatorOwner emulator_owner;

const KernelEntry* first_entry;

}  // namespace

KernelEntry::KernelEntry(const char* name, uint32_t id, uint32_t threads, uint32_t cluster_blocks, size_t shared_bytes,
                         size_t params_bytes, void (*invoke)(const void*, void*))
    : name(name),
      threads(threads),
      cluster_blocks(cluster_blocks),
      shared_bytes(uint32_t(shared_bytes)),
      params_bytes(uint32_t(params_bytes)),
      id(id),
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

bool guarded(void (*f)()) {
    try {
        f();
        return true;
    } catch (const Fault& fault) {
        emulator->message = fault.message;
    } catch (const std::exception& e) {
        emulator->message = e.what();
    }
    emulator->failed = true;
    return false;
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
    park(self, collective.name);
}

void block_barrier() {
    Thread& self = *current_thread;
    ++block_of(self).at_barrier;
    park(self, "syncthreads");
}

uint32_t cluster_rank() { return block_of(*current_thread).rank; }

void cluster_barrier() {
    ++emulator->at_cluster_barrier;
    park(*current_thread, "cluster_sync");
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

int secateur_host_run_cluster(const KernelEntry* kernel, const void* params, const uint32_t grid[3],
                              const uint32_t block[3], uint32_t order, char* message, size_t message_bytes) {
    try {
        if (emulator == nullptr) {
            emulator_owner.owned = std::make_unique<Emulator>();
            emulator = emulator_owner.owned.get();
        }
        Emulator& r = *emulator;
        if (kernel->shared_bytes > max_shared) {
            snprintf(message, message_bytes, "%u bytes of shared memory, more than the %zu of any GPU",
                     kernel->shared_bytes, max_shared);
            return 1;
        }
        if (kernel->cluster_blocks == 0 || kernel->cluster_blocks > max_cluster) {
            snprintf(message, message_bytes, "a cluster of %u blocks, a GPU takes 1 to %u", kernel->cluster_blocks,
                     max_cluster);
            return 1;
        }
        r.reversed = (order & secateur_host_reversed) != 0;
        r.early = (order & secateur_host_early) != 0;
        r.begin(*kernel, params, grid, block);
        r.run();
        if (!r.failed) return 0;
        const Dim3 at = current_thread != nullptr ? block_of(*current_thread).index : current_block->index;
        if (current_thread != nullptr) {
            snprintf(message, message_bytes, "block (%u, %u, %u), thread %u: %s", at.x, at.y, at.z,
                     current_thread->index.x, r.message.c_str());
        } else {
            snprintf(message, message_bytes, "block (%u, %u, %u): %s", at.x, at.y, at.z, r.message.c_str());
        }
    } catch (const std::exception& e) {
        snprintf(message, message_bytes, "%s", e.what());
    }
    return 1;
}
