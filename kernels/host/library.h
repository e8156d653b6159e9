// What the host library offers to Rust (src/cuda/driver/host.rs): the table of kernels, device memory, and the
// execution of one cluster of blocks. Nothing here throws or aborts: failures come back as a message.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "host/kernel_entry.h"

extern "C" {

/// The first kernel of the table; the others follow through `next`.
const secateur::host::KernelEntry* secateur_host_kernels();

/// Device memory of `bytes` bytes, filled with 0xFF; 0 where there is none left.
uint64_t secateur_host_alloc(const char* name, size_t name_bytes, uint64_t bytes);

/// 0, or 1 where no allocation starts at this address.
int secateur_host_free(uint64_t address);

/// The host memory of a range of device memory, for copies; null with a message where the range is not all inside one.
void* secateur_host_memory(uint64_t address, uint64_t bytes, char* message, size_t message_bytes);

/// How the threads of a launch take turns, or'ed: the last warp goes first; loads happen when they are issued, and who ends a
/// phase of an mbarrier lets those who waited for it go first (else loads happen when nobody can go on).
enum : uint32_t { secateur_host_reversed = 1, secateur_host_early = 2 };

/// Runs the cluster whose first block is `block` on the calling thread: 0, or 1 with a message.
int secateur_host_run_cluster(const secateur::host::KernelEntry* kernel, const void* params, const uint32_t grid[3],
                              const uint32_t block[3], uint32_t order, char* message, size_t message_bytes);
}
