// A vector of the last layer's shape, [V, b] = classes x (features + 1) in f64, against features h:
//
//   products[i] = <g_i, [V, b]> = sum over the terms of dz_i . (V h_i + b)
//   moved = logits - rate (V h + b)
//
// V h + b is a matrix product in f64: a block takes 64 samples and ten classes at a time, with the features in chunks of 64
// that come to shared memory while the chunk before is multiplied. A warp takes every eighth group of four features for all
// 64 samples, two a lane; so V is read by broadcast, and the warps' sums are added in the order of the warps.

#include "ops/last_layer/gradients.h"

namespace secateur {

constexpr uint32_t TILE_WARPS = 8;
constexpr uint32_t TILE_THREADS = TILE_WARPS * 32;
constexpr uint32_t TILE_SAMPLES = 64;
constexpr int TILE_CLASSES = 10;
constexpr uint32_t CHUNK = 64;
/// Four more than a chunk: lanes that read the same features of neighbouring samples meet different banks.
constexpr uint32_t CHUNK_PITCH = CHUNK + 4;
/// Elements of V in a chunk that a thread brings.
constexpr int VECTOR_SHARE = (CHUNK * TILE_CLASSES + TILE_THREADS - 1) / TILE_THREADS;

/// Two chunks: one is multiplied while the next arrives.
struct TileChunks {
    alignas(16) float features[2][TILE_SAMPLES][CHUNK_PITCH];
    double vector[2][CHUNK][TILE_CLASSES];
};

struct TileShared {
    union {
        TileChunks chunks;
        double sums[TILE_WARPS][TILE_CLASSES][TILE_SAMPLES];
    };
};

/// The operands of V h + b.
struct TileOperands {
    Global<const float> features;
    Global<const double> vector;
    uint32_t len;
    uint32_t classes;
    uint32_t width;
    uint32_t first_sample;
    uint32_t first_class;
};

/// Starts the copy of the features of a chunk; zeros beyond the last sample.
DEVICE void start_features(const TileOperands& o, TileShared& shared, uint32_t chunk) {
#pragma unroll
    for (uint32_t i = threadIdx.x; i < TILE_SAMPLES * CHUNK / 4; i += TILE_THREADS) {
        const uint32_t sample = i / (CHUNK / 4), f = i % (CHUNK / 4) * 4;
        const int64_t from = int64_t(o.first_sample + sample) * o.width + chunk * CHUNK + f;
        cp_async_16(&shared.chunks.features[chunk % 2][sample][f], o.features, from, o.first_sample + sample < o.len);
    }
    cp_async_commit();
}

/// This thread's share of V in a chunk; zeros beyond the last class.
DEVICE void load_share(const TileOperands& o, uint32_t chunk, double (&share)[VECTOR_SHARE]) {
#pragma unroll
    for (int k = 0; k < VECTOR_SHARE; ++k) {
        const uint32_t i = threadIdx.x + k * TILE_THREADS;
        const uint32_t c = o.first_class + i / CHUNK;
        share[k] = 0.0;
        if (i < CHUNK * TILE_CLASSES && c < o.classes) {
            share[k] = o.vector[int64_t(c) * (o.width + 1) + chunk * CHUNK + i % CHUNK];
        }
    }
}

DEVICE void store_share(TileShared& shared, uint32_t chunk, const double (&share)[VECTOR_SHARE]) {
#pragma unroll
    for (int k = 0; k < VECTOR_SHARE; ++k) {
        const uint32_t i = threadIdx.x + k * TILE_THREADS;
        if (i < CHUNK * TILE_CLASSES) shared.chunks.vector[chunk % 2][i % CHUNK][i / CHUNK] = share[k];
    }
}

/// Leaves each warp's part of V h in `shared.sums`, after a barrier; another barrier is due before the next tile.
DEVICE void multiply_tile(const TileOperands& o, TileShared& shared) {
    double sums[2][TILE_CLASSES] = {};
    double share[VECTOR_SHARE];
    start_features(o, shared, 0);
    load_share(o, 0, share);
    store_share(shared, 0, share);

    const uint32_t chunks = o.width / CHUNK;
    for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
        const bool more = chunk + 1 < chunks;
        cp_async_wait<0>();
        syncthreads();
        if (more) {
            start_features(o, shared, chunk + 1);
            load_share(o, chunk + 1, share);
        }
#pragma unroll 1
        for (uint32_t group = 0; group < CHUNK / 4 / TILE_WARPS; ++group) {
            const uint32_t f = (group * TILE_WARPS + warp_index()) * 4;
            const auto& features = shared.chunks.features[chunk % 2];
            const Float4 h[2] = {*reinterpret_cast<const Float4*>(&features[lane_index()][f]),
                                 *reinterpret_cast<const Float4*>(&features[lane_index() + 32][f])};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const double wide[2] = {h[0].value[i], h[1].value[i]};
                const double(&vector)[TILE_CLASSES] = shared.chunks.vector[chunk % 2][f + i];
#pragma unroll
                for (int c = 0; c < TILE_CLASSES; ++c) {
                    sums[0][c] = fused(wide[0], vector[c], sums[0][c]);
                    sums[1][c] = fused(wide[1], vector[c], sums[1][c]);
                }
            }
        }
        if (more) store_share(shared, chunk + 1, share);
    }
    syncthreads();
#pragma unroll
    for (int c = 0; c < TILE_CLASSES; ++c) {
        shared.sums[warp_index()][c][lane_index()] = sums[0][c];
        shared.sums[warp_index()][c][lane_index() + 32] = sums[1][c];
    }
    syncthreads();
}

/// Element (sample, class) of V h + b, both counted from the tile's first.
DEVICE double tile_element(const TileOperands& o, const TileShared& shared, uint32_t sample, uint32_t c) {
    double sum = shared.sums[0][c][sample];
#pragma unroll
    for (uint32_t warp = 1; warp < TILE_WARPS; ++warp) sum += shared.sums[warp][c][sample];
    return sum + o.vector[int64_t(o.first_class + c) * (o.width + 1) + o.width];
}

struct GradientProductsParams {
    Gradients gradients;
    Global<const double> vector;  // classes x (width + 1)
    Global<double> products;      // len
};

KERNEL_OCCUPANCY(gradient_products, GradientProductsParams, TILE_THREADS, 2, TileShared) {
    const Gradients& g = p.gradients;
    // Four threads a sample share the classes.
    const uint32_t own = threadIdx.x / 4, strand = threadIdx.x % 4;
    const uint32_t first_sample = blockIdx.x * TILE_SAMPLES;
    const uint32_t sample = first_sample + own;
    double product = 0.0;
    for (uint32_t term = 0; term < g.terms; ++term) {
        for (uint32_t first_class = 0; first_class < g.classes; first_class += TILE_CLASSES) {
            const TileOperands o = {g.features[term], p.vector, g.len, g.classes, g.width, first_sample, first_class};
            multiply_tile(o, shared);
            for (uint32_t c = strand; c < TILE_CLASSES; c += 4) {
                if (sample < g.len && first_class + c < g.classes) {
                    const double factor = g.logit_gradient[term][int64_t(sample) * g.classes + first_class + c];
                    product = fused(factor, tile_element(o, shared, own, c), product);
                }
            }
            syncthreads();
        }
    }
    product += shfl_xor(product, 1);
    product += shfl_xor(product, 2);
    if (strand == 0 && sample < g.len) p.products[sample] = product;
}

struct StepLogitsParams {
    Global<const float> features;  // len x width, on 16 bytes
    Global<const double> vector;   // classes x (width + 1)
    Global<const float> logits;    // len x classes
    Global<float> moved;           // len x classes; may be `logits`
    double rate;
    uint32_t len;
    uint32_t classes;
    uint32_t width;  // a multiple of 128
    uint32_t padding;
};

KERNEL_OCCUPANCY(step_logits, StepLogitsParams, TILE_THREADS, 2, TileShared) {
    const uint32_t first_sample = blockIdx.x * TILE_SAMPLES, first_class = blockIdx.y * TILE_CLASSES;
    const TileOperands o = {p.features, p.vector, p.len, p.classes, p.width, first_sample, first_class};
    multiply_tile(o, shared);
    for (uint32_t i = threadIdx.x; i < TILE_SAMPLES * TILE_CLASSES; i += TILE_THREADS) {
        const uint32_t own = i / TILE_CLASSES, c = i % TILE_CLASSES;
        if (first_sample + own < p.len && first_class + c < p.classes) {
            const int64_t at = int64_t(first_sample + own) * p.classes + first_class + c;
            p.moved[at] = float(double(p.logits[at]) - p.rate * tile_element(o, shared, own, c));
        }
    }
}

}  // namespace secateur
