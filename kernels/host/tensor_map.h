// Tensor maps of the emulator, and the copies that go through them. The encoding is written by
// src/cuda/driver/tensor_map.rs, which also checks it against what a GPU takes.
#pragma once

#include <stdint.h>

namespace secateur::host {

struct Thread;
struct BlockState;

/// How 16-byte chunks are permuted: address bits 4.. are xored with as many bits from 7 on.
enum class Swizzle : uint8_t { none, bytes_32, bytes_64, bytes_128 };

/// The 128 bytes of a TensorMap on the host.
struct HostTensorMap {
    static constexpr uint32_t tiled = 0x5EC47E01, im2col = 0x5EC47E02;

    uint32_t kind;
    uint8_t rank;
    uint8_t element_bytes;
    Swizzle swizzle;
    uint8_t unused;
    uint64_t address;
    /// Bytes between neighbours in dimensions 1 to 4.
    uint64_t stride[4];
    uint32_t dim[5];
    /// Tiled: elements of the tensor that a box spans.
    uint16_t box[5];
    /// Every which element is taken.
    uint8_t step[6];
    /// im2col: the pixel box in w and h, from lower to dim - 1 + upper; channels a pixel and pixels a load.
    int16_t lower[2];
    int16_t upper[2];
    uint16_t channels;
    uint16_t pixels;
    uint8_t reserved[32];
};
static_assert(sizeof(HostTensorMap) == 128, "a tensor map is 128 bytes everywhere");

/// What a PendingLoad copies: a box through a map, bytes of device memory, or a value that a thread stored.
enum class LoadKind : uint8_t { box, bulk, value };

/// A load, or a store to another block, between its issue and its execution.
struct PendingLoad {
    Thread* thread;
    /// Places in the shared memory of each block that gets it.
    uint32_t to;
    uint32_t full;
    /// Ranks of those blocks.
    uint32_t blocks;
    /// Bytes that complete.
    uint32_t bytes;
    LoadKind kind;
    HostTensorMap map;
    int32_t at[5];
    uint16_t offset_w, offset_h;
    const void* from;
    unsigned char value[16];
};

/// A store, likewise.
struct PendingStore {
    Thread* thread;
    BlockState* block;
    uint32_t from;
    uint32_t group;
    bool done;
    HostTensorMap map;
    int32_t at[5];
};

/// `offset` in shared memory after swizzling.
inline uint32_t swizzled(Swizzle swizzle, uint32_t offset) {
    const uint32_t mask = (1u << static_cast<uint32_t>(swizzle)) - 1;
    return offset ^ ((offset >> 7 & mask) << 4);
}

/// Bytes of a whole box.
uint32_t box_bytes(const HostTensorMap& map);
/// Copies between the boxes in shared and device memory; the host address of a row that lies in the tensor, even in part, is
/// checked against its allocation.
void read_box(const PendingLoad& load);
void write_box(const PendingStore& store);

}  // namespace secateur::host
