// What portable/wgmma.h calls on the host: products of a warpgroup whose operands lie in shared memory.
//
// Issuing only makes a note. The wait that covers a commit group is a rendezvous of the 128 threads; there the operands are
// read, as late as can be, and the accumulators change. Written in host/wgmma.cpp; checked by tests/hopper_runner.rs.
#pragma once

#include <stdint.h>

namespace secateur::host {

/// The shape of a product and how its operands lie: all 128 threads must agree on it.
struct WgmmaShape {
    int n;
    bool a_mn_major;
    bool b_mn_major;
};

void wgmma(const WgmmaShape& shape, float* acc, uint64_t a, uint64_t b, bool accumulate);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(uint32_t newest);
/// The address of an object in its block's shared memory, as descriptors count.
uint32_t shared_offset(const void* pointer);

}  // namespace secateur::host
