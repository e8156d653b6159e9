// Waits that end: a thread that has waited for more than a second says where, and the launch is an error.
//
// A trap ends every block of the launch and makes the context useless, all device memory with it. What survives is memory of the
// host that the device can write: the driver gives its address to each module that waits (`secateur_wait_report`) and reads it
// when a call has failed. On the emulator time passes only where no thread can go on.
#pragma once

#include "portable/kernel.h"

namespace secateur {

/// Nanoseconds after which a wait is taken for one without end. A barrier counts what its block and its copies do, never another
/// launch: microseconds. A debugger that stops the GPU for longer is not told from a hang.
constexpr uint32_t WAIT_LIMIT = 1000000000;

/// A barrier by its name in the source, at most 16 characters: four words, so that no string has to lie in device memory.
struct BarrierName {
    uint32_t word[4];

    template <uint32_t N>
    DEVICE constexpr BarrierName(const char (&name)[N]) : word{} {
        static_assert(N <= sizeof word + 1, "at most 16 characters");
        for (uint32_t i = 0; i + 1 < N; ++i) word[i / 4] |= uint32_t(uint8_t(name[i])) << (8 * (i % 4));
    }
};

/// What a thread waits for, as the error of a wait without end names it: kernel_id of its kernel, and the barrier.
struct Waiting {
    uint32_t kernel;
    BarrierName barrier;
};

/// What that error is made of; mirrored in src/cuda/driver/wait_report.rs.
struct alignas(16) WaitRecord {
    uint32_t barrier[4];
    uint32_t block[3];
    uint32_t thread;
    uint32_t kernel;  // 0 until all else is written
    uint32_t unused[3];
};

#ifdef __CUDACC__
/// Of each module: the driver sets `record`, and the first thread to claim it writes there.
struct WaitReport {
    WaitRecord* record;
    uint32_t claimed;
    uint32_t unused;
};
extern "C" {
__device__ WaitReport secateur_wait_report;
}

// Tries until `try_wait`, an instruction that sets the predicate `done`, does so. After a first failure comes the clock, and after
// WAIT_LIMIT the record and the trap: of several threads the first alone, for the trap of another might end the launch before its
// words have left the GPU. One statement, which the compiler cannot take apart: written in C++ it cost the loops around it their
// shape, and six kernels spilled.
#define SECATEUR_BOUNDED_WAIT(try_wait, b, parity, waiting)                                           \
    asm volatile(                                                                                     \
        "{\n"                                                                                         \
        ".reg .pred done, early, first;\n"                                                            \
        ".reg .b32 begin, now, x, y, z;\n"                                                            \
        ".reg .b64 record;\n"                                                                         \
        try_wait                                                                                      \
        "@done bra over;\n"                                                                           \
        "mov.u32 begin, %%globaltimer_lo;\n"                                                          \
        "again:\n"                                                                                    \
        try_wait                                                                                      \
        "@done bra over;\n"                                                                           \
        "mov.u32 now, %%globaltimer_lo;\n"                                                            \
        "sub.u32 now, now, begin;\n"                                                                  \
        "setp.le.u32 early, now, %7;\n"                                                               \
        "@early bra again;\n"                                                                         \
        "atom.global.exch.b32 now, [secateur_wait_report + 8], 1;\n"                                  \
        "setp.eq.u32 first, now, 0;\n"                                                                \
        "@first bra report;\n"                                                                        \
        "stay:\n"                                                                                     \
        "nanosleep.u32 1000;\n"                                                                       \
        "bra stay;\n"                                                                                 \
        "report:\n"                                                                                   \
        "ld.global.u64 record, [secateur_wait_report];\n"                                             \
        "st.volatile.v4.u32 [record], {%3, %4, %5, %6};\n"                                            \
        "mov.u32 x, %%ctaid.x;\n"                                                                     \
        "mov.u32 y, %%ctaid.y;\n"                                                                     \
        "mov.u32 z, %%ctaid.z;\n"                                                                     \
        "mov.u32 now, %%tid.x;\n"                                                                     \
        "st.volatile.v4.u32 [record + 16], {x, y, z, now};\n"                                         \
        "membar.sys;\n"                                                                               \
        "st.volatile.u32 [record + 32], %2;\n"                                                        \
        "membar.sys;\n"                                                                               \
        "trap;\n"                                                                                     \
        "over:\n"                                                                                     \
        "}" ::"r"(shared_address(&(b))),                                                              \
        "r"(parity), "r"(waiting.kernel), "r"(waiting.barrier.word[0]), "r"(waiting.barrier.word[1]), \
        "r"(waiting.barrier.word[2]), "r"(waiting.barrier.word[3]), "n"(WAIT_LIMIT)                   \
        : "memory")
#endif

}  // namespace secateur
