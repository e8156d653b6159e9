// The random start of an attack: perturbed = image + noise, the noise of an image keyed by its sample. Uniform starts and those
// on the surface are clipped to [0, 1]; the normal one is not: TRADES and MART take their first gradient there.
//
// Element e of a sample uses word e % 4 of Philox block e / 4; a thread takes one block, four elements, or for the surface, which
// needs the largest of an image, three blocks. All have the same bits on every device but the normal one, which differs by the
// last places of log, sin and cos.

#include "portable/portable.h"

namespace secateur {

constexpr uint32_t IMAGE_BLOCKS = 32 * 32 * 3 / 4;

struct PerturbParams {
    Global<const uint32_t> samples;
    Global<const float> images;  // batch x 3072
    Global<float> perturbed;     // may be the images
    Philox random;
    uint32_t blocks;  // batch * 768
    float size;       // radius, or standard deviation
};

template <bool NORMAL>
DEVICE void perturb(const PerturbParams& p) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.blocks) return;
    const PhiloxBlock random = p.random.block(p.samples[i / IMAGE_BLOCKS], i % IMAGE_BLOCKS);
    Float4 noise;
    if constexpr (NORMAL) {
#pragma unroll
        for (int pair = 0; pair < 4; pair += 2) {
            float x, y;
            philox_normals(random.word[pair], random.word[pair + 1], x, y);
            noise.value[pair] = product(p.size, x);
            noise.value[pair + 1] = product(p.size, y);
        }
    } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) noise.value[k] = philox_symmetric(random.word[k], p.size);
    }
    Float4 x = load_vector<Float4>(p.images, int64_t(i) * 4);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        x.value[k] += noise.value[k];
        if constexpr (!NORMAL) x.value[k] = fminf(fmaxf(x.value[k], 0.0f), 1.0f);
    }
    store_vector(p.perturbed, int64_t(i) * 4, x);
}

KERNEL(perturb_uniform, PerturbParams, 256, NoShared) { perturb<false>(p); }
KERNEL(perturb_normal, PerturbParams, 256, NoShared) { perturb<true>(p); }

constexpr uint32_t SURFACE_THREADS = 256;
constexpr int BLOCKS_PER_THREAD = IMAGE_BLOCKS / SURFACE_THREADS;
static_assert(IMAGE_BLOCKS % SURFACE_THREADS == 0, "every thread takes as many blocks");

struct SurfaceShared {
    float largest[SURFACE_THREADS / 32];
};

KERNEL(perturb_surface, PerturbParams, 256, SurfaceShared) {
    const uint32_t sample = p.samples[blockIdx.x];
    Float4 t[BLOCKS_PER_THREAD];
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < BLOCKS_PER_THREAD; ++i) {
        const PhiloxBlock random = p.random.block(sample, uint32_t(i) * SURFACE_THREADS + threadIdx.x);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            t[i].value[k] = philox_symmetric(random.word[k], 1.0f);
            largest = fmaxf(largest, fabsf(t[i].value[k]));
        }
    }
    largest = block_max<SURFACE_THREADS>(largest, shared.largest);
#pragma unroll
    for (int i = 0; i < BLOCKS_PER_THREAD; ++i) {
        const int64_t at = (int64_t(blockIdx.x) * IMAGE_BLOCKS + uint32_t(i) * SURFACE_THREADS + threadIdx.x) * 4;
        Float4 x = load_vector<Float4>(p.images, at);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const float moved = x.value[k] + product(p.size, t[i].value[k] / largest);
            x.value[k] = fminf(fmaxf(moved, 0.0f), 1.0f);
        }
        store_vector(p.perturbed, at, x);
    }
}

}  // namespace secateur
