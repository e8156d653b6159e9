// The persistent loop of a convolution on wgmma: one warp keeps two rings of shared memory full, one or two warpgroups multiply.
//
// A block computes, work after work, 64 CHANNEL_GROUPS channels of 256 PIXEL_GROUPS pixels; each of its consumer warpgroups
// has 64 channels of 256 pixels of that in 128 registers a thread. The producer fills a ring of pixel slots (planes of 64
// channels, used by up to three taps) and a ring of weight slots (one tap, 64 channels of the reduction), each with a barrier
// that says full and one that says empty. A warpgroup waits, multiplies 64 deep, and leaves the products of one slot under way
// while it waits for the next; it gives a slot back when the products that read it are done. Where a tile is split, the two
// blocks of a cluster take half of the reduction each, and exchange.cuh adds the halves up.
#pragma once

#include "conv/wgmma/exchange.cuh"
#include "conv/wgmma/plan.cuh"

namespace secateur {

/// Shape of a block: which channels and pixels its consumer warpgroups take, and how long its rings are.
template <int CHANNEL_GROUPS_, int PIXEL_GROUPS_, uint32_t SLOT_BYTES_, int PIXEL_SLOTS_, int WEIGHT_SLOTS_,
          bool RESIDENT_ = false, int PARTS_ = 1>
struct WgmmaTile {
    using Pixels = Planes;
    static constexpr int CHANNEL_GROUPS = CHANNEL_GROUPS_, PIXEL_GROUPS = PIXEL_GROUPS_;
    /// All weights stay in shared memory, a slot for each tap; the two consumers take turns at the work, so that the
    /// products of one hide what follows the products of the other.
    static constexpr bool RESIDENT = RESIDENT_;
    static constexpr int TURNS = RESIDENT ? 2 : 1;
    /// Blocks of a cluster that share a tile: each multiplies a part of the reduction, and finishes a part of the pixels.
    static constexpr int PARTS = PARTS_;
    static constexpr int FINISHED_PIXELS = GROUP_PIXELS / PARTS;
    static constexpr int CONSUMERS = RESIDENT ? 2 : CHANNEL_GROUPS * PIXEL_GROUPS, THREADS = 128 * (1 + CONSUMERS);
    static constexpr int PIXEL_SLOTS = PIXEL_SLOTS_, WEIGHT_SLOTS = WEIGHT_SLOTS_;
    static constexpr uint32_t SLOT_BYTES = SLOT_BYTES_;  // of one pixel group, at most
    static constexpr uint32_t GROUP_WEIGHT_BYTES = GROUP_CHANNELS * DEPTH_CHANNELS * 2;
    static_assert(CONSUMERS <= 2, "the registers of a multiprocessor hold the sums of two warpgroups");
    static_assert(PARTS == 1 || (PARTS == 2 && CONSUMERS == 1), "two blocks of one consumer each share a tile");
    static_assert(!RESIDENT || CHANNEL_GROUPS * PIXEL_GROUPS == 1, "consumers that take turns share no work");
};

// 128 channels by 256 pixels: any layer with at least 128 output channels; slots as long as those of 4 x 4 images.
using Wgmma128x256 = WgmmaTile<2, 1, 48 * 1024, 2, 6>;
// 64 channels by 512 pixels: a reduction over more than 64 channels to 64, with slots of at most ten planes of 4 KiB.
using Wgmma64x512 = WgmmaTile<1, 2, 40 * 1024, 2, 4>;
// 64 channels by 256 pixels: twice as many blocks, for batches that leave multiprocessors idle.
using Wgmma64x256 = WgmmaTile<1, 1, 48 * 1024, 3, 6>;
// The same in two parts, a block each: four times as many blocks, which leave room for what comes from the other.
using Wgmma64x256Split = WgmmaTile<1, 1, 48 * 1024, 3, 4, false, 2>;
// 64 channels by 256 pixels with nine resident taps of 64 by 64: the first stage.
using WgmmaResident = WgmmaTile<1, 1, 40 * 1024, 3, 9, true>;

template <class T>
struct WgmmaShared {
    alignas(1024) uint8_t pixels[T::PIXEL_SLOTS][T::PIXEL_GROUPS][T::SLOT_BYTES];
    alignas(1024) uint8_t weights[T::WEIGHT_SLOTS][T::CHANNEL_GROUPS][T::GROUP_WEIGHT_BYTES];
    alignas(1024) uint8_t staged[T::CONSUMERS][2][STAGE_BYTES];
    // One for each consumer that takes turns: a parity tells a fill from the next, not from the next but one, so nobody may
    // pass over a phase of a barrier that it waits at.
    Mbarrier pixels_full[T::PIXEL_SLOTS][T::TURNS];
    Mbarrier pixels_empty[T::PIXEL_SLOTS];
    Mbarrier weights_full[T::WEIGHT_SLOTS], weights_empty[T::WEIGHT_SLOTS];
    Mbarrier residual_full[T::CONSUMERS][2];
    Exchange<T::PARTS> exchange;
};

/// A place in a ring, and how often the ring has been gone round.
struct RingPlace {
    uint32_t slot = 0, parity = 0;

    DEVICE void advance(uint32_t slots) {
        if (++slot == slots) {
            slot = 0;
            parity ^= 1;
        }
    }
};

template <class T>
DEVICE void prepare_barriers(WgmmaShared<T>& shared) {
    if (threadIdx.x == 0) {
        for (int i = 0; i < T::PIXEL_SLOTS; ++i) {
            for (int turn = 0; turn < T::TURNS; ++turn) mbarrier_init(shared.pixels_full[i][turn], 1);
            mbarrier_init(shared.pixels_empty[i], T::RESIDENT ? 1 : T::CONSUMERS);
        }
        for (int i = 0; i < T::WEIGHT_SLOTS; ++i) {
            mbarrier_init(shared.weights_full[i], 1);
            mbarrier_init(shared.weights_empty[i], T::CONSUMERS);
        }
        for (int i = 0; i < T::CONSUMERS; ++i) {
            for (int b = 0; b < 2; ++b) mbarrier_init(shared.residual_full[i][b], 1);
        }
        if constexpr (T::PARTS == 2) prepare_exchange(shared.exchange);
        fence_mbarrier_init();
    }
    if constexpr (T::PARTS == 1) {
        syncthreads();
    } else {
        cluster_sync();  // the other block's barriers as well
    }
}

/// Which part of the reduction, and of the pixels, this block has.
template <class T>
DEVICE uint32_t block_part() {
    if constexpr (T::PARTS == 1) return 0;
    return cluster_rank();
}

/// The first work of this block, and how many lie between two of them.
template <class T>
DEVICE uint32_t first_work() {
    return blockIdx.x / T::PARTS;
}
template <class T>
DEVICE uint32_t work_stride() {
    return gridDim.x / T::PARTS;
}

/// The chunks of the reduction that this block multiplies.
struct Chunks {
    uint32_t begin, end;
};
template <class T>
DEVICE Chunks block_chunks(const WgmmaPlan& plan) {
    const uint32_t each = plan.chunks / T::PARTS, begin = block_part<T>() * each;
    return {begin, begin + each};
}

/// What the producer needs to know of the operands; the same for a forward convolution and an input gradient.
struct WgmmaOperands {
    TensorMap pixels[4];
    TensorMap weights;  // {input channels, taps, output channels}, boxes of 64 x 1 x 64
};

/// Fetches tensor maps, which no launch before this one writes, ahead of their first use.
DEVICE void prefetch_maps(const TensorMap* maps, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) prefetch_tensor_map(maps[i]);
}

/// Whether the channels that the pixels bring are rows of the weights (forward: K-major) or their columns.
enum class Direction { Forward, Gradient };

/// Asks for one tap of the weights of a block's channels, 64 deep.
template <class T, Direction DIRECTION>
DEVICE void load_weights(const WgmmaOperands& maps, WgmmaShared<T>& shared, uint32_t slot, uint32_t channel_tile,
                         int32_t tap, int32_t depth) {
    Mbarrier& full = shared.weights_full[slot];
    mbarrier_expect_bytes(full, T::CHANNEL_GROUPS * T::GROUP_WEIGHT_BYTES);
#pragma unroll
    for (int g = 0; g < T::CHANNEL_GROUPS; ++g) {
        const int32_t channel = int32_t((channel_tile * T::CHANNEL_GROUPS + g) * GROUP_CHANNELS);
        void* const to = shared.weights[slot][g];
        if constexpr (DIRECTION == Direction::Forward) {
            tma_load<3>(to, maps.weights, full, {depth, tap, channel});
        } else {
            tma_load<3>(to, maps.weights, full, {channel, tap, depth});
        }
    }
}

/// One thread: loads the operands of all work of this block, in the order in which they are multiplied.
template <class T, Direction DIRECTION>
DEVICE void produce(const WgmmaOperands& maps, const WgmmaPlan& plan, WgmmaShared<T>& shared, uint32_t kernel) {
    const Chunks chunks = block_chunks<T>(plan);
    RingPlace pixels, weights;
    uint32_t turn = 0;
    if constexpr (T::RESIDENT) {
        for (int tap = 0; tap < T::WEIGHT_SLOTS; ++tap) load_weights<T, DIRECTION>(maps, shared, tap, 0, tap, 0);
    }
    for (uint32_t tile = first_work<T>(); tile < work_count(plan); tile += work_stride<T>()) {
        const Work work = work_at(plan, tile);
        for (uint32_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
            const int32_t depth = int32_t(chunk * DEPTH_CHANNELS);
            for (uint32_t s = 0; s < work.phase.slots; ++s) {
                const Slot slot = plan.slots[work.phase.first_slot + s];
                // A slot that was never used is as good as empty: the wait for the phase before the first returns at once.
                mbarrier_wait(shared.pixels_empty[pixels.slot], pixels.parity ^ 1, {kernel, "pixels_empty"});
                Mbarrier& full = shared.pixels_full[pixels.slot][turn];
                mbarrier_expect_bytes(full, T::PIXEL_GROUPS * plan.slot_bytes);
#pragma unroll
                for (int g = 0; g < T::PIXEL_GROUPS; ++g) {
                    T::Pixels::load(shared.pixels[pixels.slot][g], maps.pixels, full, plan, work.pixel_tile * T::PIXEL_GROUPS + g,
                                    slot, depth);
                }
                pixels.advance(T::PIXEL_SLOTS);

                if constexpr (!T::RESIDENT) {
                    for (uint32_t t = 0; t < slot.taps; ++t) {
                        mbarrier_wait(shared.weights_empty[weights.slot], weights.parity ^ 1, {kernel, "weights_empty"});
                        load_weights<T, DIRECTION>(maps, shared, weights.slot, work.channel_tile,
                                                   int32_t(byte_of(slot.weights, t)), depth);
                        weights.advance(T::WEIGHT_SLOTS);
                    }
                }
            }
        }
        if constexpr (T::TURNS == 2) turn ^= 1;
    }
}

/// Where a consumer stands in the rings.
template <class T>
struct ConsumerPlaces {
    const uint32_t kernel;
    RingPlace pixels = {}, weights = {};
    uint32_t own_parities = 0;  // bit s: of the next fill of pixel slot s that is for this consumer, where they take turns

    /// Waits for the pixels of the slot.
    DEVICE void await_pixels(WgmmaShared<T>& shared, uint32_t consumer) {
        if constexpr (T::TURNS == 1) {
            mbarrier_wait(shared.pixels_full[pixels.slot][0], pixels.parity, {kernel, "pixels_full"});
        } else {
            mbarrier_wait(shared.pixels_full[pixels.slot][consumer], own_parities >> pixels.slot & 1, {kernel, "pixels_full"});
            own_parities ^= 1u << pixels.slot;
        }
    }
    /// The weights of a tap, waited for.
    DEVICE const uint8_t* await_weights(WgmmaShared<T>& shared, uint32_t tap, uint32_t channel_group) const {
        const uint32_t slot = T::RESIDENT ? tap : weights.slot;
        mbarrier_wait(shared.weights_full[slot], T::RESIDENT ? 0 : weights.parity, {kernel, "weights_full"});
        return shared.weights[slot][channel_group];
    }
    /// Where a second tap follows the first: waits for its weights, without taking them.
    DEVICE void await_second_tap(WgmmaShared<T>& shared) const {
        static_assert(!T::RESIDENT && T::WEIGHT_SLOTS > 1, "a ring of weights");
        mbarrier_wait(shared.weights_full[1], 0, {kernel, "weights_full"});
    }
    /// Passes over the pixels of a work that the other consumer has.
    DEVICE void skip(uint32_t slots) {
        for (uint32_t s = 0; s < slots; ++s) pixels.advance(T::PIXEL_SLOTS);
    }
};

/// sums = weights x pixels of one work, or of this block's part of its reduction, by one warpgroup. What `begin` and then `prepare`
/// do is hidden behind products: those of the first tap, and those of the last slot.
template <class T, Direction DIRECTION, class Begin, class Prepare>
DEVICE void multiply_work(const WgmmaPlan& plan, const Work& work, uint32_t consumer, WgmmaShared<T>& shared,
                          ConsumerPlaces<T>& places, WgmmaSums& sums, const Begin& begin, const Prepare& prepare) {
    const uint32_t channel_group = T::RESIDENT ? 0 : consumer % T::CHANNEL_GROUPS;
    const uint32_t pixel_group = T::RESIDENT ? 0 : consumer / T::CHANNEL_GROUPS;
    constexpr Major WEIGHTS = DIRECTION == Direction::Forward ? Major::K : Major::MN;
    // 16 deep: a quarter of an atom's rows of 128 bytes, or two atoms of eight rows.
    constexpr uint32_t WEIGHT_STEP = WEIGHTS == Major::K ? 32 : 2 * 1024;
    const bool leader = threadIdx.x % 128 == 0;

    bool first = true;
    Mbarrier* used_weights = nullptr;
    Mbarrier* used_pixels = nullptr;
    // Gives back what the products before the newest have read.
    const auto release = [&] {
        if (!leader) return;
        if (used_weights != nullptr) mbarrier_arrive(*used_weights);
        if (used_pixels != nullptr) mbarrier_arrive(*used_pixels);
    };
    const Chunks chunks = block_chunks<T>(plan);
    // There is a chunk, a phase has a slot, and a slot a tap: no loop asks before its first turn.
    uint32_t chunk = chunks.begin;
    do {
        uint32_t s = 0;
        do {
            const Slot slot = plan.slots[work.phase.first_slot + s];
            places.await_pixels(shared, consumer);
            const uint8_t* const pixels = shared.pixels[places.pixels.slot][pixel_group];
            uint32_t t = 0;
            do {
                const uint8_t* const weights = places.await_weights(shared, byte_of(slot.weights, t), channel_group);
                const uint8_t* const planes = pixels + byte_of(slot.planes, t) * plan.plane_bytes;
                wgmma_pin(sums);
                wgmma_fence();
#pragma unroll
                for (uint32_t k = 0; k < DEPTH_CHANNELS / 16; ++k) {
                    wgmma_bf16<int(GROUP_PIXELS), WEIGHTS, Major::K>(
                        sums, matrix_descriptor(weights + k * WEIGHT_STEP, 1024, 1024),
                        matrix_descriptor(planes + k * 32, 1024, 1024), !first || k > 0);
                }
                wgmma_commit();
                // The products of the tap before are done: its weights, and its pixels if it was their last tap.
                wgmma_wait<1>();
                release();
                used_weights = T::RESIDENT ? nullptr : &shared.weights_empty[places.weights.slot];
                used_pixels = t + 1 == slot.taps ? &shared.pixels_empty[places.pixels.slot] : nullptr;
                places.weights.advance(T::WEIGHT_SLOTS);
                if (first) begin();
                if (t == 0 && s + 1 == work.phase.slots && chunk + 1 == chunks.end) prepare();
                first = false;
            } while (++t < slot.taps);
            places.pixels.advance(T::PIXEL_SLOTS);
        } while (++s < work.phase.slots);
    } while (++chunk < chunks.end);
    wgmma_wait<0>();
    wgmma_pin(sums);
    release();
}

/// The body of a kernel: warpgroup 0 loads, the others multiply and hand their sums to `finish(work, consumer, sums)`, those of
/// 256 pixels or of this block's part of them. `begin(work, consumer)` comes while the first products of a work are under way, and
/// `prepare(work, consumer)` while the last are.
template <class T, Direction DIRECTION, class Begin, class Prepare, class Finish>
DEVICE void convolve(const WgmmaOperands& maps, const WgmmaPlan& plan, WgmmaShared<T>& shared, uint32_t kernel,
                     const Begin& begin, const Prepare& prepare, const Finish& finish) {
    // A thread with nothing else to do.
    if (plan.prefetched > 0 && threadIdx.x == 32) {
        prefetch_maps(maps.pixels, plan.prefetched);
        prefetch_tensor_map(maps.weights);
    }
    prepare_barriers(shared);
    launch_dependents();
    // By a shuffle, so that the compiler knows it, and what follows from it, to be the same in a warp.
    const uint32_t warpgroup = shfl(threadIdx.x / 128, 0);
    if (warpgroup == 0) {
        if constexpr (T::CONSUMERS == 2) lower_registers<40>();
        if (threadIdx.x == 0) {
            wait_for_prerequisites();
            produce<T, DIRECTION>(maps, plan, shared, kernel);
        }
    } else {
        if constexpr (T::CONSUMERS == 2) raise_registers<232>();
        wait_for_prerequisites();
        const uint32_t consumer = warpgroup - 1;
        ConsumerPlaces<T> places{kernel};
        WgmmaSums sums;
        Partner<T::PARTS> partner(shared.exchange, kernel);
        uint32_t turn = 0;
        if constexpr (T::CHANNEL_GROUPS == 2) {
            // Of two that share their pixels the second begins about a tap later and stays so far behind: it still multiplies when
            // the first comes to its epilogue. More would keep the slots of their pixels from being filled in time.
            const bool waits = consumer == 1 && first_work<T>() < work_count(plan);
            if (waits && plan.chunks * work_at(plan, first_work<T>()).phase.slots > 1) places.await_second_tap(shared);
        }
        for (uint32_t tile = first_work<T>(); tile < work_count(plan); tile += work_stride<T>()) {
            const Work work = work_at(plan, tile);
            if (T::RESIDENT && turn++ % 2 != consumer) {
                places.skip(plan.chunks * work.phase.slots);
                continue;
            }
            multiply_work<T, DIRECTION>(
                plan, work, consumer, shared, places, sums, [&] { begin(work, consumer); }, [&] { prepare(work, consumer); });
            if constexpr (T::PARTS == 1) {
                finish(work, consumer, sums);
            } else {
                HalfSums half;
                partner.add_up(sums, half);
                finish(work, consumer, half);
                if (tile + work_stride<T>() < work_count(plan)) partner.release();
            }
        }
        // Shared memory must outlive the stores that read it.
        if (threadIdx.x % 128 == 0) tma_store_wait<0>();
    }
}

}  // namespace secateur
