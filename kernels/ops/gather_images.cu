// A training batch from the resident data set: gather, random crop (32 of 40, padding 4), flip, and f32 in [0, 1].
//
//   x[h][w] = image[h + row - 4][w' + column - 4], w' = flip ? 31 - w : w; outside zero, or the image mirrored at its
//   outermost pixels
//
// Row and column offsets and the flip are words 0, 1 and 2 of the sample's first Philox block. A thread takes one pixel. A
// sample that the set does not have becomes NaN with an impossible label, so that the loss shows it.

#include "portable/portable.h"

namespace secateur {

constexpr uint32_t SIDE = 32;
constexpr uint32_t PIXELS = SIDE * SIDE;

struct GatherParams {
    Global<const uint8_t> set;  // count x 3 x 32 x 32
    Global<const uint32_t> set_labels;
    Global<const uint32_t> samples;
    Global<float> images;  // batch x 32 x 32 x 3
    Global<uint32_t> labels;
    Philox random;
    uint32_t count;
    uint32_t augment;
    uint32_t reflect;
    uint32_t unused;
};

/// A coordinate up to four outside of the image, mirrored into it; the outermost pixels are not repeated.
DEVICE uint32_t mirrored(uint32_t at) {
    // Left of or above the image the unsigned difference has wrapped.
    if (at > SIDE + 4) return 0u - at;
    return at < SIDE ? at : 2 * (SIDE - 1) - at;
}

KERNEL(gather_images, GatherParams, 256, NoShared) {
    const uint32_t image = blockIdx.y;
    const uint32_t pixel = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t sample = p.samples[image];
    const bool known = sample < p.count;
    if (pixel == 0) p.labels[image] = known ? p.set_labels[sample] : 0xFFFFFFFFu;

    uint32_t row = pixel / SIDE, column = pixel % SIDE;
    if (p.augment) {
        const PhiloxBlock random = p.random.block(sample, 0);
        if (random.word[2] & 1) column = SIDE - 1 - column;
        // Left of or above the image the unsigned difference wraps and so lies outside as well.
        row = row + random.word[0] % 9 - 4;
        column = column + random.word[1] % 9 - 4;
        if (p.reflect) {
            row = mirrored(row);
            column = mirrored(column);
        }
    }
    const bool inside = row < SIDE && column < SIDE;
    const int64_t to = (int64_t(image) * PIXELS + pixel) * 3;
#pragma unroll
    for (uint32_t c = 0; c < 3; ++c) {
        float value = known ? 0.0f : NAN;
        if (known && inside) {
            value = float(p.set[int64_t(sample) * 3 * PIXELS + c * PIXELS + row * SIDE + column]) / 255.0f;
        }
        p.images[to + c] = value;
    }
}

}  // namespace secateur
