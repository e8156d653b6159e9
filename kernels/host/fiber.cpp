// The context switch and the stacks.

#include "host/fiber.h"

#include <string.h>
#include <sys/mman.h>

#include <new>

namespace secateur::host {

namespace {

constexpr size_t fibers_a_mapping = 32;
// Neighbouring stacks start a few cache lines apart in their set, else all of them would compete for the same lines.
constexpr size_t stack_stride = FiberPool::stack_bytes + 5 * 64;
constexpr size_t mapping_bytes = (fibers_a_mapping * stack_stride + 4095) / 4096 * 4096;
constexpr size_t guard_words = 16;
constexpr uint64_t guard = 0x5EC47E0275ACC0DEull;

}  // namespace

#if defined(__APPLE__)
#define SYMBOL(name) "_" #name
#else
#define SYMBOL(name) #name
#endif

#ifdef SECATEUR_UCONTEXT

static void prepare(Fiber& fiber, void (*entry)()) {
    getcontext(&fiber.context.context);
    fiber.context.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.context.uc_stack.ss_size = FiberPool::stack_bytes;
    fiber.context.context.uc_link = nullptr;
    makecontext(&fiber.context.context, entry, 0);
}

#else

#if defined(__x86_64__)

__asm__(
    ".text\n"
    ".p2align 4\n"
    ".globl " SYMBOL(secateur_switch_stack) "\n" SYMBOL(secateur_switch_stack) ":\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n");

static void prepare(Fiber& fiber, void (*entry)()) {
    // Six registers, the address to return to, and above it a null return address: the end of the stack for unwinders.
    auto* top = reinterpret_cast<uint64_t*>(fiber.stack + FiberPool::stack_bytes);
    *--top = 0;
    *--top = reinterpret_cast<uint64_t>(entry);
    for (int i = 0; i < 6; ++i) *--top = 0;
    fiber.context.stack_pointer = top;
}

#else  // aarch64

__asm__(
    ".text\n"
    ".p2align 4\n"
    ".globl " SYMBOL(secateur_switch_stack) "\n" SYMBOL(secateur_switch_stack) ":\n"
    "    sub sp, sp, #160\n"
    "    stp x19, x20, [sp]\n"
    "    stp x21, x22, [sp, #16]\n"
    "    stp x23, x24, [sp, #32]\n"
    "    stp x25, x26, [sp, #48]\n"
    "    stp x27, x28, [sp, #64]\n"
    "    stp x29, x30, [sp, #80]\n"
    "    stp d8, d9, [sp, #96]\n"
    "    stp d10, d11, [sp, #112]\n"
    "    stp d12, d13, [sp, #128]\n"
    "    stp d14, d15, [sp, #144]\n"
    "    mov x9, sp\n"
    "    str x9, [x0]\n"
    "    mov sp, x1\n"
    "    ldp x19, x20, [sp]\n"
    "    ldp x21, x22, [sp, #16]\n"
    "    ldp x23, x24, [sp, #32]\n"
    "    ldp x25, x26, [sp, #48]\n"
    "    ldp x27, x28, [sp, #64]\n"
    "    ldp x29, x30, [sp, #80]\n"
    "    ldp d8, d9, [sp, #96]\n"
    "    ldp d10, d11, [sp, #112]\n"
    "    ldp d12, d13, [sp, #128]\n"
    "    ldp d14, d15, [sp, #144]\n"
    "    add sp, sp, #160\n"
    "    ret\n");

static void prepare(Fiber& fiber, void (*entry)()) {
    auto* frame = reinterpret_cast<uint64_t*>(fiber.stack + FiberPool::stack_bytes - 160);
    memset(frame, 0, 160);
    frame[11] = reinterpret_cast<uint64_t>(entry);  // x30, the link register
    fiber.context.stack_pointer = frame;
}

#endif
#endif

FiberPool::~FiberPool() {
    for (Fiber* fiber : fibers_) delete fiber;
    for (void* mapping : mappings_) munmap(mapping, mapping_bytes);
}

void FiberPool::grow() {
    void* mapping =
        mmap(nullptr, mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    mappings_.push_back(mapping);
    for (size_t i = 0; i < fibers_a_mapping; ++i) {
        auto* fiber = new Fiber{};
        fiber->stack = static_cast<char*>(mapping) + i * stack_stride;
        for (size_t word = 0; word < guard_words; ++word) reinterpret_cast<uint64_t*>(fiber->stack)[word] = guard;
        fibers_.push_back(fiber);
    }
    // In descending order, so that the first taken lie side by side at the start.
    for (size_t i = 0; i < fibers_a_mapping; ++i) free_.push_back(fibers_[fibers_.size() - 1 - i]);
}

Fiber* FiberPool::take() {
    if (free_.empty()) grow();
    Fiber* fiber = free_.back();
    free_.pop_back();
    prepare(*fiber, entry_);
    return fiber;
}

void FiberPool::reset() {
    free_.assign(fibers_.rbegin(), fibers_.rend());
}

bool FiberPool::overflowed() const {
    for (const Fiber* fiber : fibers_) {
        for (size_t word = 0; word < guard_words; ++word) {
            if (reinterpret_cast<const uint64_t*>(fiber->stack)[word] != guard) return true;
        }
    }
    return false;
}

}  // namespace secateur::host
