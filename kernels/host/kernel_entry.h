// The table of kernels of the host library: each KERNEL of each file enters itself when the program starts.
//
// It is the one place where block size, shared memory and parameter size of a kernel are known; the Rust side reads it
// (src/cuda/driver/kernel.rs) for both drivers.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <type_traits>

namespace secateur::host {

struct KernelEntry {
    const char* name;
    uint32_t threads;
    /// Blocks that run together, neighbours along x; 1 for a kernel without clusters.
    uint32_t cluster_blocks;
    uint32_t shared_bytes;
    uint32_t params_bytes;
    /// kernel_id of the name.
    uint32_t id;
    void (*invoke)(const void* params, void* shared);
    const KernelEntry* next;

    KernelEntry(const char* name, uint32_t id, uint32_t threads, uint32_t cluster_blocks, size_t shared_bytes,
                size_t params_bytes, void (*invoke)(const void*, void*));
};

template <class Shared>
constexpr size_t shared_bytes() {
    static_assert(std::is_trivially_copyable<Shared>::value && std::is_trivially_default_constructible<Shared>::value,
                  "shared memory is plain data");
    static_assert(alignof(Shared) <= 1024, "shared memory is aligned to 1024 bytes");
    return std::is_empty<Shared>::value ? 0 : sizeof(Shared);
}

}  // namespace secateur::host
