// Weight gradient of a convolution on wgmma: rows = output channels, columns = (tap, input channel), the reduction over pixels.
//
// Targets: sm_90a
//
// The same sums and the same workspace [part][K][columns] as conv/weight_gradient.cu, whose second kernel adds the parts. A block
// takes one slot of the forward plan (the taps of one column of the kernel, 64 input channels) and some groups of 256 pixels.
// Both operands lie with their channels contiguous and pixels down the rows, so both are MN-major. The taps of a slot are the
// same planes read one plane further on each: the distance from one 64 columns to the next is a plane, and one product covers
// all taps. Two warpgroups share the pixels and take 64 output channels each, or, where there are only 64, half of the pixels
// each, as two parts.
#include "conv/wgmma/pipeline.cuh"

namespace secateur {

struct WgmmaWeightGradientParams {
    TensorMap pixels[4];        // as forward
    TensorMap output_gradient;  // 64 channels of 256 pixels
    Global<float> workspace;    // [part][K][columns]
    uint32_t columns;
    uint32_t log2_in_channels;
    uint32_t log2_out_channels;
    uint32_t groups;            // of pixels
    uint32_t groups_a_part;
    uint32_t unused;
    WgmmaPlan plan;
};

template <int CHANNEL_GROUPS_, uint32_t SLOT_BYTES_, int SLOTS_>
struct WeightTile {
    static constexpr int CHANNEL_GROUPS = CHANNEL_GROUPS_, SLOTS = SLOTS_;
    static constexpr int CONSUMERS = 2, THREADS = 128 * (1 + CONSUMERS);
    static constexpr uint32_t SLOT_BYTES = SLOT_BYTES_, GROUP_BYTES = GROUP_PIXELS * PIXEL_BYTES;
    /// Warpgroups that share the same output channels, each with a part of the pixels.
    static constexpr int SHARES = CONSUMERS / CHANNEL_GROUPS;
};

using Weight128x192 = WeightTile<2, 48 * 1024, 2>;
using Weight64x192 = WeightTile<1, 40 * 1024, 3>;

template <class T>
struct WeightShared {
    alignas(1024) uint8_t pixels[T::SLOTS][T::SLOT_BYTES];
    alignas(1024) uint8_t gradients[T::SLOTS][T::CHANNEL_GROUPS][T::GROUP_BYTES];
    Mbarrier full[T::SLOTS], empty[T::SLOTS];
};

/// Which sums a block makes.
struct WeightWork {
    Slot slot;
    uint32_t in_channel, channel_tile, part, first_group, end_group;
};

DEVICE WeightWork weight_work(const WgmmaWeightGradientParams& p) {
    const uint32_t part = blockIdx.z, first = part * p.groups_a_part;
    const uint32_t end = p.groups - first < p.groups_a_part ? p.groups : first + p.groups_a_part;
    return {p.plan.slots[blockIdx.x / p.plan.chunks], blockIdx.x % p.plan.chunks * DEPTH_CHANNELS, blockIdx.y, part, first, end};
}

template <class T>
DEVICE void produce_weight_operands(const WgmmaWeightGradientParams& p, const WeightWork& work, WeightShared<T>& shared,
                                    uint32_t kernel) {
    RingPlace place;
    for (uint32_t group = work.first_group; group < work.end_group; ++group) {
        const PixelGroup at = pixel_group(p.plan, group);
        mbarrier_wait(shared.empty[place.slot], place.parity ^ 1, {kernel, "empty"});
        Mbarrier& full = shared.full[place.slot];
        mbarrier_expect_bytes(full, p.plan.slot_bytes + T::CHANNEL_GROUPS * T::GROUP_BYTES);
        tma_load<4>(shared.pixels[place.slot], p.pixels[work.slot.map], full,
                    {int32_t(work.in_channel), work.slot.column, int32_t(at.image), int32_t(at.row) + work.slot.row});
#pragma unroll
        for (int g = 0; g < T::CHANNEL_GROUPS; ++g) {
            const uint32_t channel = (work.channel_tile * T::CHANNEL_GROUPS + g) * GROUP_CHANNELS;
            tma_load<4>(shared.gradients[place.slot][g], p.output_gradient, full,
                        {int32_t(channel), 0, int32_t(at.image), int32_t(at.row)});
        }
        place.advance(T::SLOTS);
    }
}

/// The sums of one warpgroup over the block's pixels, for slots of TAPS taps.
template <class T, int TAPS>
DEVICE void multiply_weight_operands(const WgmmaWeightGradientParams& p, const WeightWork& work, uint32_t consumer,
                                     WeightShared<T>& shared, uint32_t kernel) {
    constexpr int N = TAPS * int(DEPTH_CHANNELS);
    constexpr uint32_t PIXELS = GROUP_PIXELS / T::SHARES, STEP_BYTES = 16 * PIXEL_BYTES;
    const uint32_t channel_group = consumer % T::CHANNEL_GROUPS, share = consumer / T::CHANNEL_GROUPS;
    const bool leader = threadIdx.x % 128 == 0;

    float sums[N / 2];
    RingPlace place;
    Mbarrier* used = nullptr;
    for (uint32_t group = work.first_group; group < work.end_group; ++group) {
        mbarrier_wait(shared.full[place.slot], place.parity, {kernel, "full"});
        const uint8_t* const pixels = shared.pixels[place.slot] + share * PIXELS * PIXEL_BYTES;
        const uint8_t* const gradients = shared.gradients[place.slot][channel_group] + share * PIXELS * PIXEL_BYTES;
        wgmma_pin(sums);
        wgmma_fence();
#pragma unroll
        for (uint32_t k = 0; k < PIXELS / 16; ++k) {
            wgmma_bf16<N, Major::MN, Major::MN>(sums, matrix_descriptor(gradients + k * STEP_BYTES, 1024, 1024),
                                                matrix_descriptor(pixels + k * STEP_BYTES, p.plan.plane_bytes, 1024),
                                                group > work.first_group || k > 0);
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (leader && used != nullptr) mbarrier_arrive(*used);
        used = &shared.empty[place.slot];
        place.advance(T::SLOTS);
    }
    wgmma_wait<0>();
    wgmma_pin(sums);

    const uint32_t row = (work.channel_tile * T::CHANNEL_GROUPS + channel_group) * GROUP_CHANNELS +
                         16 * (warp_index() % 4) + lane_index() / 4;
    const int64_t part = int64_t(work.part) * T::SHARES + share;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int64_t first = ((part << p.log2_out_channels) + row + 8 * half) * p.columns;
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
            const uint32_t tap = byte_of(work.slot.weights, j / 8);
            const uint32_t column = (tap << p.log2_in_channels) + work.in_channel + j % 8 * 8 + lane_index() % 4 * 2;
            store_vector(p.workspace, first + column, Float2{{sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]}});
        }
    }
}

template <class T>
DEVICE void conv_weight_gradient(const WgmmaWeightGradientParams& p, WeightShared<T>& shared, uint32_t kernel) {
    if (p.plan.prefetched > 0 && threadIdx.x == 32) {
        prefetch_maps(p.pixels, p.plan.prefetched);
        prefetch_tensor_map(p.output_gradient);
    }
    if (threadIdx.x == 0) {
        for (int i = 0; i < T::SLOTS; ++i) {
            mbarrier_init(shared.full[i], 1);
            mbarrier_init(shared.empty[i], T::CONSUMERS);
        }
        fence_mbarrier_init();
    }
    syncthreads();
    launch_dependents();
    const WeightWork work = weight_work(p);
    const uint32_t warpgroup = threadIdx.x / 128;
    if (warpgroup == 0) {
        lower_registers<40>();
        if (threadIdx.x == 0) {
            wait_for_prerequisites();
            produce_weight_operands<T>(p, work, shared, kernel);
        }
    } else {
        raise_registers<232>();
        wait_for_prerequisites();
        switch (work.slot.taps) {
            case 3: multiply_weight_operands<T, 3>(p, work, warpgroup - 1, shared, kernel); break;
            case 2: multiply_weight_operands<T, 2>(p, work, warpgroup - 1, shared, kernel); break;
            default: multiply_weight_operands<T, 1>(p, work, warpgroup - 1, shared, kernel); break;
        }
    }
}

KERNEL_EARLY(conv_weight_gradient_wgmma_128x192, WgmmaWeightGradientParams, Weight128x192::THREADS, WeightShared<Weight128x192>) {
    conv_weight_gradient<Weight128x192>(p, shared, kernel);
}
KERNEL_EARLY(conv_weight_gradient_wgmma_64x192, WgmmaWeightGradientParams, Weight64x192::THREADS, WeightShared<Weight64x192>) {
    conv_weight_gradient<Weight64x192>(p, shared, kernel);
}

}  // namespace secateur
