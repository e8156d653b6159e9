// What the host library offers to Rust (src/engine/cuda/driver/host.rs): the table of kernels, device memory, and the
// execution of one block. Nothing here throws or aborts: failures come back as a message.
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

/// Runs block `block` of a grid on the calling thread: 0, or 1 with a message. `reversed` lets the last warp go first.
int secateur_host_run_block(const secateur::host::KernelEntry* kernel, const void* params, const uint32_t grid[3],
                            const uint32_t block[3], int reversed, char* message, size_t message_bytes);
}
