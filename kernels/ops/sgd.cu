// One optimizer step over the whole network in one launch: SGD with momentum and weight decay, the bf16 copies that the
// train pass reads, and the moving average.
//
//   g += weight_decay * w, v = momentum * v + g, w -= learning_rate * v, average = d * average + (1 - d) * w
//
// (Sutskever et al. 2013 in PyTorch's form.) With Nesterov's momentum w -= learning_rate * (g + momentum * v). A
// displacement of the weights is taken off them between the last two. The arena is flat: convolutions first, the stem
// first of all, then the other trainable tensors, then the running statistics, which only enter the average. A thread
// takes four elements; arenas have room for a multiple of four.

#include "portable/portable.h"

namespace secateur {

/// Where the parts of the arena end, in elements.
struct ArenaExtents {
    uint32_t stem;
    uint32_t convolutions;
    uint32_t trainable;
    uint32_t total;
};

/// Writes the bf16 copy of four weights from element `i`; the stem's lie in packed form (attack/pack.cu).
DEVICE void write_bf16(Global<Bf16> copies, const ArenaExtents& extents, uint32_t i, const Float4& w) {
    if (i < extents.stem) {
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) {
            const int64_t pixel = int64_t((i + k) / 3) * 8;
            const uint32_t channel = (i + k) % 3;
            const Bf16 value = to_bf16(w.value[k]);
            copies[pixel + channel] = value;
            copies[pixel + channel + 3] = value;
            if (channel < 2) copies[pixel + channel + 6] = Bf16{0};
        }
    } else {
        const int64_t at = i - extents.stem + extents.stem / 3 * 8;
        store_vector(copies, at, Bytes8{{pack_bf16(w.value[0], w.value[1]), pack_bf16(w.value[2], w.value[3])}});
    }
}

struct SgdArenas {
    Global<float> weights;
    Global<float> velocity;  // trainable elements
    Global<const float> gradients;
    Global<float> average;  // null where none is kept
    Global<const float> displacement;  // trainable elements, without room; null where there is none
    Global<Bf16> copies;
    ArenaExtents extents;
};

struct SgdParams {
    SgdArenas arenas;
    float learning_rate;
    float momentum;
    float weight_decay;
    float average_decay;
    uint32_t nesterov;
    uint32_t padding;
};

KERNEL(sgd_step, SgdParams, 256, NoShared) {
    const SgdArenas& at = p.arenas;
    const ArenaExtents& extents = at.extents;
    const uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= extents.total) return;

    Float4 w = load_vector<Float4>(at.weights, i);
    if (i < extents.trainable) {
        const Float4 g = load_vector<Float4>(at.gradients, i);
        Float4 v = load_vector<Float4>(at.velocity, i);
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) {
            // The last vector may reach into the running statistics.
            if (i + k >= extents.trainable) continue;
            const float slope = g.value[k] + p.weight_decay * w.value[k];
            v.value[k] = p.momentum * v.value[k] + slope;
            w.value[k] -= p.learning_rate * (p.nesterov ? slope + p.momentum * v.value[k] : v.value[k]);
            if (at.displacement.present()) w.value[k] -= at.displacement[i + k];
        }
        store_vector(at.velocity, i, v);
        store_vector(at.weights, i, w);
        if (i < extents.convolutions) write_bf16(at.copies, extents, i, w);
    }
    if (at.average.present()) {
        Float4 a = load_vector<Float4>(at.average, i);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            a.value[k] = p.average_decay * a.value[k] + (1.0f - p.average_decay) * w.value[k];
        }
        store_vector(at.average, i, a);
    }
}

struct CopiesParams {
    Global<const float> weights;
    Global<Bf16> copies;
    ArenaExtents extents;
};

/// The bf16 copies alone, after weights were loaded.
KERNEL(weights_to_bf16, CopiesParams, 256, NoShared) {
    const uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i < p.extents.convolutions) write_bf16(p.copies, p.extents, i, load_vector<Float4>(p.weights, i));
}

}  // namespace secateur
