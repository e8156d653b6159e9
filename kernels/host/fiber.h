// Fibers: stacks between which one OS thread switches by hand, at the cost of a few register moves.
//
// The emulator gives one to each CUDA thread that has to wait. Written for x86-64 and aarch64, with ucontext elsewhere.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#define SECATEUR_UCONTEXT 1
#endif

namespace secateur::host {

/// A place to come back to: an OS thread's own stack, or a fiber's.
struct Context {
#ifdef SECATEUR_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer;
#endif
};

#ifndef SECATEUR_UCONTEXT
/// Stores what the calling convention asks a callee to keep, swaps the stack pointer, restores; in fiber.cpp.
extern "C" void secateur_switch_stack(void** save, void* load);
#endif

/// Leaves `from` and goes on where `to` was left; returns when somebody switches to `from`.
inline void switch_context(Context& from, Context& to) {
#ifdef SECATEUR_UCONTEXT
    swapcontext(&from.context, &to.context);
#else
    secateur_switch_stack(&from.stack_pointer, to.stack_pointer);
#endif
}

struct Fiber {
    Context context;
    char* stack;
};

/// The stacks of one OS thread, mapped once and used again for every block. `entry` never returns.
class FiberPool {
public:
    explicit FiberPool(void (*entry)()) : entry_(entry) {}
    ~FiberPool();
    FiberPool(const FiberPool&) = delete;
    FiberPool& operator=(const FiberPool&) = delete;

    /// A fiber that will start at `entry`.
    Fiber* take();
    /// The fiber may be taken again; it may still be running, up to its last switch.
    void give(Fiber* fiber) { free_.push_back(fiber); }
    /// Takes all fibers back, whatever they were doing.
    void reset();
    /// Whether some fiber taken since the last reset ran over the end of its stack.
    bool overflowed() const;

    /// Bytes a fiber may use: local arrays of a kernel, and the unwinder when it fails.
    static constexpr size_t stack_bytes = 64 * 1024;

private:
    void grow();

    void (*entry_)();
    std::vector<Fiber*> fibers_;
    std::vector<Fiber*> free_;
    std::vector<void*> mappings_;
};

}  // namespace secateur::host
