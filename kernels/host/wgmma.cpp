// The rules of wgmma: who issues what, fences, commit groups, and the rendezvous of the wait.

#include "host/wgmma.h"

#include <algorithm>

#include "host/scheduler.h"

namespace secateur::host {

namespace {

constexpr uint32_t group_threads = 128;

Warpgroup& group_of(const Thread& self, const char* what) {
    BlockState& block = block_of(self);
    const uint32_t group = self.index.x / group_threads;
    if (block.dim.x < (group + 1) * group_threads) {
        fault("%s: needs the 128 threads of a warpgroup, the block has %u from thread %u on", what,
              block.dim.x - group * group_threads, group * group_threads);
    }
    return block.warpgroups[group];
}

/// Executes the products of groups that no more than `newest` later ones follow.
void execute_covered(Warpgroup& group, uint32_t groups, uint32_t newest) {
    const auto covered = [&](const WgmmaIssue& issue) { return issue.group + newest < groups; };
    const auto end = std::find_if_not(group.issues.begin(), group.issues.end(), covered);
    const auto count = uint32_t(end - group.issues.begin());
    if (count == 0) return;
    wgmma_execute(group.issues.data(), count);
    group.issues.erase(group.issues.begin(), end);
    group.done += count;
}

}  // namespace

uint32_t shared_offset(const void* pointer) {
    if (!in_shared(pointer, 1)) fault("the address of an object outside the block's shared memory was asked for");
    return uint32_t(static_cast<const char*>(pointer) - current_block->shared);
}

void wgmma(const WgmmaShape& shape, float* acc, uint64_t a, uint64_t b, bool accumulate) {
    Thread& self = *current_thread;
    Warpgroup& group = group_of(self, "wgmma");
    if (!self.wgmma_fenced) fault("wgmma: no wgmma_fence since %s", self.wgmma_issued == 0 ? "the start" : "the last wgmma_wait");
    const uint32_t index = self.wgmma_issued++ - group.done;
    if (index == group.issues.size()) {
        group.issues.push_back({shape, a, b, accumulate, self.wgmma_groups, self.index.x, {}, {}});
        if (emulator->early) wgmma_note_operands(group.issues.back());
    }
    WgmmaIssue& issue = group.issues[index];
    if (issue.a != a || issue.b != b || issue.accumulate != accumulate || issue.shape.n != shape.n ||
        issue.shape.a_mn_major != shape.a_mn_major || issue.shape.b_mn_major != shape.b_mn_major ||
        issue.group != self.wgmma_groups) {
        fault("wgmma: n %d, descriptors 0x%llx and 0x%llx, accumulate %d, group %u, while thread %u of the warpgroup has n "
              "%d, 0x%llx and 0x%llx, %d, group %u: all threads must issue the same",
              shape.n, (unsigned long long)a, (unsigned long long)b, int(accumulate), self.wgmma_groups, issue.first,
              issue.shape.n, (unsigned long long)issue.a, (unsigned long long)issue.b, int(issue.accumulate), issue.group);
    }
    issue.acc[self.index.x % group_threads] = acc;
}

void wgmma_fence() {
    group_of(*current_thread, "wgmma_fence");
    current_thread->wgmma_fenced = true;
}

void wgmma_commit() {
    group_of(*current_thread, "wgmma_commit");
    ++current_thread->wgmma_groups;
}

void wgmma_wait(uint32_t newest) {
    Thread& self = *current_thread;
    Warpgroup& group = group_of(self, "wgmma_wait");
    Thread& first = block_of(self).threads[self.index.x / group_threads * group_threads];
    if (group.arrived == 0) {
        group.newest = newest;
    } else if (group.newest != newest) {
        fault("wgmma_wait<%u>, while another thread of the warpgroup waits at wgmma_wait<%u>", newest, group.newest);
    }
    self.wgmma_fenced = false;
    if (++group.arrived < group_threads) {
        park(self, "wgmma_wait");
        return;
    }
    group.arrived = 0;
    for (uint32_t i = 0; i < group_threads; ++i) {
        const Thread& other = (&first)[i];
        if (other.wgmma_issued != self.wgmma_issued || other.wgmma_groups != self.wgmma_groups) {
            fault("wgmma_wait: %u products in %u groups, while thread %u of the warpgroup has issued %u in %u: all threads "
                  "must issue the same",
                  self.wgmma_issued, self.wgmma_groups, other.index.x, other.wgmma_issued, other.wgmma_groups);
        }
    }
    execute_covered(group, self.wgmma_groups, newest);
    for (uint32_t i = 0; i < group_threads / 32; ++i) first.warp[i].ready = all_lanes;
}

void wgmma_check_end() {
    for (uint32_t rank = 0; rank < emulator->block_count; ++rank) {
        BlockState& block = *emulator->blocks[rank];
        for (uint32_t i = 0; i < block.dim.x / group_threads; ++i) {
            if (block.warpgroups[i].issues.empty()) continue;
            const WgmmaIssue& issue = block.warpgroups[i].issues.front();
            current_block = &block;
            current_thread = &block.threads[issue.first];
            fault("wgmma: a product was still under way at the end of the kernel: no %s covers it",
                  issue.group == current_thread->wgmma_groups ? "wgmma_commit" : "wgmma_wait");
        }
    }
}

}  // namespace secateur::host
