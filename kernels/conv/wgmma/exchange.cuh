// How two blocks add up a tile whose reduction they have split: 64 channels of 256 pixels, half of the chunks each.
//
// Each block finishes half of the pixels, rank 0 the first 128. So it sends the sums of the others, half of its registers, to
// its peer, takes as many, and adds them to its own: 32 KiB each way through distributed shared memory, 16 bytes a thread at a
// time in the order of the threads, which is free of bank conflicts on both sides. a + b = b + a, so it does not matter who adds,
// and a result does not depend on who came first.
//
// Its places are written again, by the next work of a persistent block, only after `read` has told that their words were used.
// Behind the last work nobody tells, so a block has all that is on its way to it once it has its peer's sums and, rank 0, its
// statistics: each waits for these, and may leave. Nor does a block send to one that has not begun: prepare_barriers ends in
// cluster_sync.
#pragma once

#include "conv/wgmma/plan.cuh"
#include "portable/bf16.h"

namespace secateur {

/// The sums of 128 pixels, ordered as WgmmaSums.
using HalfSums = float[GROUP_PIXELS / 4];
constexpr uint32_t HALF_VECTORS = GROUP_PIXELS / 4 / 4;

/// What lies in shared memory for it; nothing where a block has the whole reduction.
template <int PARTS>
struct Exchange {};
template <>
struct Exchange<2> {
    Bytes16 sums[HALF_VECTORS][128];  // four of each thread at a time
    Bytes8 statistics[GROUP_CHANNELS];
    Mbarrier sums_full, statistics_full;
    Mbarrier read;  // by the peer: all that this block has sent it; an arrival of each of its warps
};

/// One thread, before fence_mbarrier_init and cluster_sync.
DEVICE void prepare_exchange(Exchange<2>& exchange) {
    mbarrier_init(exchange.sums_full, 1);
    mbarrier_init(exchange.statistics_full, 1);
    mbarrier_init(exchange.read, 4);
}

/// A consumer's way through the exchange, work after work.
template <int PARTS>
struct Partner {
    DEVICE Partner(Exchange<1>&, uint32_t) {}
};
template <>
struct Partner<2> {
    Exchange<2>& exchange;
    const uint32_t kernel, rank;
    uint32_t parity;  // of this work's phases

    DEVICE Partner(Exchange<2>& exchange, uint32_t kernel)
        : exchange(exchange), kernel(kernel), rank(cluster_rank()), parity(0) {}

    /// half = the sums of this block's pixels over the whole reduction.
    DEVICE void add_up(const WgmmaSums& sums, HalfSums& half) {
        const uint32_t thread = threadIdx.x % 128;
        constexpr int HALF = GROUP_PIXELS / 4;
        mbarrier_wait_cluster(exchange.read, parity ^ 1, {kernel, "read"});
        if (thread == 0) mbarrier_expect_bytes(exchange.sums_full, sizeof exchange.sums);
#pragma unroll
        for (int v = 0; v < int(HALF_VECTORS); ++v) {
            Bytes16 four;
#pragma unroll
            for (int i = 0; i < 4; ++i) four.word[i] = float_bits(rank == 0 ? sums[HALF + 4 * v + i] : sums[4 * v + i]);
            store_remote(exchange.sums[v][thread], four, exchange.sums_full, rank ^ 1);
        }
        mbarrier_wait_cluster(exchange.sums_full, parity, {kernel, "sums_full"});
#pragma unroll
        for (int v = 0; v < int(HALF_VECTORS); ++v) {
            const Bytes16 four = exchange.sums[v][thread];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                half[4 * v + i] = (rank == 0 ? sums[4 * v + i] : sums[HALF + 4 * v + i]) + bits_float(four.word[i]);
            }
        }
    }

    /// Where another work follows: tells the peer that what it sent for this one was read.
    DEVICE void release() {
        syncwarp();
        if (elect_lane()) mbarrier_arrive_remote(exchange.read, rank ^ 1);
        parity ^= 1;
    }
};

/// Two numbers of one channel for the peer, from the one thread that has them.
DEVICE void send_statistics(Exchange<2>& exchange, uint32_t channel, float first, float second) {
    store_remote(exchange.statistics[channel], {{float_bits(first), float_bits(second)}}, exchange.statistics_full,
                 cluster_rank() ^ 1);
}
/// All threads of the warpgroup: waits for those of the peer.
DEVICE void await_statistics(Exchange<2>& exchange, uint32_t parity, uint32_t kernel) {
    if (threadIdx.x % 128 == 0) mbarrier_expect_bytes(exchange.statistics_full, sizeof exchange.statistics);
    mbarrier_wait_cluster(exchange.statistics_full, parity, {kernel, "statistics_full"});
}

}  // namespace secateur
