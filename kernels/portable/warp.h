// Warp collectives over all 32 lanes: shuffles, votes, syncwarp.
//
// On the host each is a rendezvous (host/emulator.h): the last lane to arrive does the work of all. Lanes that meet at
// different collectives, or a lane that has left the kernel, are reported.
#pragma once

#include "portable/kernel.h"

namespace secateur {

#ifndef __CUDACC__
namespace host {

template <class T>
struct Shuffle {
    T value;
    uint32_t source;
    T result;

    static void work(void* const* lanes) {
        for (int lane = 0; lane < 32; ++lane) {
            auto* self = static_cast<Shuffle*>(lanes[lane]);
            self->result = static_cast<Shuffle*>(lanes[self->source])->value;
        }
    }
    static constexpr Collective collective{"shfl", work};
};

struct Ballot {
    bool predicate;
    uint32_t result;

    static void work(void* const* lanes) {
        uint32_t votes = 0;
        for (int lane = 0; lane < 32; ++lane) votes |= uint32_t(static_cast<Ballot*>(lanes[lane])->predicate) << lane;
        for (int lane = 0; lane < 32; ++lane) static_cast<Ballot*>(lanes[lane])->result = votes;
    }
    static constexpr Collective collective{"ballot", work};
};

struct SyncWarp {
    static void work(void* const*) {}
    static constexpr Collective collective{"syncwarp", work};
};

template <class T>
T exchange(T value, uint32_t source) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    Shuffle<T> shuffle{value, source, T{}};
    meet(Shuffle<T>::collective, &shuffle);
    return shuffle.result;
}

}  // namespace host
#endif

/// The value of lane `lane % 32`.
template <class T>
DEVICE T shfl(T value, uint32_t lane) {
#ifdef __CUDACC__
    return __shfl_sync(0xFFFFFFFFu, value, int(lane));
#else
    return host::exchange(value, lane % 32);
#endif
}

/// The value of the lane whose index differs by the bits of `mask`, 0..31.
template <class T>
DEVICE T shfl_xor(T value, uint32_t mask) {
#ifdef __CUDACC__
    return __shfl_xor_sync(0xFFFFFFFFu, value, int(mask));
#else
    return host::exchange(value, (lane_index() ^ mask) % 32);
#endif
}

/// The value of the lane `n` above; the own value where there is none.
template <class T>
DEVICE T shfl_down(T value, uint32_t n) {
#ifdef __CUDACC__
    return __shfl_down_sync(0xFFFFFFFFu, value, n);
#else
    const uint32_t lane = lane_index();
    return host::exchange(value, lane + n < 32 ? lane + n : lane);
#endif
}

/// The value of the lane `n` below; the own value where there is none.
template <class T>
DEVICE T shfl_up(T value, uint32_t n) {
#ifdef __CUDACC__
    return __shfl_up_sync(0xFFFFFFFFu, value, n);
#else
    const uint32_t lane = lane_index();
    return host::exchange(value, lane >= n ? lane - n : lane);
#endif
}

/// Bit i is the predicate of lane i.
DEVICE uint32_t ballot(bool predicate) {
#ifdef __CUDACC__
    return __ballot_sync(0xFFFFFFFFu, predicate);
#else
    host::Ballot vote{predicate, 0};
    host::meet(host::Ballot::collective, &vote);
    return vote.result;
#endif
}

/// Waits for the warp; what its lanes wrote to memory before is visible after.
DEVICE void syncwarp() {
#ifdef __CUDACC__
    __syncwarp();
#else
    host::meet(host::SyncWarp::collective, nullptr);
#endif
}

/// Number of set bits, and position of the lowest one (32 for none).
DEVICE uint32_t count_bits(uint32_t word) {
#ifdef __CUDACC__
    return uint32_t(__popc(word));
#else
    return uint32_t(__builtin_popcount(word));
#endif
}
DEVICE uint32_t lowest_bit(uint32_t word) {
#ifdef __CUDACC__
    return word == 0 ? 32 : uint32_t(__ffs(int(word)) - 1);
#else
    return word == 0 ? 32 : uint32_t(__builtin_ctz(word));
#endif
}

}  // namespace secateur
