// What portable/wgmma.h calls on the host: products of a warpgroup whose operands lie in shared memory.
//
// Issuing only makes a note. The wait that covers a commit group is a rendezvous of the 128 threads; there the
// operands are read, at the latest point that the memory model allows, and the accumulators change. Written in host/wgmma.cpp (rules) and
// host/wgmma_product.cpp (operands and arithmetic).
#pragma once

#include <stdint.h>

#include <vector>

namespace secateur::host {

/// The shape of a product and how its operands lie.
struct WgmmaShape {
    int n;
    bool a_mn_major;
    bool b_mn_major;
};

/// A product between its issue and its execution. All 128 threads must issue the same one.
struct WgmmaIssue {
    WgmmaShape shape;
    uint64_t a;
    uint64_t b;
    bool accumulate;
    uint32_t group;
    /// Thread that issued it first, for messages.
    uint32_t first;
    /// Checksums of both operands when it was issued, where the launch hurries (Emulator::early).
    uint64_t sums[2];
    float* acc[128];
};

/// Four warps that multiply together.
struct Warpgroup {
    /// Products not done yet; `done` are gone.
    std::vector<WgmmaIssue> issues;
    uint32_t done;
    /// Threads at wgmma_wait, and what the first of them waits for.
    uint32_t arrived;
    uint32_t newest;
};

void wgmma(const WgmmaShape& shape, float* acc, uint64_t a, uint64_t b, bool accumulate);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(uint32_t newest);
/// The address of an object in its block's shared memory, as descriptors count.
uint32_t shared_offset(const void* pointer);

/// Keeps checksums of the operands as they are now.
void wgmma_note_operands(WgmmaIssue& issue);
/// Executes products of the current block in their order; operands whose checksums were kept must not have changed.
void wgmma_execute(const WgmmaIssue* issues, uint32_t count);
/// Ends the launch where a warpgroup left products behind.
void wgmma_check_end();

}  // namespace secateur::host
