// What a convolution on wgmma loads and multiplies: slots of pixel planes, the taps that each slot serves, and tiles.
//
// Weights are the M side of the product and pixels the N side: a warpgroup computes 64 channels of 256 pixels, so that one
// m64n256k16 reads 10 KiB of shared memory for 524 kFLOP. The 256 pixels are `rows` rows of `images` images. They lie in
// shared memory in planes: row by row, in a row image by image, in an image pixel by pixel, 64 channels (128 bytes) a pixel.
// Planes are whole swizzle atoms, so the taps of one column of the kernel are the same slot read some planes further on: a
// 3 x 3 kernel loads its pixels in three copies (one a column, each with two extra planes) in place of nine, and every operand
// starts on an atom. Rows and images outside the tensor are zeros, which TMA writes.
//
// Forward with stride 2 reads the image as four interleaved images (one for each parity of row and column); its input gradient
// writes them. Everything else that differs between the convolutions is in the slots, which
// src/cuda/launch/conv/wgmma/plan.rs makes.
#pragma once

#include "portable/cluster.h"
#include "portable/mbarrier.h"
#include "portable/portable.h"
#include "portable/matrix_store.h"
#include "portable/tma.h"
#include "portable/wgmma.h"

namespace secateur {

constexpr uint32_t GROUP_CHANNELS = 64;   // M of one warpgroup's products
constexpr uint32_t GROUP_PIXELS = 256;    // N
constexpr uint32_t DEPTH_CHANNELS = 64;   // of the reduction in one slot: 128 bytes a pixel
constexpr uint32_t PIXEL_BYTES = 128;
/// Sub-tiles of the output pass through two buffers a warpgroup: 64 pixels of 64 channels, in the layout of TMA.
constexpr uint32_t STAGE_PIXELS = 64;
constexpr uint32_t STAGE_BYTES = STAGE_PIXELS * PIXEL_BYTES;

/// Sums of a thread: row 16 warp + lane / 4 (+ 8 where bit 1 of e is set) and column 8 j + 2 (lane % 4) (+ 1 where bit 0
/// is), for e + 4 j.
using WgmmaSums = float[GROUP_PIXELS / 2];

/// One load of pixel planes, and the taps that read it. Plane and weight tap of tap t are in byte t of the words.
struct Slot {
    uint8_t map;         // which of the parameter's pixel maps
    int8_t row, column;  // displacement of its first plane and of its first pixel
    uint8_t taps;        // 1 to 3
    uint32_t planes;     // first plane of each tap
    uint32_t weights;    // position of each tap in the kernel
};

/// A set of output pixels with taps of their own: the whole output, or one parity of a strided input gradient.
struct Phase {
    uint32_t first_slot;
    uint32_t slots;
};

/// Mirrored in src/cuda/launch/conv/wgmma/params.rs.
struct WgmmaPlan {
    Slot slots[12];
    Phase phases[4];
    uint32_t phase_count;
    uint32_t phase_tiles;       // tiles of one phase
    uint32_t log2_channel_tiles;  // of which so many share their pixels
    uint32_t chunks;            // of 64 channels of the reduction
    uint32_t log2_side;         // of an image of the output grid
    uint32_t log2_images;       // of one group of pixels
    uint32_t batch;             // images
    uint32_t plane_bytes;       // in shared memory: side x images x 128
    uint32_t slot_bytes;        // planes of a slot, all loaded
    uint32_t prefetched;        // maps of pixels to fetch ahead, and with them the others; 0: none
};

DEVICE uint32_t byte_of(uint32_t word, uint32_t at) { return word >> (8 * at) & 0xFF; }

/// Where a group of 256 pixels lies on the output grid.
struct PixelGroup {
    uint32_t image, row;
};

DEVICE PixelGroup pixel_group(const WgmmaPlan& plan, uint32_t group) {
    // rows x images x side = 256, so an image has side^2 images / 256 groups where it has more than one.
    const uint32_t log2_area = 2 * plan.log2_side + plan.log2_images;
    const uint32_t log2_groups = log2_area - 8;
    const uint32_t log2_rows = 8 - plan.log2_side - plan.log2_images;
    return {(group >> log2_groups) << plan.log2_images, (group & ((1u << log2_groups) - 1)) << log2_rows};
}

/// What one warpgroup finishes: 64 channels of a group of pixels, or of its second half where `first` is 128. Pixels and
/// sub-tiles count from there.
struct GroupTile {
    uint32_t group;    // of pixels
    uint32_t channel;  // the first
    uint32_t first;    // pixel of the group
    PixelGroup at;
};

/// A pixel of the output grid, and whether it is there.
struct GridPixel {
    uint32_t image, row, column;
    bool valid;
};

/// Where TMA writes or reads a sub-tile.
struct StageBox {
    int32_t at[4];
};

/// How pixels are loaded, and which of them a product computes: planes. A tile names its order of pixels (`T::Pixels`).
struct Planes {
    /// One slot of a group of pixels, 64 channels from `depth` on.
    DEVICE static void load(void* to, const TensorMap* maps, Mbarrier& full, const WgmmaPlan& plan, uint32_t group,
                            const Slot& slot, int32_t depth) {
        const PixelGroup at = pixel_group(plan, group);
        tma_load<4>(to, maps[slot.map], full, {depth, slot.column, int32_t(at.image), int32_t(at.row) + slot.row});
    }

    /// Pixel `index` of a tile.
    DEVICE static GridPixel pixel(const WgmmaPlan& plan, const GroupTile& tile, uint32_t index) {
        index += tile.first;
        const uint32_t image = tile.at.image + (index >> plan.log2_side & ((1u << plan.log2_images) - 1));
        return {image, tile.at.row + (index >> (plan.log2_side + plan.log2_images)), index & ((1u << plan.log2_side) - 1),
                image < plan.batch};
    }

    /// Sub-tile `stage` of a tile.
    DEVICE static StageBox box(const WgmmaPlan& plan, const GroupTile& tile, uint32_t stage) {
        stage += tile.first / STAGE_PIXELS;
        const uint32_t rows = STAGE_PIXELS >> (plan.log2_side + plan.log2_images);
        return {{int32_t(tile.channel), 0, int32_t(tile.at.image), int32_t(tile.at.row + stage * rows)}};
    }
};

/// What one step of the persistent loop computes.
struct Work {
    Phase phase;
    uint32_t phase_index;
    uint32_t channel_tile;
    uint32_t pixel_tile;
};

DEVICE uint32_t work_count(const WgmmaPlan& plan) { return plan.phase_count * plan.phase_tiles; }

DEVICE Work work_at(const WgmmaPlan& plan, uint32_t tile) {
    uint32_t phase = 0;
    while (tile >= plan.phase_tiles) {
        tile -= plan.phase_tiles;
        ++phase;
    }
    return {plan.phases[phase], phase, tile & ((1u << plan.log2_channel_tiles) - 1), tile >> plan.log2_channel_tiles};
}

}  // namespace secateur
