// What portable/cluster.h calls on the host; in host/emulator.cpp, host/mbarrier.cpp and host/tma.cpp.
#pragma once

#include <stdint.h>

namespace secateur::host {

uint32_t cluster_rank();
/// The rendezvous of the cluster.
void cluster_barrier();
/// Stores `bytes` bytes, 16 at most, in block `rank` at the place of `to`, as late or early as a load of TMA would.
void store_remote(const void* to, const void* value, uint32_t bytes, uint64_t* full, uint32_t rank);

}  // namespace secateur::host
