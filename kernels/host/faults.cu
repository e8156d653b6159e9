// Kernels for the tests of the platform itself (tests/runner.rs): each portable function once, and each fault that the runner
// promises to catch, planted. Compiled for the host only, as everything in this folder.

#include "portable/portable.h"

namespace secateur {

struct ScaleParams {
    Global<const float> x;
    Global<float> y;
    float factor;
    uint32_t count;
};

KERNEL(test_scale, ScaleParams, 256, NoShared) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.count) p.y[i] = p.factor * p.x[i];
}

struct TileParams {
    Global<const Bf16> a;  // 64 x k, row-major
    Global<const Bf16> b;  // k x 32, row-major
    Global<float> c;       // 64 x 32
    uint32_t k;            // a multiple of 16
    uint32_t repeat;
};

struct TileShared {
    alignas(16) Bf16 a[2][64][16 + 8];
    alignas(16) Bf16 b[2][16][32 + 8];
};

// One warp multiplies a 64 x 32 tile the way a convolution does: cp.async in two stages, ldmatrix, mma.
KERNEL(test_mma_64x32, TileParams, 32, TileShared) {
    const uint32_t lane = lane_index();
    float acc[4][4][4] = {};
    const auto load = [&](uint32_t stage, uint32_t k) {
        for (uint32_t i = lane; i < 128; i += 32) {
            cp_async_16(&shared.a[stage][i / 2][8 * (i % 2)], p.a, (i / 2) * p.k + k + 8 * (i % 2), k < p.k);
        }
        for (uint32_t i = lane; i < 64; i += 32) {
            cp_async_16(&shared.b[stage][i / 4][8 * (i % 4)], p.b, (k + i / 4) * 32 + 8 * (i % 4), k < p.k);
        }
        cp_async_commit();
    };
    for (uint32_t repeat = 0; repeat < p.repeat; ++repeat) {
        load(0, 0);
        for (uint32_t k = 0; k < p.k; k += 16) {
            const uint32_t stage = k / 16 % 2;
            load(1 - stage, k + 16);
            cp_async_wait<1>();
            syncwarp();
            uint32_t a[4][4], b[4][2], pairs[2][4];
            const void* rows[4];
            for (uint32_t i = 0; i < 4; ++i) rows[i] = &shared.a[stage][16 * i + lane % 16][lane / 16 * 8];
            ldmatrix_x4<4>(a, {rows[0], rows[1], rows[2], rows[3]});
            ldmatrix_x4<2, true>(pairs, {&shared.b[stage][lane % 16][lane / 16 * 8],
                                         &shared.b[stage][lane % 16][16 + lane / 16 * 8]});
            for (uint32_t j = 0; j < 4; ++j) {
                b[j][0] = pairs[j / 2][j % 2 * 2];
                b[j][1] = pairs[j / 2][j % 2 * 2 + 1];
            }
            mma_bf16<4, 4>(acc, a, b);
            syncwarp();
        }
        cp_async_wait<0>();
    }
    for (uint32_t i = 0; i < 4; ++i) {
        for (uint32_t j = 0; j < 4; ++j) {
            for (uint32_t r = 0; r < 4; ++r) {
                p.c[(16 * i + lane / 4 + r / 2 * 8) * 32 + 8 * j + lane % 4 * 2 + r % 2] = acc[i][j][r];
            }
        }
    }
}

}  // namespace secateur
