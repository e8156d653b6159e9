// How a kernel is declared: qualifiers, the KERNEL macro, and the built-in indices.
//
// KERNEL(symbol, Params, threads, Shared) { body } has `p` (const Params&), `shared` (Shared&) and `kernel` (kernel_id of the symbol)
// in scope. Params is a POD, mirrored by a #[repr(C)] struct in src/cuda/launch/; Shared is the block's shared memory, a POD as
// well. When the body starts, all launches before have ended; KERNEL_EARLY sees to that itself (portable/launch_order.h).
#pragma once

#include <math.h>
#include <stdint.h>

#ifndef __CUDACC__
#include "host/kernel_entry.h"
#include "host/emulator.h"
#endif

namespace secateur {

/// For kernels that need no shared memory.
struct NoShared {};

#ifdef __CUDACC__

#define DEVICE __device__ __forceinline__

// Dynamic shared memory even where 48 KB would do: one way for all, and the size comes from the host library's table.
// 1024 bytes is the period of the widest swizzle of TMA and wgmma.
extern __shared__ __align__(1024) unsigned char secateur_shared_memory[];

#define SECATEUR_NO_CLUSTER
#define KERNEL(name, Params, threads, ...) \
    SECATEUR_KERNEL(name, Params, threads, 1, SECATEUR_NO_CLUSTER, start_in_order, __VA_ARGS__)
#define KERNEL_EARLY(name, Params, threads, ...) \
    SECATEUR_KERNEL(name, Params, threads, 1, SECATEUR_NO_CLUSTER, start_early, __VA_ARGS__)
/// The same with a wish: registers are limited so that `blocks` blocks fit on a multiprocessor.
#define KERNEL_OCCUPANCY(name, Params, threads, blocks, ...) \
    SECATEUR_KERNEL(name, Params, threads, blocks, SECATEUR_NO_CLUSTER, start_in_order, __VA_ARGS__)
#define SECATEUR_KERNEL(name, Params, threads, blocks, cluster, start, ...)                                  \
    static_assert((threads) % 32 == 0 && (threads) <= 1024, #name ": a block is 1 to 32 full warps");        \
    __device__ __forceinline__ void name##_body(const Params& p, __VA_ARGS__& shared, uint32_t kernel);      \
    extern "C" __global__ void cluster __launch_bounds__(threads, blocks)                                    \
        name(const __grid_constant__ Params p) {                                                             \
        ::secateur::start();                                                                                 \
        constexpr uint32_t kernel = ::secateur::kernel_id(#name);                                            \
        name##_body(p, *reinterpret_cast<__VA_ARGS__*>(::secateur::secateur_shared_memory), kernel);         \
    }                                                                                                        \
    __device__ __forceinline__ void name##_body([[maybe_unused]] const Params& p,                            \
                                                [[maybe_unused]] __VA_ARGS__& shared,                        \
                                                [[maybe_unused]] const uint32_t kernel)

#else

#define DEVICE inline

#define threadIdx (::secateur::host::current_thread->index)
#define blockIdx (::secateur::host::current_block->index)
#define blockDim (::secateur::host::current_block->dim)
#define gridDim (::secateur::host::current_block->grid)

#define KERNEL_OCCUPANCY(name, Params, threads, blocks, ...) KERNEL(name, Params, threads, __VA_ARGS__)
#define KERNEL(name, Params, threads, ...) SECATEUR_KERNEL(name, Params, threads, 1, start_in_order, __VA_ARGS__)
#define KERNEL_EARLY(name, Params, threads, ...) SECATEUR_KERNEL(name, Params, threads, 1, start_early, __VA_ARGS__)
#define SECATEUR_KERNEL(name, Params, threads, cluster, start, ...)                                          \
    static_assert((threads) % 32 == 0 && (threads) <= 1024, #name ": a block is 1 to 32 full warps");        \
    static void name##_body(const Params& p, __VA_ARGS__& shared, uint32_t kernel);                          \
    static const ::secateur::host::KernelEntry name##_entry(                                                 \
        #name, ::secateur::kernel_id(#name), threads, cluster, ::secateur::host::shared_bytes<__VA_ARGS__>(),\
        sizeof(Params),                                                                                      \
        [](const void* p, void* shared) {                                                                    \
            ::secateur::start();                                                                             \
            constexpr uint32_t kernel = ::secateur::kernel_id(#name);                                        \
            name##_body(*static_cast<const Params*>(p), *static_cast<__VA_ARGS__*>(shared), kernel);         \
        });                                                                                                  \
    static void name##_body([[maybe_unused]] const Params& p, [[maybe_unused]] __VA_ARGS__& shared,          \
                            [[maybe_unused]] const uint32_t kernel)

#endif

/// A kernel's symbol in four bytes, none alike (FNV-1a), in the host library's table as well.
DEVICE constexpr uint32_t kernel_id(const char* symbol) {
    uint32_t hash = 2166136261u;
    while (*symbol != 0) hash = (hash ^ uint8_t(*symbol++)) * 16777619u;
    return hash;
}

/// Position of the thread in its warp.
DEVICE uint32_t lane_index() { return threadIdx.x % 32; }
/// Position of the warp in its block.
DEVICE uint32_t warp_index() { return threadIdx.x / 32; }

/// Has the compiler compute `value` here and keep it, not later and not again from what it came from.
DEVICE void keep_in_register([[maybe_unused]] float& value) {
#ifdef __CUDACC__
    asm volatile("" : "+f"(value));
#endif
}
DEVICE void keep_in_register([[maybe_unused]] uint32_t& value) {
#ifdef __CUDACC__
    asm volatile("" : "+r"(value));
#endif
}

/// Waits for every thread of the block; what they wrote to memory before is visible after.
DEVICE void syncthreads() {
#ifdef __CUDACC__
    __syncthreads();
#else
    host::block_barrier();
#endif
}

}  // namespace secateur

#include "portable/launch_order.h"
