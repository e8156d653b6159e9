// Allocating, freeing and explaining bad accesses.

#include "host/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <deque>
#include <mutex>
#include <string>

#include "host/library.h"
#include "host/emulator.h"

namespace secateur::host {

Allocation allocations[slots];

namespace {

constexpr size_t base_alignment = 256;  // what cudaMalloc promises

struct Slot {
    std::string name;
    uint64_t size = 0;
};

/// What only allocation, freeing and error messages need.
struct Ledger {
    std::mutex mutex;
    std::deque<uint32_t> free;
    Slot slot[slots];
    uint32_t generation[slots];

    Ledger() {
        for (uint32_t i = 0; i < slots; ++i) {
            free.push_back(i);
            generation[i] = 1;
        }
    }
};

Ledger& ledger() {
    static auto* instance = new Ledger;  // never destroyed: buffers may be freed while the program ends
    return *instance;
}

/// Why an access is bad, or an empty string.
std::string diagnosis(uint64_t address, uint64_t bytes, uint64_t alignment) {
    if (address >> offset_bits == 0) return "null device pointer";
    const uint64_t tag = address >> offset_bits;
    const auto offset = int64_t((address & ((1ull << offset_bits) - 1)) - offset_origin);
    Ledger& l = ledger();
    const std::lock_guard<std::mutex> lock(l.mutex);
    const uint32_t slot = uint32_t(tag % slots);
    const uint32_t generation = uint32_t(tag / slots);
    const Allocation& allocation = allocations[slot];
    char text[256];
    if (allocation.tag != tag) {
        const bool freed = generation != 0 && generation + 1 == l.generation[slot] && !l.slot[slot].name.empty();
        if (freed) {
            snprintf(text, sizeof text, "%llu bytes at byte offset %lld of buffer '%s': use after free",
                     (unsigned long long)bytes, (long long)offset, l.slot[slot].name.c_str());
        } else {
            snprintf(text, sizeof text, "0x%016llx is not a device address of this emulator", (unsigned long long)address);
        }
        return text;
    }
    const auto size = int64_t(allocation.size);
    const char* wrong = nullptr;
    if (offset < 0 || offset + int64_t(bytes) > size) {
        wrong = "out of bounds";
    } else if (offset & int64_t(alignment - 1)) {
        wrong = "misaligned";
    } else {
        return "";
    }
    snprintf(text, sizeof text, "%llu bytes at byte offset %lld of buffer '%s' (%lld bytes): %s",
             (unsigned long long)bytes, (long long)offset, l.slot[slot].name.c_str(), (long long)size, wrong);
    return text;
}

}  // namespace

void bad_access(uint64_t address, uint64_t bytes, uint64_t alignment) {
    fault("%s", diagnosis(address, bytes, alignment).c_str());
}

}  // namespace secateur::host

using namespace secateur::host;

uint64_t secateur_host_alloc(const char* name, size_t name_bytes, uint64_t bytes) {
    if (bytes > offset_origin) return 0;
    const uint64_t whole = (bytes + base_alignment - 1) / base_alignment * base_alignment + base_alignment;
    auto* base = static_cast<char*>(aligned_alloc(base_alignment, whole));
    if (base == nullptr) return 0;
    memset(base, 0xFF, whole);
    Ledger& l = ledger();
    const std::lock_guard<std::mutex> lock(l.mutex);
    if (l.free.empty()) {
        free(base);
        return 0;
    }
    const uint32_t slot = l.free.front();
    l.free.pop_front();
    l.slot[slot] = {std::string(name, name_bytes), bytes};
    const uint64_t tag = uint64_t(l.generation[slot]) * slots + slot;
    allocations[slot] = {tag, bytes, base};
    return (tag << offset_bits) + offset_origin;
}

int secateur_host_free(uint64_t address) {
    const uint64_t tag = address >> offset_bits;
    const uint32_t slot = uint32_t(tag % slots);
    Ledger& l = ledger();
    const std::lock_guard<std::mutex> lock(l.mutex);
    Allocation& allocation = allocations[slot];
    if (tag == 0 || allocation.tag != tag || (address & ((1ull << offset_bits) - 1)) != offset_origin) return 1;
    free(allocation.base);
    allocation = {0, 0, nullptr};
    l.generation[slot] = l.generation[slot] == 255 ? 1 : l.generation[slot] + 1;
    l.free.push_back(slot);
    return 0;
}

void* secateur_host_memory(uint64_t address, uint64_t bytes, char* message, size_t message_bytes) {
    const std::string wrong = diagnosis(address, bytes, 1);
    if (wrong.empty()) return allocations[(address >> offset_bits) % slots].base + (address & ((1ull << offset_bits) - 1)) - offset_origin;
    snprintf(message, message_bytes, "%s", wrong.c_str());
    return nullptr;
}
