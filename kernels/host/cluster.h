// What portable/cluster.h calls on the host; in host/runner.cpp and host/mbarrier.cpp.
#pragma once

#include <stdint.h>

namespace secateur::host {

uint32_t cluster_rank();
/// The rendezvous of the cluster.
void cluster_barrier();

}  // namespace secateur::host
