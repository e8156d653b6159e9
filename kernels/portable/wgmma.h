// Products of a warpgroup (wgmma m64nNk16, bf16 x bf16 + f32), operands from shared memory through descriptors. For files
// that say `// Targets: sm_90a`.
//
// The warpgroup is threads 128 i .. 128 i + 127. D is 64 x N: thread t holds, with g = t % 32 / 4, row 16 * (t / 32 % 4) + g in
// acc[4 j], acc[4 j + 1] (columns 8 j + 2 (t % 4) and one more) and row g + 8 in acc[4 j + 2], acc[4 j + 3].
// Operands are swizzled by 128 bytes. K-major: rows of 128 bytes (64 k) in groups of 8, stride_bytes from group to group,
// leading_bytes unused; 16 k further is 32 bytes further. MN-major: 8 rows of 128 bytes (one k, 64 m or n), stride_bytes to
// the next 8 k, leading_bytes to the next 64 m or n (PTX ISA, "Canonical layouts" of wgmma).
// Order: wgmma_fence, products, wgmma_commit, wgmma_wait; nobody touches accumulators and operands before the wait that covers
// their group. On the host a product happens at that wait.
#pragma once

#include "portable/kernel.h"
#include "portable/mma.h"
#ifndef __CUDACC__
#include "host/wgmma.h"
#endif

namespace secateur {

/// Which dimension of an operand is contiguous.
enum class Major { K, MN };

/// The descriptor of an operand swizzled by 128 bytes. `base_offset` is bits 7 to 9 of the address at which the pattern of 8 rows
/// starts: 0 where that is a multiple of 1024, as it is of all that TMA writes, wherever the operand itself starts.
DEVICE uint64_t matrix_descriptor(const void* shared_start, uint32_t leading_bytes, uint32_t stride_bytes,
                                  uint32_t base_offset = 0) {
#ifdef __CUDACC__
    const uint32_t start = shared_address(shared_start);
#else
    const uint32_t start = host::shared_offset(shared_start);
#endif
    return uint64_t((start & 0x3FFFF) >> 4) | uint64_t((leading_bytes & 0x3FFFF) >> 4) << 16 |
           uint64_t((stride_bytes & 0x3FFFF) >> 4) << 32 | uint64_t(base_offset & 7) << 49 | uint64_t(1) << 62;
}

#ifdef __CUDACC__
// The operands of the instruction: N / 2 accumulators, then descriptors, the flag to accumulate, and two majors.
#define SECATEUR_ACC_8(i)                                                                                            \
    "+f"(acc[i]), "+f"(acc[i + 1]), "+f"(acc[i + 2]), "+f"(acc[i + 3]), "+f"(acc[i + 4]), "+f"(acc[i + 5]),          \
        "+f"(acc[i + 6]), "+f"(acc[i + 7])
#define SECATEUR_ACC_32(i) SECATEUR_ACC_8(i), SECATEUR_ACC_8(i + 8), SECATEUR_ACC_8(i + 16), SECATEUR_ACC_8(i + 24)
#define SECATEUR_D_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, " \
    "%8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define SECATEUR_D_128 \
    SECATEUR_D_64 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, " \
    "%40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, " \
    "%56, %57, %58, %59, %60, %61, %62, %63"
#define SECATEUR_D_192 \
    SECATEUR_D_128 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, " \
    "%72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, " \
    "%88, %89, %90, %91, %92, %93, %94, %95"
#define SECATEUR_D_256 \
    SECATEUR_D_192 \
    ", %96, %97, %98, %99, %100, %101, %102, %103, " \
    "%104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, " \
    "%120, %121, %122, %123, %124, %125, %126, %127"
#define SECATEUR_WGMMA(n, d, a_at, b_at, scale_at, a_major_at, b_major_at, ...)                                      \
    asm volatile(                                                                                                    \
        "{\n"                                                                                                        \
        ".reg .pred accumulate;\n"                                                                                   \
        "setp.ne.b32 accumulate, " scale_at ", 0;\n"                                                                 \
        "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" d "}, " a_at ", " b_at                           \
        ", accumulate, 1, 1, " a_major_at ", " b_major_at ";\n"                                                      \
        "}"                                                                                                          \
        : __VA_ARGS__                                                                                                \
        : "l"(a), "l"(b), "r"(int(accumulate)), "n"(a_transposed), "n"(b_transposed))
#endif

/// acc = a b, plus acc where `accumulate`, for a 64 x 16 and a 16 x N operand.
template <int N, Major A = Major::K, Major B = Major::K>
DEVICE void wgmma_bf16(float (&acc)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(N == 64 || N == 128 || N == 192 || N == 256, "N is 64, 128, 192 or 256 here");
#ifdef __CUDACC__
    constexpr int a_transposed = A == Major::MN, b_transposed = B == Major::MN;
    if constexpr (N == 64) {
        SECATEUR_WGMMA("64", SECATEUR_D_64, "%32", "%33", "%34", "%35", "%36", SECATEUR_ACC_32(0));
    } else if constexpr (N == 128) {
        SECATEUR_WGMMA("128", SECATEUR_D_128, "%64", "%65", "%66", "%67", "%68", SECATEUR_ACC_32(0), SECATEUR_ACC_32(32));
    } else if constexpr (N == 192) {
        SECATEUR_WGMMA("192", SECATEUR_D_192, "%96", "%97", "%98", "%99", "%100", SECATEUR_ACC_32(0), SECATEUR_ACC_32(32),
                       SECATEUR_ACC_32(64));
    } else {
        SECATEUR_WGMMA("256", SECATEUR_D_256, "%128", "%129", "%130", "%131", "%132", SECATEUR_ACC_32(0),
                       SECATEUR_ACC_32(32), SECATEUR_ACC_32(64), SECATEUR_ACC_32(96));
    }
#else
    host::wgmma({N, A == Major::MN, B == Major::MN}, acc, a, b, accumulate);
#endif
}

/// Orders what this thread did to accumulators and operands before the products that follow.
DEVICE void wgmma_fence() {
#ifdef __CUDACC__
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    host::wgmma_fence();
#endif
}

/// Closes the group of the products issued since the last commit.
DEVICE void wgmma_commit() {
#ifdef __CUDACC__
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    host::wgmma_commit();
#endif
}

/// Waits until at most the newest N groups are under way.
template <int N>
DEVICE void wgmma_wait() {
    static_assert(N >= 0 && N <= 7, "at most 7 groups may stay under way");
#ifdef __CUDACC__
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#else
    host::wgmma_wait(N);
#endif
}

/// Keeps the compiler from moving accesses to accumulators across this point.
template <int N>
DEVICE void wgmma_pin([[maybe_unused]] float (&acc)[N]) {
#ifdef __CUDACC__
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(acc[i])::"memory");
#endif
}

#ifdef __CUDACC__
#undef SECATEUR_WGMMA
#undef SECATEUR_ACC_8
#undef SECATEUR_ACC_32
#undef SECATEUR_D_64
#undef SECATEUR_D_128
#undef SECATEUR_D_192
#undef SECATEUR_D_256
#endif

}  // namespace secateur
