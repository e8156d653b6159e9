// Kernels that test the platform on the host: each portable function once, and each fault that the emulator must find, injected.
//
// Targets: none

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

// The product of one warp tile straight from fragments: every combination of row and column tiles that the emulator treats
// differently.
template <int MT, int NT>
DEVICE void multiply_fragments(const TileParams& p) {
    const uint32_t g = lane_index() / 4, t = lane_index() % 4;
    uint32_t a[MT][4], b[NT][2];
    float acc[MT][NT][4];
    const auto pair = [](Bf16 low, Bf16 high) { return uint32_t(high.bits) << 16 | low.bits; };
    for (uint32_t i = 0; i < MT; ++i) {
        for (uint32_t r = 0; r < 4; ++r) {
            const uint32_t place = (16 * i + g + r % 2 * 8) * 16 + 2 * t + r / 2 * 8;
            a[i][r] = pair(p.a[place], p.a[place + 1]);
        }
    }
    for (uint32_t j = 0; j < NT; ++j) {
        for (uint32_t r = 0; r < 2; ++r) {
            const uint32_t place = (2 * t + 8 * r) * 8 * NT + 8 * j + g;
            b[j][r] = pair(p.b[place], p.b[place + 8 * NT]);
        }
    }
    for (uint32_t i = 0; i < MT; ++i) {
        for (uint32_t j = 0; j < NT; ++j) {
            for (uint32_t r = 0; r < 4; ++r) acc[i][j][r] = 1.0f;
        }
    }
    mma_bf16<MT, NT>(acc, a, b);
    for (uint32_t i = 0; i < MT; ++i) {
        for (uint32_t j = 0; j < NT; ++j) {
            for (uint32_t r = 0; r < 4; ++r) {
                p.c[(16 * i + g + r / 2 * 8) * 8 * NT + 8 * j + 2 * t + r % 2] = acc[i][j][r];
            }
        }
    }
}

KERNEL(test_mma_1x1, TileParams, 32, NoShared) { multiply_fragments<1, 1>(p); }
KERNEL(test_mma_2x3, TileParams, 32, NoShared) { multiply_fragments<2, 3>(p); }
KERNEL(test_mma_3x2, TileParams, 32, NoShared) { multiply_fragments<3, 2>(p); }
KERNEL(test_mma_7x8, TileParams, 32, NoShared) { multiply_fragments<7, 8>(p); }

struct MatrixParams {
    Global<const uint32_t> matrices;  // four 8x8 matrices of bf16, 32 words each
    Global<uint32_t> registers;       // 2 x 32 lanes x 4: as they are, then transposed
};

struct MatrixShared {
    alignas(16) uint32_t word[4][8][4];
};

KERNEL(test_ldmatrix, MatrixParams, 32, MatrixShared) {
    const uint32_t lane = lane_index();
    for (uint32_t i = 0; i < 4; ++i) shared.word[i][lane / 4][lane % 4] = p.matrices[32 * i + lane];
    syncwarp();
    uint32_t plain[1][4], transposed[1][4];
    ldmatrix_x4<1>(plain, {&shared.word[lane / 8][lane % 8][0]});
    ldmatrix_x4<1, true>(transposed, {&shared.word[lane / 8][lane % 8][0]});
    for (uint32_t i = 0; i < 4; ++i) {
        p.registers[4 * lane + i] = plain[0][i];
        p.registers[128 + 4 * lane + i] = transposed[0][i];
    }
}

struct WarpParams {
    Global<const float> x;
    Global<float> y;        // ten results for each of 128 threads
    Global<uint32_t> words;  // three for each thread, then two counters
};

struct WarpShared {
    float scratch[4];
    uint32_t count;
    uint32_t largest;
};

KERNEL(test_collectives, WarpParams, 128, WarpShared) {
    const uint32_t i = threadIdx.x;
    const float x = p.x[i];
    if (i == 0) shared.count = shared.largest = 0;
    syncthreads();
    const float results[11] = {shfl(x, 3),
                               shfl(x, i * 7 + 1),
                               shfl_xor(x, 5),
                               shfl_down(x, 4),
                               shfl_up(x, 9),
                               warp_sum(x),
                               warp_max(x),
                               block_sum<128>(x, shared.scratch),
                               block_max<128>(x, shared.scratch),
                               float(shfl(double(x), 31)),
                               float(warp_sum(double(x)) - double(warp_sum(x)))};
    for (uint32_t r = 0; r < 11; ++r) p.y[11 * i + r] = results[r];
    p.words[3 * i] = ballot(x > 0.0f);
    p.words[3 * i + 1] = count_bits(i * 0x9E3779B9u);
    p.words[3 * i + 2] = lowest_bit(i);
    atomic_add(shared.count, i);
    atomic_max(shared.largest, i * 3 % 128);
    atomic_add(p.words, 384, 1);
    atomic_max(p.words, 385, blockIdx.x * 128 + i);
    syncthreads();
    if (i == 0) {
        p.words[386] = shared.count;
        p.words[387] = shared.largest;
    }
}

struct Bf16Params {
    Global<const float> x;
    Global<Bf16> rounded;
    Global<uint32_t> packed;
    Global<float> widened;
    uint32_t count;
};

KERNEL(test_bf16, Bf16Params, 128, NoShared) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.count) return;
    p.rounded[i] = to_bf16(p.x[i]);
    p.widened[i] = to_float(p.rounded[i]);
    if (i % 2 == 0 && i + 1 < p.count) p.packed[i / 2] = pack_bf16(p.x[i], p.x[i + 1]);
}

struct PhiloxParams {
    Global<uint32_t> words;   // four for each sample
    Global<float> symmetric;  // likewise
    Philox key;
    float radius;
    uint32_t block;
};

KERNEL(test_philox, PhiloxParams, 32, NoShared) {
    const uint32_t sample = threadIdx.x;
    const PhiloxBlock numbers = p.key.block(sample, p.block);
    for (uint32_t i = 0; i < 4; ++i) {
        p.words[4 * sample + i] = numbers.word[i];
        p.symmetric[4 * sample + i] = philox_symmetric(numbers.word[i], p.radius);
    }
}

// ---- injected faults ----

struct FaultParams {
    Global<const float> x;
    Global<float> y;
    uint32_t injected;  // 0: the kernel is right
    uint32_t unused;
};

struct FaultShared {
    alignas(16) float value[128];
};

KERNEL(fault_misaligned_vector, FaultParams, 32, NoShared) {
    const uint32_t i = 4 * threadIdx.x;
    store_vector(p.y, i, load_vector<Float4>(p.x, i + p.injected));
}

KERNEL(fault_missing_copy_wait, FaultParams, 32, FaultShared) {
    const uint32_t i = 4 * threadIdx.x;
    cp_async_16(&shared.value[i], p.x, i);
    cp_async_commit();
    if (p.injected == 0) cp_async_wait<0>();
    store_vector(p.y, i, *reinterpret_cast<const Float4*>(&shared.value[i]));
}

KERNEL(fault_missing_barrier, FaultParams, 128, FaultShared) {
    const uint32_t i = threadIdx.x;
    shared.value[i] = p.x[i];
    if (p.injected == 0) syncthreads();
    p.y[i] = shared.value[127 - i];
}

// 1: a read before the wait, 2: a write before it, 3: a copy before it, 4: half of the threads do not wait.
KERNEL_EARLY(fault_early_access, FaultParams, 32, FaultShared) {
    const uint32_t i = 4 * threadIdx.x;
    if (p.injected == 1 && p.x[i] == 0.0f) return;
    if (p.injected == 2) p.y[i] = 0.0f;
    if (p.injected == 3) cp_async_16(&shared.value[i], p.x, i);
    if (p.injected != 4 || threadIdx.x < 16) wait_for_prerequisites();
    store_vector(p.y, i, load_vector<Float4>(p.x, i));
}

KERNEL(fault_divergent_barrier, FaultParams, 128, NoShared) {
    if (p.injected == 0 || threadIdx.x < 64) syncthreads();
    if (p.injected == 2 && threadIdx.x >= 64) syncwarp();
    p.y[threadIdx.x] = p.x[threadIdx.x];
}

KERNEL(fault_divergent_collective, FaultParams, 32, NoShared) {
    float x = p.x[threadIdx.x];
    if (p.injected == 1 && threadIdx.x >= 16) {
        x += float(ballot(x > 0.0f));
    } else if (p.injected == 2 && threadIdx.x >= 16) {
        x += float(shfl(uint64_t(1), 0));
    } else {
        x += shfl(x, 0);
    }
    p.y[threadIdx.x] = x;
}

KERNEL(fault_shared_overrun, FaultParams, 128, FaultShared) {
    float* value = shared.value;
    value[threadIdx.x + p.injected] = p.x[threadIdx.x];
    p.y[threadIdx.x] = value[threadIdx.x + p.injected];
}

KERNEL(fault_copy_outside_shared, FaultParams, 32, FaultShared) {
    cp_async_16(&shared.value[0] + 128 * p.injected, p.x, 0);
    cp_async_commit();
    cp_async_wait<0>();
    p.y[threadIdx.x] = shared.value[threadIdx.x % 4];
}

KERNEL(fault_misaligned_matrix, FaultParams, 32, FaultShared) {
    shared.value[threadIdx.x] = p.x[threadIdx.x];
    syncwarp();
    uint32_t registers[1][4];
    ldmatrix_x4<1>(registers, {&shared.value[p.injected]});
    p.y[threadIdx.x] = float(registers[0][0]);
}

}  // namespace secateur
