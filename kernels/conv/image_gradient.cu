// Input gradient of the stem, the gradient with respect to the image, and the attack step that ends in it.
//
// The stem's weights are stored for an input of 8 channels, [hi0, hi1, hi2, lo0, lo1, lo2, 0, 0], the hi and lo
// columns being copies of each other; columns 0..2 give the gradient of the three colours. Two epilogues: the f32
// gradient itself, and one sign step, x' <- clip01(clamp(x' + step sign(g), x - epsilon, x + epsilon)), which also
// writes x' as the stem's next input (hi = bf16(x'), lo = bf16(x' - hi)).
#include "conv/epilogue.cuh"
#include "conv/operands.cuh"
#include "conv/tiles.cuh"

namespace secateur {

struct ConvImageGradientParams {
    Global<const Bf16> output_gradient;  // NHWC, of the stem's output
    Global<const Bf16> weights;          // K, 3, 3, 8
    Global<float> gradient;              // pixels x 3
    Global<const float> images;          // pixels x 3: x, the centre of the ball
    Global<float> perturbed;             // pixels x 3: x', read and written
    Global<Bf16> packed;                 // pixels x 8: x' for the stem
    Gather gather;                       // the image is the output gradient
    float step_size;
    float epsilon;                       // may be infinite
};

using ImageTile = Tile128x16;
using ImageShared = ConvShared<ImageTile, Contiguous::Reduction, Contiguous::Outside>;
constexpr uint32_t STEM_CHANNELS = 8;

/// Leaves the tile's gradient staged: row = pixel, columns 0..2 = colours.
DEVICE void stage_image_gradient(const ConvImageGradientParams& p, ImageShared& shared, uint32_t first_row) {
    using T = ImageTile;
    using O = ImageShared::O;
    const uint32_t reduction = p.gather.taps << p.gather.log2_channels;
    const PixelRows<O::SlabA, T::THREADS, MirroredTaps> pixels(p.output_gradient, p.gather, {}, first_row);
    const WeightColumns<O::SlabB, T::THREADS, MirroredTaps> weights{
        p.weights, {}, reduction, p.gather.log2_channels, p.gather.taps, STEM_CHANNELS, 0};
    Sums<T> sums;
    multiply<T>(
        shared.operands, (reduction + T::DEPTH - 1) / T::DEPTH,
        [&](uint32_t slab, O::SlabA& a, O::SlabB& b) {
            pixels.load(slab, a);
            weights.load(slab, b);
        },
        sums);
    shared.staged.write(sums);
}

KERNEL(conv_image_gradient_mma_128x16, ConvImageGradientParams, ImageTile::THREADS, ImageShared) {
    const uint32_t first_row = blockIdx.x * ImageTile::ROWS;
    stage_image_gradient(p, shared, first_row);
    const uint32_t elements = 3 * rows_of_tile<ImageTile>(p.gather.pixels, first_row);
    for (uint32_t e = threadIdx.x; e < elements; e += ImageTile::THREADS) {
        p.gradient[int64_t(first_row) * 3 + e] = *shared.staged.at(e / 3, e % 3);
    }
}

KERNEL(conv_image_sign_step_mma_128x16, ConvImageGradientParams, ImageTile::THREADS, ImageShared) {
    const uint32_t first_row = blockIdx.x * ImageTile::ROWS;
    stage_image_gradient(p, shared, first_row);
    const uint32_t rows = rows_of_tile<ImageTile>(p.gather.pixels, first_row);

    // Colours one by one, so that neighbouring threads touch neighbouring floats.
    for (uint32_t e = threadIdx.x; e < 3 * rows; e += ImageTile::THREADS) {
        float& staged = *shared.staged.at(e / 3, e % 3);
        const int64_t index = int64_t(first_row) * 3 + e;
        const float sign = float(staged > 0.0f) - float(staged < 0.0f);
        const float x = p.images[index];
        const float moved = p.perturbed[index] + p.step_size * sign;
        const float projected = fminf(fmaxf(moved, x - p.epsilon), x + p.epsilon);
        const float clipped = fminf(fmaxf(projected, 0.0f), 1.0f);
        p.perturbed[index] = clipped;
        staged = clipped;
    }
    syncthreads();

    for (uint32_t row = threadIdx.x; row < rows; row += ImageTile::THREADS) {
        Eight eight{};
#pragma unroll
        for (int colour = 0; colour < 3; ++colour) {
            const float x = *shared.staged.at(row, colour);
            eight.value[colour] = to_float(to_bf16(x));
            eight.value[3 + colour] = x - eight.value[colour];
        }
        store_vector(p.packed, (int64_t(first_row) + row) * STEM_CHANNELS, pack_eight(eight));
    }
}

}  // namespace secateur
