// Where a convolution reads: pixels of a grid, taps of a kernel, and the image they gather from.
//
// Every convolution here is a GEMM whose rows (forward, input gradient) or whose reduction (weight gradient) runs over
// the pixels of a grid, in the order image, row, column. A pixel has a place in the gathered NHWC image, and a tap is
// a displacement from it; a displacement out of the image reads zero. Sides and channels are powers of two, so places
// come from shifts and masks.
#pragma once

#include "portable/portable.h"

namespace secateur {

/// The grid and the image of one convolution; mirrored in src/cuda/launch/conv/params.rs.
struct Gather {
    uint32_t pixels;             // of the grid, all images together
    uint32_t log2_grid_side;     // of one image
    uint32_t log2_image_side;    // of the gathered image; the ratio of the two is the stride
    uint32_t log2_channels;      // of the gathered image, at least 8 channels
    uint32_t taps;               // 9 or 1; a phase of a strided input gradient takes only some of them
};

/// A place in the gathered image, or a displacement in it.
struct Place {
    int32_t row, column;
};

/// Image and place of a pixel of the grid.
struct Pixel {
    uint32_t image;
    Place place;
};

DEVICE Pixel pixel_of(const Gather& g, uint32_t index) {
    const uint32_t within = (1u << g.log2_grid_side) - 1;
    const uint32_t log2_stride = g.log2_image_side - g.log2_grid_side;
    return {index >> (2 * g.log2_grid_side),
            {int32_t(((index >> g.log2_grid_side) & within) << log2_stride), int32_t((index & within) << log2_stride)}};
}

/// Whether the place lies inside the image.
DEVICE bool inside(const Gather& g, Place at) {
    const uint32_t side = 1u << g.log2_image_side;
    return uint32_t(at.row) < side && uint32_t(at.column) < side;
}

/// Element of channel 0 at this place of image 0; also the element offset of a displacement.
DEVICE int32_t element(const Gather& g, Place at) {
    return (at.row * (1 << g.log2_image_side) + at.column) * (1 << g.log2_channels);
}

/// Row of tap 0..8 in a 3 x 3 kernel: tap / 3 without a division.
DEVICE uint32_t tap_row(uint32_t tap) { return (tap * 11) >> 5; }

/// The taps of a forward convolution: input(stride * p + r - padding) for tap (r, s). A 1 x 1 kernel has one, at (0, 0).
struct ForwardTaps {
    DEVICE static Place at(const Gather& g, uint32_t tap) {
        const int32_t padding = g.taps == 9 ? 1 : 0;
        const int32_t r = int32_t(tap_row(tap));
        return {r - padding, int32_t(tap) - 3 * r - padding};
    }
};

/// The taps of a stride 1 input gradient, the same mirrored: output gradient(h + 1 - r).
struct MirroredTaps {
    DEVICE static Place at(const Gather&, uint32_t tap) {
        const int32_t r = int32_t(tap_row(tap));
        return {1 - r, 1 - (int32_t(tap) - 3 * r)};
    }
    /// Position of the tap in the weights.
    DEVICE uint32_t weight_tap(uint32_t tap) const { return tap; }
};

/// The taps that reach input pixels (2 i + row, 2 j + column) through a stride of 2.
///
/// Output p meets input h = 2 p - 1 + r. An even h = 2 i takes r = 1 from p = i; an odd one r = 0 from p = i + 1 and r = 2
/// from p = i. So a phase has (1 + row) * (1 + column) taps, and a 1 x 1 kernel reaches phase (0, 0) alone.
struct PhaseTaps {
    uint32_t row, column;   // 0 or 1
    uint32_t kernel_taps;   // 9 or 1: taps of the whole kernel

    DEVICE Place at(const Gather&, uint32_t tap) const {
        return {int32_t(row - (tap >> column)), int32_t(column - (tap & column))};
    }
    DEVICE uint32_t weight_tap(uint32_t tap) const {
        if (kernel_taps == 1) return 0;
        const uint32_t r = 1 - row + 2 * (tap >> column), s = 1 - column + 2 * (tap & column);
        return 3 * r + s;
    }
};

}  // namespace secateur
