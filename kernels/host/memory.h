// Checked device memory of the emulator.
//
// A device address is a handle: bits 40..63 say which allocation (16 bits of slot, 8 bits of generation), bits 0..39 the
// byte offset, counted from the middle, so that arithmetic below the start of a buffer still names that buffer. A slot is
// used again only after all others, and with the next generation: an address of freed memory stays invalid.
#pragma once

#include <stdint.h>

namespace secateur::host {

struct Allocation {
    /// Upper 24 bits of the addresses that belong here; 0 where nothing lives, and no address has that.
    uint64_t tag;
    uint64_t size;
    char* base;
};

constexpr int offset_bits = 40;
constexpr uint64_t offset_origin = 1ull << (offset_bits - 1);
constexpr uint32_t slots = 1u << 16;

extern Allocation allocations[slots];

/// Ends the launch with a message that says what is wrong with this access.
[[noreturn]] void bad_access(uint64_t address, uint64_t bytes, uint64_t alignment);

/// The memory behind `bytes` bytes at `address`.
inline void* resolve(uint64_t address, uint64_t bytes, uint64_t alignment) {
    const uint64_t tag = address >> offset_bits;
    const Allocation& allocation = allocations[tag % slots];
    const uint64_t offset = (address & ((1ull << offset_bits) - 1)) - offset_origin;
    const bool good = allocation.tag == tag && offset < allocation.size && allocation.size - offset >= bytes &&
                      (offset & (alignment - 1)) == 0 && tag != 0;
    if (__builtin_expect(!good, 0)) bad_access(address, bytes, alignment);
    return allocation.base + offset;
}

}  // namespace secateur::host
