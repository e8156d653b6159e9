// Kernels that test what only a Hopper has: TMA, wgmma, stmatrix and clusters, each in the form in which product kernels use it. They
// show that the emulator and a Hopper read tensor maps, descriptors and barriers alike.
//
// Targets: sm_90a

#include "portable/portable.h"

#include "portable/cluster.h"
#include "portable/halves.h"
#include "portable/matrix_store.h"
#include "portable/mbarrier.h"
#include "portable/tma.h"
#include "portable/wgmma.h"

namespace secateur {

// ---- wgmma: C (64 x N, f32) = A B, a producer warp and a warpgroup over a ring of two stages of 64 k ----

struct ProductParams {
    TensorMap a;      // boxes of 64 k x 64 m (K-major), or 64 m x 64 k (MN-major)
    TensorMap b;      // boxes of 64 k x N, or 64 n x 64 k
    Global<float> c;  // row-major
    uint32_t k;       // a multiple of 64
    uint32_t unused[13];
};

template <int N>
struct ProductShared {
    alignas(1024) Bf16 a[2][64 * 64];
    alignas(1024) Bf16 b[2][N * 64];
    Mbarrier full[2];
    Mbarrier empty[2];
};

template <int N, Major A, Major B>
DEVICE void produce(const ProductParams& p, ProductShared<N>& shared, uint32_t kernel) {
    for (uint32_t tile = 0; tile < p.k / 64; ++tile) {
        const uint32_t stage = tile % 2;
        const auto k = int32_t(64 * tile);
        mbarrier_wait(shared.empty[stage], tile / 2 % 2 ^ 1, {kernel, "empty"});
        mbarrier_expect_bytes(shared.full[stage], sizeof(shared.a[0]) + sizeof(shared.b[0]));
        if (A == Major::K) {
            tma_load<2>(shared.a[stage], p.a, shared.full[stage], {k, 0});
        } else {
            tma_load<2>(shared.a[stage], p.a, shared.full[stage], {0, k});
        }
        if (B == Major::K) {
            tma_load<2>(shared.b[stage], p.b, shared.full[stage], {k, 0});
        } else {
            for (int32_t n = 0; n < N; n += 64) {
                tma_load<2>(&shared.b[stage][64 * n], p.b, shared.full[stage], {n, k});
            }
        }
    }
}

template <int N, Major A, Major B>
DEVICE void consume(const ProductParams& p, ProductShared<N>& shared, uint32_t kernel) {
    // 16 k further: 32 bytes along K-major rows, 16 rows of 128 bytes in MN-major ones.
    constexpr int a_step = A == Major::K ? 16 : 16 * 64, b_step = B == Major::K ? 16 : 16 * 64;
    float acc[N / 2];
    for (uint32_t tile = 0; tile < p.k / 64; ++tile) {
        const uint32_t stage = tile % 2;
        mbarrier_wait(shared.full[stage], tile / 2 % 2, {kernel, "full"});
        wgmma_pin(acc);
        wgmma_fence();
        for (int k = 0; k < 4; ++k) {
            const uint64_t a = matrix_descriptor(&shared.a[stage][k * a_step], 0, 1024);
            const uint64_t b = matrix_descriptor(&shared.b[stage][k * b_step], 64 * 128, 1024);
            wgmma_bf16<N, A, B>(acc, a, b, tile > 0 || k > 0);
        }
        wgmma_commit();
        wgmma_wait<1>();
        wgmma_pin(acc);
        // The products of the stage before are over.
        if (tile > 0) mbarrier_arrive(shared.empty[1 - stage]);
    }
    wgmma_wait<0>();
    wgmma_pin(acc);
    const uint32_t row = threadIdx.x / 32 * 16 + lane_index() / 4;
    for (uint32_t i = 0; i < N / 2; ++i) {
        p.c[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + lane_index() % 4 * 2 + i % 2] = acc[i];
    }
}

template <int N, Major A, Major B>
DEVICE void multiply(const ProductParams& p, ProductShared<N>& shared, uint32_t kernel) {
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < 2; ++stage) {
            mbarrier_init(shared.full[stage], 1);
            mbarrier_init(shared.empty[stage], 128);
        }
        fence_mbarrier_init();
    }
    syncthreads();
    if (warp_index() == 4) {
        if (elect_lane()) produce<N, A, B>(p, shared, kernel);
    } else {
        consume<N, A, B>(p, shared, kernel);
    }
}

KERNEL(test_wgmma_64_kk, ProductParams, 160, ProductShared<64>) { multiply<64, Major::K, Major::K>(p, shared, kernel); }
KERNEL(test_wgmma_64_mm, ProductParams, 160, ProductShared<64>) { multiply<64, Major::MN, Major::MN>(p, shared, kernel); }
KERNEL(test_wgmma_128_kk, ProductParams, 160, ProductShared<128>) { multiply<128, Major::K, Major::K>(p, shared, kernel); }
KERNEL(test_wgmma_128_km, ProductParams, 160, ProductShared<128>) { multiply<128, Major::K, Major::MN>(p, shared, kernel); }
KERNEL(test_wgmma_128_mk, ProductParams, 160, ProductShared<128>) { multiply<128, Major::MN, Major::K>(p, shared, kernel); }
KERNEL(test_wgmma_192_kk, ProductParams, 160, ProductShared<192>) { multiply<192, Major::K, Major::K>(p, shared, kernel); }
KERNEL(test_wgmma_192_km, ProductParams, 160, ProductShared<192>) { multiply<192, Major::K, Major::MN>(p, shared, kernel); }
KERNEL(test_wgmma_256_kk, ProductParams, 160, ProductShared<256>) { multiply<256, Major::K, Major::K>(p, shared, kernel); }
KERNEL(test_wgmma_256_mm, ProductParams, 160, ProductShared<256>) { multiply<256, Major::MN, Major::MN>(p, shared, kernel); }

// ---- wgmma on a halo tile: rows of 10 pixels, groups of 8 of them shifted by a filter tap ----

struct HaloParams {
    TensorMap pixels;   // 64 channels x 10 x 10, all of it one box
    TensorMap weights;  // 64 k x 64 n
    Global<float> c;    // 64 x 64: 8 x 8 pixels under the tap, times the weights
    uint32_t row, column;
    uint32_t unused[12];
};

struct HaloShared {
    alignas(1024) Bf16 pixels[10][10][64];
    alignas(1024) Bf16 weights[64][64];
    Mbarrier full;
};

KERNEL(test_wgmma_halo, HaloParams, 128, HaloShared) {
    if (threadIdx.x == 0) {
        mbarrier_init(shared.full, 1);
        fence_mbarrier_init();
        mbarrier_expect_bytes(shared.full, sizeof(shared.pixels) + sizeof(shared.weights));
        tma_load<3>(shared.pixels, p.pixels, shared.full, {0, 0, 0});
        tma_load<2>(shared.weights, p.weights, shared.full, {0, 0});
    }
    syncthreads();
    mbarrier_wait(shared.full, 0, {kernel, "full"});
    float acc[32];
    wgmma_fence();
    for (int k = 0; k < 4; ++k) {
        const uint64_t a = matrix_descriptor(&shared.pixels[p.row][p.column][16 * k], 0, 1280);
        wgmma_bf16<64>(acc, a, matrix_descriptor(&shared.weights[0][16 * k], 0, 1024), k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    const uint32_t row = threadIdx.x / 32 * 16 + lane_index() / 4;
    for (uint32_t i = 0; i < 32; ++i) {
        p.c[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + lane_index() % 4 * 2 + i % 2] = acc[i];
    }
}

// ---- TMA: a box to shared memory, shared memory as it is to `raw`, and the box on through another map ----

struct BoxParams {
    TensorMap from;
    TensorMap to;
    Global<uint32_t> raw;
    int32_t from_at[5];
    int32_t to_at[5];
    uint32_t bytes;
    uint32_t offset_w, offset_h;
    uint32_t unused;
};

struct BoxShared {
    alignas(1024) uint32_t box[32 * 1024 / 4];
    Mbarrier full;
};

DEVICE void dump(const BoxParams& p, const BoxShared& shared) {
    for (uint32_t i = threadIdx.x; i < p.bytes / 4; i += 64) p.raw[i] = shared.box[i];
}

template <int RANK>
DEVICE void copy_box(const BoxParams& p, BoxShared& shared, uint32_t kernel) {
    int32_t from[RANK], to[RANK];
    for (int i = 0; i < RANK; ++i) {
        from[i] = p.from_at[i];
        to[i] = p.to_at[i];
    }
    if (threadIdx.x == 0) {
        prefetch_tensor_map(p.from);
        mbarrier_init(shared.full, 1);
        fence_mbarrier_init();
        mbarrier_expect_bytes(shared.full, p.bytes);
        tma_load<RANK>(shared.box, p.from, shared.full, from);
    }
    syncthreads();
    mbarrier_wait(shared.full, 0, {kernel, "full"});
    dump(p, shared);
    if (threadIdx.x == 0) {
        tma_store<RANK>(p.to, shared.box, to);
        tma_store_commit();
        tma_store_wait<0>();
    }
}

KERNEL(test_tma_2d, BoxParams, 64, BoxShared) { copy_box<2>(p, shared, kernel); }
KERNEL(test_tma_3d, BoxParams, 64, BoxShared) { copy_box<3>(p, shared, kernel); }
KERNEL(test_tma_4d, BoxParams, 64, BoxShared) { copy_box<4>(p, shared, kernel); }
KERNEL(test_tma_5d, BoxParams, 64, BoxShared) { copy_box<5>(p, shared, kernel); }

KERNEL(test_tma_im2col, BoxParams, 64, BoxShared) {
    if (threadIdx.x == 0) {
        mbarrier_init(shared.full, 1);
        fence_mbarrier_init();
        mbarrier_expect_bytes(shared.full, p.bytes);
        tma_load_im2col(shared.box, p.from, shared.full, {p.from_at[0], p.from_at[1], p.from_at[2], p.from_at[3]},
                        uint16_t(p.offset_w), uint16_t(p.offset_h));
    }
    syncthreads();
    mbarrier_wait(shared.full, 0, {kernel, "full"});
    dump(p, shared);
}

// ---- a plain bulk copy, stmatrix, named barriers ----

struct WordsParams {
    Global<const uint32_t> from;
    Global<uint32_t> to;
    uint32_t index;  // element of `from`
    uint32_t unused;
};

struct WordsShared {
    alignas(16) uint32_t word[1024];
    Mbarrier full;
};

KERNEL(test_bulk_load, WordsParams, 64, WordsShared) {
    if (threadIdx.x == 0) {
        mbarrier_init(shared.full, 1);
        fence_mbarrier_init();
        mbarrier_expect_bytes(shared.full, 2048);
        bulk_load(shared.word, p.from, p.index, 1024, shared.full);
        bulk_load(&shared.word[256], p.from, p.index + 256, 1024, shared.full);
    }
    syncthreads();
    mbarrier_wait(shared.full, 0, {kernel, "full"});
    for (uint32_t i = threadIdx.x; i < 512; i += 64) p.to[i] = shared.word[i];
}

// Registers of two groups of matrices to shared memory, as they are and transposed.
KERNEL(test_stmatrix, WordsParams, 32, WordsShared) {
    const uint32_t lane = lane_index();
    uint32_t registers[2][4];
    for (uint32_t i = 0; i < 8; ++i) registers[i / 4][i % 4] = p.from[32 * i + lane];
    const auto row = [&](uint32_t group) { return &shared.word[128 * group + 4 * lane]; };
    stmatrix_x4<2>(registers, {row(0), row(1)});
    stmatrix_x4<2, true>(registers, {row(2), row(3)});
    syncwarp();
    for (uint32_t i = lane; i < 512; i += 32) p.to[i] = shared.word[i];
}

// Two halves of a block pass words to each other, meeting at two barriers of their own.
KERNEL(test_named_barrier, WordsParams, 128, WordsShared) {
    const uint32_t half = threadIdx.x / 64, i = threadIdx.x % 64;
    shared.word[threadIdx.x] = p.from[threadIdx.x];
    named_barrier_sync(1 + half, 64);
    const uint32_t neighbour = shared.word[64 * half + 63 - i];
    named_barrier_sync(3, 128);
    shared.word[64 * (1 - half) + i] = neighbour;
    named_barrier_sync(3, 128);
    p.to[threadIdx.x] = shared.word[threadIdx.x];
}

// Each thread makes four words of the bits of two floats.
KERNEL(test_halves, WordsParams, 128, NoShared) {
    const uint32_t first = p.from[2 * threadIdx.x], second = p.from[2 * threadIdx.x + 1];
    const float low = bits_float(first), high = bits_float(second);
    const uint32_t words[4] = {pack_bf16_relu(low, high), positive_halves(pack_bf16(low, high)), halves_of_signs<0, 2>(first),
                               halves_of_signs<1, 3>(first)};
    for (uint32_t i = 0; i < 4; ++i) p.to[4 * threadIdx.x + i] = words[i];
}

// ---- clusters: each of two blocks loads half of a tile for both, then tells the other that it has read it ----

struct ClusterParams {
    TensorMap from;  // boxes of 32 words x 8 rows of a tensor of 32 x 16 * tiles
    Global<uint32_t> to;  // 512 words a tile for each block
    uint32_t tiles;
    uint32_t unused[13];
};

struct ClusterShared {
    alignas(1024) uint32_t tile[512];
    Mbarrier full;
    Mbarrier empty;
};

KERNEL_CLUSTER(test_cluster, ClusterParams, 64, 2, ClusterShared) {
    const uint32_t rank = cluster_rank();
    if (threadIdx.x == 0) {
        mbarrier_init(shared.full, 1);
        mbarrier_init(shared.empty, 2 * 32);
        fence_mbarrier_init();
    }
    cluster_sync();
    if (warp_index() == 0) {
        if (elect_lane()) {
            for (uint32_t tile = 0; tile < p.tiles; ++tile) {
                mbarrier_wait(shared.empty, tile % 2 ^ 1, {kernel, "empty"});
                mbarrier_expect_bytes(shared.full, sizeof(shared.tile));
                tma_load_multicast<2>(&shared.tile[256 * rank], p.from, shared.full,
                                      {0, int32_t(16 * tile + 8 * rank)}, 0b11);
            }
        }
    } else {
        for (uint32_t tile = 0; tile < p.tiles; ++tile) {
            mbarrier_wait(shared.full, tile % 2, {kernel, "full"});
            for (uint32_t i = lane_index(); i < 512; i += 32) {
                p.to[(p.tiles * blockIdx.x + tile) * 512 + i] = shared.tile[i];
            }
            // Both blocks write this tile, so both must know that it was read.
            mbarrier_arrive_remote(shared.empty, rank ^ 1);
            mbarrier_arrive_remote(shared.empty, rank);
        }
    }
    cluster_sync();
}

// Two blocks swap words, round after round: six from each thread, which lands at the same place of the other block.

struct SwapParams {
    Global<const uint32_t> from;  // [block][round][thread][6]
    Global<uint32_t> to;
    uint32_t rounds;
    uint32_t unused;
};

struct SwapShared {
    Bytes16 four[64];
    Bytes8 two[64];
    Mbarrier full;
    Mbarrier read;
};

KERNEL_CLUSTER(test_store_remote, SwapParams, 64, 2, SwapShared) {
    const uint32_t peer = cluster_rank() ^ 1, i = threadIdx.x;
    if (threadIdx.x == 0) {
        mbarrier_init(shared.full, 1);
        mbarrier_init(shared.read, 64);
        fence_mbarrier_init();
    }
    cluster_sync();
    for (uint32_t round = 0; round < p.rounds; ++round) {
        const uint32_t at = ((p.rounds * blockIdx.x + round) * 64 + i) * 6;
        if (round > 0) mbarrier_wait_cluster(shared.read, round % 2 ^ 1, {kernel, "read"});
        store_remote(shared.four[i], {{p.from[at], p.from[at + 1], p.from[at + 2], p.from[at + 3]}}, shared.full, peer);
        store_remote(shared.two[i], {{p.from[at + 4], p.from[at + 5]}}, shared.full, peer);
        if (threadIdx.x == 0) mbarrier_expect_bytes(shared.full, sizeof shared.four + sizeof shared.two);
        mbarrier_wait_cluster(shared.full, round % 2, {kernel, "full"});
        for (uint32_t word = 0; word < 4; ++word) p.to[at + word] = shared.four[i].word[word];
        for (uint32_t word = 0; word < 2; ++word) p.to[at + 4 + word] = shared.two[i].word[word];
        // Behind the last round nothing more comes, and each may leave.
        if (round + 1 < p.rounds) mbarrier_arrive_remote(shared.read, peer);
    }
}

}  // namespace secateur
