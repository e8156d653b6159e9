// How the operands of the convolutions reach shared memory: gathers from images, and rows of weights.
//
// Each thread copies chunks of 16 bytes, eight channels of one tap, at fixed places of a slab; whatever does not
// change from slab to slab is computed once.
#pragma once

#include "conv/geometry.cuh"
#include "conv/tile.cuh"

namespace secateur {

/// Which chunks of a slab a thread copies: a column of a 128-byte group, in rows STRIDE apart, in every group.
template <class S, int THREADS>
struct Share {
    static constexpr int GROUP = S::CHUNKS < 8 ? S::CHUNKS : 8;
    static constexpr int GROUPS = S::CHUNKS / GROUP;
    static constexpr int STRIDE = THREADS / GROUP;
    static constexpr int PASSES = S::ROWS < STRIDE ? 1 : S::ROWS / STRIDE;
    static_assert(S::ROWS % STRIDE == 0 || S::ROWS < STRIDE, "passes are whole");

    DEVICE static uint32_t row(int pass) { return threadIdx.x / GROUP + uint32_t(pass) * STRIDE; }
    DEVICE static uint32_t chunk(int group) { return threadIdx.x % GROUP + uint32_t(group) * GROUP; }
    /// Small slabs leave some threads without work.
    DEVICE static bool takes_part() { return S::ROWS >= STRIDE || threadIdx.x / GROUP < S::ROWS; }
};

/// A rows: pixels of the grid; the reduction runs over taps and, within a tap, over channels.
template <class S, int THREADS, class Taps>
struct PixelRows {
    using Mine = Share<S, THREADS>;
    static_assert(Mine::GROUPS == 1, "one column of chunks a thread");

    Global<const Bf16> image;
    Gather gather;
    Taps taps;
    int32_t first[Mine::PASSES];    // element of the pixel's own place
    uint32_t valid[Mine::PASSES];   // bit t: tap t reads inside the image

    DEVICE PixelRows(Global<const Bf16> image, const Gather& gather, const Taps& taps, uint32_t first_pixel)
        : image(image), gather(gather), taps(taps) {
#pragma unroll
        for (int pass = 0; pass < Mine::PASSES; ++pass) {
            const uint32_t index = first_pixel + Mine::row(pass);
            const Pixel pixel = pixel_of(gather, index);
            first[pass] = int32_t(pixel.image << (2 * gather.log2_image_side + gather.log2_channels)) +
                          element(gather, pixel.place);
            valid[pass] = 0;
#pragma unroll
            for (uint32_t tap = 0; tap < 9; ++tap) {
                const Place shift = taps.at(gather, tap);
                const Place at{pixel.place.row + shift.row, pixel.place.column + shift.column};
                if (tap < gather.taps && index < gather.pixels && inside(gather, at)) valid[pass] |= 1u << tap;
            }
        }
    }

    DEVICE void load(uint32_t slab, S& to) const {
        if (!Mine::takes_part()) return;
        const uint32_t k = slab * S::COLUMNS + Mine::chunk(0) * CHUNK;
        const uint32_t tap = k >> gather.log2_channels;
        const int32_t offset = element(gather, taps.at(gather, tap)) + int32_t(k & ((1u << gather.log2_channels) - 1));
#pragma unroll
        for (int pass = 0; pass < Mine::PASSES; ++pass) {
            cp_async_16(to.chunk(Mine::row(pass), Mine::chunk(0)), image, first[pass] + offset, (valid[pass] >> tap) & 1);
        }
    }
};

/// B rows of a forward convolution: output channels, the reduction contiguous as in the KRSC weights.
template <class S, int THREADS>
struct WeightRows {
    using Mine = Share<S, THREADS>;

    Global<const Bf16> weights;
    uint32_t reduction;       // elements of one output channel
    uint32_t first_channel;

    DEVICE void load(uint32_t slab, S& to) const {
        if (!Mine::takes_part()) return;
        const uint32_t k = slab * S::COLUMNS + Mine::chunk(0) * CHUNK;
#pragma unroll
        for (int pass = 0; pass < Mine::PASSES; ++pass) {
            const uint32_t row = Mine::row(pass);
            cp_async_16(to.chunk(row, Mine::chunk(0)), weights, (first_channel + row) * reduction + k, k < reduction);
        }
    }
};

/// B of an input gradient: the reduction (tap, output channel) runs down the rows, input channels across them, as they lie
/// in the same KRSC weights.
template <class S, int THREADS, class Taps>
struct WeightColumns {
    using Mine = Share<S, THREADS>;

    Global<const Bf16> weights;
    Taps taps;
    uint32_t reduction;          // taps in use * output channels
    uint32_t log2_out_channels;
    uint32_t kernel_taps;        // 9 or 1
    uint32_t in_channels;
    uint32_t first_channel;

    DEVICE void load(uint32_t slab, S& to) const {
        if (!Mine::takes_part()) return;
#pragma unroll
        for (int pass = 0; pass < Mine::PASSES; ++pass) {
            const uint32_t row = Mine::row(pass);
            const uint32_t k = slab * S::ROWS + row;
            const uint32_t out_channel = k & ((1u << log2_out_channels) - 1);
            const uint32_t weight_row = out_channel * kernel_taps + taps.weight_tap(k >> log2_out_channels);
#pragma unroll
            for (int group = 0; group < Mine::GROUPS; ++group) {
                const uint32_t channel = first_channel + Mine::chunk(group) * CHUNK;
                cp_async_16(to.chunk(row, Mine::chunk(group)), weights, weight_row * in_channels + channel,
                            k < reduction && channel < in_channels);
            }
        }
    }
};

/// A of a weight gradient: pixels down the rows, output channels across them, as the output gradient lies in memory.
template <class S, int THREADS>
struct GradientColumns {
    using Mine = Share<S, THREADS>;

    Global<const Bf16> gradient;
    uint32_t log2_channels;
    uint32_t first_channel;
    uint32_t first_pixel, end_pixel;

    DEVICE void load(uint32_t slab, S& to) const {
        if (!Mine::takes_part()) return;
#pragma unroll
        for (int pass = 0; pass < Mine::PASSES; ++pass) {
            const uint32_t row = Mine::row(pass);
            const uint32_t pixel = first_pixel + slab * S::ROWS + row;
#pragma unroll
            for (int group = 0; group < Mine::GROUPS; ++group) {
                const uint32_t chunk = Mine::chunk(group);
                cp_async_16(to.chunk(row, chunk), gradient, (pixel << log2_channels) + first_channel + chunk * CHUNK,
                            pixel < end_pixel);
            }
        }
    }
};

/// B of a weight gradient: pixels down the rows; across them (tap, input channel), of which each thread keeps its own.
template <class S, int THREADS>
struct PixelColumns {
    using Mine = Share<S, THREADS>;

    Global<const Bf16> image;
    Gather gather;
    uint32_t first_pixel, end_pixel;
    Place shift[Mine::GROUPS];
    int32_t offset[Mine::GROUPS];
    bool valid[Mine::GROUPS];

    DEVICE PixelColumns(Global<const Bf16> image, const Gather& gather, uint32_t first_column, uint32_t first_pixel,
                        uint32_t end_pixel)
        : image(image), gather(gather), first_pixel(first_pixel), end_pixel(end_pixel) {
#pragma unroll
        for (int group = 0; group < Mine::GROUPS; ++group) {
            const uint32_t column = first_column + Mine::chunk(group) * CHUNK;
            const uint32_t tap = column >> gather.log2_channels;
            shift[group] = ForwardTaps::at(gather, tap);
            offset[group] = element(gather, shift[group]) + int32_t(column & ((1u << gather.log2_channels) - 1));
            valid[group] = tap < gather.taps;
        }
    }

    DEVICE void load(uint32_t slab, S& to) const {
        if (!Mine::takes_part()) return;
#pragma unroll
        for (int pass = 0; pass < Mine::PASSES; ++pass) {
            const uint32_t row = Mine::row(pass);
            const uint32_t index = first_pixel + slab * S::ROWS + row;
            const Pixel pixel = pixel_of(gather, index);
            const int32_t first = int32_t(pixel.image << (2 * gather.log2_image_side + gather.log2_channels)) +
                                  element(gather, pixel.place);
#pragma unroll
            for (int group = 0; group < Mine::GROUPS; ++group) {
                const Place at{pixel.place.row + shift[group].row, pixel.place.column + shift[group].column};
                cp_async_16(to.chunk(row, Mine::chunk(group)), image, first + offset[group],
                            valid[group] && index < end_pixel && inside(gather, at));
            }
        }
    }
};

}  // namespace secateur
