// Weight gradient of a convolution: rows = output channels, columns = (tap, input channel), the reduction over all pixels.
//
// dw[k,r,s,c] = sum over n, p, q of dy[n,p,q,k] x[n, stride p + r - pad, stride q + s - pad, c]. The pixels are split
// among the blocks of a column of the grid; each writes its f32 sums as one part of a workspace [part][K][columns],
// and a second kernel adds the parts in their order, so the result does not depend on which block ends first. The
// stem's input holds the image as hi and lo parts in 8 channels: the gradient of a colour is the sum over both.
#include "conv/epilogue.cuh"
#include "conv/operands.cuh"
#include "conv/tiles.cuh"

namespace secateur {

struct ConvWeightGradientParams {
    Global<const Bf16> input;            // NHWC
    Global<const Bf16> output_gradient;  // NHWC
    Global<float> workspace;             // [part][K][columns]
    Gather gather;                       // the image is the input, the grid the output
    uint32_t log2_out_channels;
    uint32_t pixels_a_part;
};

template <class T>
using WeightGradientShared = ConvShared<T, Contiguous::Outside, Contiguous::Outside>;

template <class T>
DEVICE void conv_weight_gradient(const ConvWeightGradientParams& p, WeightGradientShared<T>& shared) {
    using O = typename WeightGradientShared<T>::O;
    const uint32_t first_column = blockIdx.x * T::COLUMNS, first_row = blockIdx.y * T::ROWS, part = blockIdx.z;
    const uint32_t columns = p.gather.taps << p.gather.log2_channels;
    const uint32_t first_pixel = part * p.pixels_a_part;
    const uint32_t end_pixel =
        p.gather.pixels - first_pixel < p.pixels_a_part ? p.gather.pixels : first_pixel + p.pixels_a_part;

    const GradientColumns<typename O::SlabA, T::THREADS> gradients{p.output_gradient, p.log2_out_channels, first_row,
                                                                   first_pixel, end_pixel};
    const PixelColumns<typename O::SlabB, T::THREADS> pixels(p.input, p.gather, first_column, first_pixel, end_pixel);
    Sums<T> sums;
    multiply<T>(
        shared.operands, (end_pixel - first_pixel + T::DEPTH - 1) / T::DEPTH,
        [&](uint32_t slab, typename O::SlabA& a, typename O::SlabB& b) {
            gradients.load(slab, a);
            pixels.load(slab, b);
        },
        sums);

    shared.staged.write(sums);
    const int64_t first = (int64_t(part) << p.log2_out_channels) + first_row;
    for (uint32_t index = threadIdx.x; index < T::ROWS * T::COLUMNS / 4; index += T::THREADS) {
        const uint32_t row = index / (T::COLUMNS / 4), column = index % (T::COLUMNS / 4) * 4;
        if (first_column + column >= columns) continue;
        store_vector(p.workspace, (first + row) * columns + first_column + column, shared.staged.four(row, column));
    }
}

KERNEL(conv_weight_gradient_mma_64x192, ConvWeightGradientParams, Tile64x192::THREADS, WeightGradientShared<Tile64x192>) {
    conv_weight_gradient<Tile64x192>(p, shared);
}
KERNEL(conv_weight_gradient_mma_16x64, ConvWeightGradientParams, Tile16x64::THREADS, WeightGradientShared<Tile16x64>) {
    conv_weight_gradient<Tile16x64>(p, shared);
}

struct ConvWeightReduceParams {
    Global<const float> workspace;  // [part][elements]
    Global<float> gradient;         // KRSC, of 3 channels for the stem
    uint32_t elements;              // of one part
    uint32_t parts;
    uint32_t accumulate;            // 1: add to what is there
};

/// Four elements a thread.
KERNEL(conv_weight_gradient_reduce, ConvWeightReduceParams, 128, NoShared) {
    const uint32_t e = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (e >= p.elements) return;
    Float4 sum = load_vector<Float4>(p.workspace, e);
#pragma unroll 8
    for (uint32_t part = 1; part < p.parts; ++part) {
        const Float4 more = load_vector<Float4>(p.workspace, int64_t(part) * p.elements + e);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum.value[i] += more.value[i];
    }
    if (p.accumulate) {
        const Float4 before = load_vector<Float4>(p.gradient, e);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum.value[i] += before.value[i];
    }
    store_vector(p.gradient, e, sum);
}

/// One element of K x 3 x 3 x 3 a thread: the hi and the lo sums of its colour.
KERNEL(conv_weight_gradient_reduce_stem, ConvWeightReduceParams, 128, NoShared) {
    const uint32_t e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= p.elements / 8 * 3) return;
    const uint32_t hi = e / 3 * 8 + e % 3, lo = hi + 3;
    float sum_hi = 0.0f, sum_lo = 0.0f;
    for (uint32_t part = 0; part < p.parts; ++part) {
        sum_hi += p.workspace[int64_t(part) * p.elements + hi];
        sum_lo += p.workspace[int64_t(part) * p.elements + lo];
    }
    const float sum = sum_hi + sum_lo;
    p.gradient[e] = p.accumulate ? p.gradient[e] + sum : sum;
}

}  // namespace secateur
