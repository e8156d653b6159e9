// Each fault of asynchronous kernels that the emulator must find, injected. With `injected` 0 the kernels are right.
//
// Targets: none

#include "portable/portable.h"

#include "portable/cluster.h"
#include "portable/mbarrier.h"
#include "portable/tma.h"
#include "portable/wgmma.h"

namespace secateur {

// ---- a pipeline: C (64 x 64) = A B over tiles of 64 k, a producer warp and a warpgroup ----

enum Injected : uint32_t {
    nothing,
    missing_full_wait,
    early_release,
    missing_wgmma_fence,
    too_many_bytes_expected,
    too_few_bytes_expected,
    mismatched_descriptors,
    missing_commit,
    missing_wgmma_wait,
    uninitialised_barrier,
    operand_outside_shared,
    too_many_arrivals,
    divergent_products,
    load_left_behind,
    misaligned_box,
    unswizzled_descriptor,
    load_before_prerequisites,
};

struct PipelineParams {
    TensorMap a;      // boxes of 64 k x 64 m
    TensorMap b;      // boxes of 64 k x 64 n
    Global<float> c;  // 64 x 64
    uint32_t k;       // a multiple of 64
    uint32_t injected;
    uint32_t unused[12];
};

struct PipelineShared {
    alignas(1024) Bf16 a[2][64 * 64];
    alignas(1024) Bf16 b[2][64 * 64];
    Mbarrier full[2];
    Mbarrier empty[2];
};

KERNEL_EARLY(fault_pipeline, PipelineParams, 160, PipelineShared) {
    const uint32_t tiles = p.k / 64;
    if (threadIdx.x == 0 && p.injected != uninitialised_barrier) {
        for (int stage = 0; stage < 2; ++stage) {
            mbarrier_init(shared.full[stage], 1);
            mbarrier_init(shared.empty[stage], 128);
        }
        fence_mbarrier_init();
    }
    syncthreads();
    if (warp_index() == 4) {
        if (!elect_lane()) return;
        if (p.injected != load_before_prerequisites) wait_for_prerequisites();
        const uint32_t loaded = tiles + (p.injected == load_left_behind ? 1 : 0);
        uint32_t bytes = sizeof(shared.a[0]) + sizeof(shared.b[0]);
        if (p.injected == too_many_bytes_expected) bytes += 16;
        if (p.injected == too_few_bytes_expected) bytes -= 16;
        for (uint32_t tile = 0; tile < loaded; ++tile) {
            const uint32_t stage = tile % 2;
            mbarrier_wait(shared.empty[stage], tile / 2 % 2 ^ 1, {kernel, "empty"});
            mbarrier_expect_bytes(shared.full[stage], bytes);
            if (p.injected == too_many_arrivals) mbarrier_arrive(shared.full[stage]);
            const uint32_t shift = p.injected == misaligned_box ? 32 : 0;
            tma_load<2>(shared.a[stage] + shift, p.a, shared.full[stage], {int32_t(64 * tile), 0});
            tma_load<2>(shared.b[stage], p.b, shared.full[stage], {int32_t(64 * tile), 0});
        }
        return;
    }
    float acc[32];
    for (uint32_t tile = 0; tile < tiles; ++tile) {
        const uint32_t stage = tile % 2;
        if (p.injected != missing_full_wait) mbarrier_wait(shared.full[stage], tile / 2 % 2, {kernel, "full"});
        if (p.injected != missing_wgmma_fence || tile == 0) wgmma_fence();
        for (int k = 0; k < 4; ++k) {
            const uint32_t at = p.injected == mismatched_descriptors && threadIdx.x >= 64 ? 0 : 16 * k;
            uint64_t a = matrix_descriptor(&shared.a[stage][at], 0, 1024);
            uint64_t b = matrix_descriptor(&shared.b[stage][16 * k], 0, 1024);
            if (p.injected == operand_outside_shared) b = matrix_descriptor(&shared.b[stage][16 * k], 0, 24576);
            if (p.injected == unswizzled_descriptor) a &= ~(uint64_t(3) << 62);
            if (p.injected == divergent_products && k == 3 && threadIdx.x >= 96) continue;
            wgmma_bf16<64>(acc, a, b, tile > 0 || k > 0);
        }
        const bool last = tile + 1 == tiles;
        if (p.injected != missing_commit || !last) wgmma_commit();
        if (p.injected == early_release) mbarrier_arrive(shared.empty[stage]);
        if (p.injected != missing_wgmma_wait || !last) wgmma_wait<0>();
        if (p.injected != early_release) mbarrier_arrive(shared.empty[stage]);
    }
    wait_for_prerequisites();
    const uint32_t row = threadIdx.x / 32 * 16 + lane_index() / 4;
    for (uint32_t i = 0; i < 32; ++i) {
        p.c[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + lane_index() % 4 * 2 + i % 2] = acc[i];
    }
}

// ---- operands written by ordinary stores: C (64 x 64) = A B, both 64 x 64 and K-major ----

struct StoredParams {
    Global<const Bf16> a;  // 64 m x 64 k
    Global<const Bf16> b;  // 64 n x 64 k
    Global<float> c;
    uint32_t injected;  // 1: no fence, 2: the fence before the stores, 3: no fence for B, 4: no barrier after the fence
    uint32_t unused;
};

struct StoredShared {
    alignas(1024) Bf16 a[64 * 64];
    alignas(1024) Bf16 b[64 * 64];
};

KERNEL(fault_stored_operands, StoredParams, 128, StoredShared) {
    if (p.injected == 2) fence_async_proxy(&shared, sizeof shared);
    for (uint32_t i = threadIdx.x; i < 64 * 8; i += 128) {
        const uint32_t row = i / 8, chunk = i % 8, to = 64 * row + 8 * (chunk ^ row % 8);
        *reinterpret_cast<Bytes16*>(&shared.a[to]) = load_vector<Bytes16>(p.a, 64 * row + 8 * chunk);
        *reinterpret_cast<Bytes16*>(&shared.b[to]) = load_vector<Bytes16>(p.b, 64 * row + 8 * chunk);
    }
    if (p.injected == 0 || p.injected == 4) fence_async_proxy(&shared, sizeof shared);
    if (p.injected == 3) fence_async_proxy(shared.a, sizeof shared.a);
    if (p.injected != 4) syncthreads();
    float acc[32];
    wgmma_fence();
    for (int k = 0; k < 4; ++k) {
        wgmma_bf16<64>(acc, matrix_descriptor(&shared.a[16 * k], 0, 1024), matrix_descriptor(&shared.b[16 * k], 0, 1024),
                       k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    const uint32_t row = threadIdx.x / 32 * 16 + lane_index() / 4;
    for (uint32_t i = 0; i < 32; ++i) {
        p.c[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + lane_index() % 4 * 2 + i % 2] = acc[i];
    }
}

// ---- TMA stores: rows of 32 words through one staging buffer ----

struct StagingParams {
    TensorMap to;  // boxes of 32 x 4 words of a tensor of 32 x 4 * boxes
    Global<const uint32_t> from;
    uint32_t boxes;
    uint32_t injected;  // 1: no wait before the buffer is written again, 2: no commit, 3: no fence, 4: no barrier, 5: no wait at the end
    uint32_t unused[12];
};

struct StagingShared {
    alignas(128) uint32_t box[128];
};

KERNEL(fault_staging, StagingParams, 128, StagingShared) {
    for (uint32_t box = 0; box < p.boxes; ++box) {
        if (threadIdx.x == 0 && p.injected != 1) tma_store_wait_read<0>();
        named_barrier_sync(1, 128);
        shared.box[threadIdx.x] = p.from[128 * box + threadIdx.x];
        if (p.injected != 3) fence_async_proxy(&shared.box[threadIdx.x], 4);
        if (p.injected != 4) named_barrier_sync(1, 128);
        if (threadIdx.x == 0) {
            tma_store<2>(p.to, shared.box, {0, int32_t(4 * box)});
            if (p.injected != 2) tma_store_commit();
        }
    }
    if (threadIdx.x == 0 && p.injected != 5) tma_store_wait<0>();
}

// ---- barriers ----

struct BarrierParams {
    Global<uint32_t> to;
    uint32_t injected;  // 1: a barrier of too few arrivals, 2: two sizes at one named barrier, 3: one that never fills
    uint32_t unused;
};

struct BarrierShared {
    Mbarrier done;
};

KERNEL(fault_barriers, BarrierParams, 64, BarrierShared) {
    if (threadIdx.x == 0) {
        mbarrier_init(shared.done, p.injected == 1 ? 65 : 64);
        fence_mbarrier_init();
    }
    syncthreads();
    mbarrier_arrive(shared.done);
    mbarrier_wait(shared.done, 0, {kernel, "done"});
    const uint32_t threads = p.injected == 2 && threadIdx.x >= 32 ? 32 : 64;
    if (p.injected != 3 || threadIdx.x < 32) named_barrier_sync(2, threads);
    p.to[threadIdx.x] = threadIdx.x;
}

// ---- consumers that take turns: two warps read every other tile of 32 words, all through the same place ----

struct TurnsParams {
    Global<const uint32_t> from;
    Global<uint32_t> to;
    uint32_t tiles;
    uint32_t injected;  // 1: one barrier for both, of which each passes over every other phase
};

struct TurnsShared {
    alignas(16) uint32_t words[32];
    Mbarrier full[2];
    Mbarrier empty;
};

KERNEL(fault_turns, TurnsParams, 96, TurnsShared) {
    if (threadIdx.x == 0) {
        for (int turn = 0; turn < 2; ++turn) mbarrier_init(shared.full[turn], 1);
        mbarrier_init(shared.empty, 1);
        fence_mbarrier_init();
    }
    syncthreads();
    const bool one = p.injected == 1;
    if (warp_index() == 0) {
        if (!elect_lane()) return;
        for (uint32_t tile = 0; tile < p.tiles; ++tile) {
            Mbarrier& full = shared.full[one ? 0 : tile % 2];
            mbarrier_wait(shared.empty, tile % 2 ^ 1, {kernel, "empty"});
            mbarrier_expect_bytes(full, sizeof shared.words);
            bulk_load(shared.words, p.from, 32 * tile, sizeof shared.words, full);
        }
        return;
    }
    for (uint32_t tile = warp_index() - 1; tile < p.tiles; tile += 2) {
        // Two fills of the place further on its barrier has the same parity again.
        mbarrier_wait(shared.full[one ? 0 : tile % 2], one ? tile % 2 : tile / 2 % 2, {kernel, "full"});
        p.to[32 * tile + lane_index()] = shared.words[lane_index()];
        syncwarp();
        if (elect_lane()) mbarrier_arrive(shared.empty);
    }
}

// ---- stores to the other block of a cluster: two blocks swap words for some rounds ----

struct SwapParams {
    Global<const uint32_t> from;  // [block][round][thread][4]
    Global<uint32_t> to;
    uint32_t rounds;
    // 1: no cluster_sync, 2: no wait for the words, 3: a wait of the block's scope, 4: no wait before the next words are sent,
    // 5: a block that leaves without what is on its way to it, 6: a misaligned store, 7: a rank outside the cluster
    uint32_t injected;
};

struct SwapShared {
    Bytes16 words[64];
    Mbarrier full;
    Mbarrier read;
};

KERNEL_CLUSTER(fault_store_remote, SwapParams, 64, 2, SwapShared) {
    const uint32_t peer = p.injected == 7 ? 2 : cluster_rank() ^ 1, i = threadIdx.x;
    if (threadIdx.x == 0) {
        mbarrier_init(shared.full, 1);
        mbarrier_init(shared.read, 64);
        fence_mbarrier_init();
    }
    if (p.injected == 1) {
        syncthreads();
    } else {
        cluster_sync();
    }
    for (uint32_t round = 0; round < p.rounds; ++round) {
        const uint32_t at = ((p.rounds * blockIdx.x + round) * 64 + i) * 4;
        if (p.injected != 4 && round > 0) mbarrier_wait_cluster(shared.read, round % 2 ^ 1, {kernel, "read"});
        Bytes16* const to = &shared.words[i];
        Bytes16& place = p.injected == 6 ? *reinterpret_cast<Bytes16*>(reinterpret_cast<uint8_t*>(to) + 8) : *to;
        store_remote(place, {{p.from[at], p.from[at + 1], p.from[at + 2], p.from[at + 3]}}, shared.full, peer);
        if (threadIdx.x == 0) mbarrier_expect_bytes(shared.full, sizeof shared.words);
        if (p.injected == 5 && peer == 0) return;
        if (p.injected == 3) {
            mbarrier_wait(shared.full, round % 2, {kernel, "full"});
        } else if (p.injected != 2) {
            mbarrier_wait_cluster(shared.full, round % 2, {kernel, "full"});
        }
        for (uint32_t word = 0; word < 4; ++word) p.to[at + word] = shared.words[i].word[word];
        // Behind the last round nothing more comes, and each may leave.
        if (round + 1 < p.rounds) mbarrier_arrive_remote(shared.read, peer);
    }
}

}  // namespace secateur
