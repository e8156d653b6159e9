// Normalise, add the residual, ReLU, and write the sign mask, in one pass over a convolution's output:
//
//   out = bf16(relu(scale * y + shift + residual)), mask bit = out > 0
//
// The residual is nothing, an activation, or a shortcut's convolution with its own normalisation. A thread takes eight
// channels of a pixel: 16 bytes in, 16 bytes and one byte of mask out. Sets of images that lie one after the other
// are the second dimension of the grid.

#include "portable/portable.h"

namespace secateur {

struct ApplyParams {
    Global<const Bf16> y;                     // sets x rows x channels
    Global<const float> statistics;           // sets x {mean, 1/deviation, scale, shift} x channels
    Global<const Bf16> residual;              // an activation, or a shortcut's y
    Global<const float> residual_statistics;  // of the shortcut
    Global<Bf16> out;
    Global<uint8_t> mask;
    uint32_t vectors;   // of a set: rows * channels / 8
    uint32_t channels;  // a power of two
};

enum class Residual { NONE, ACTIVATION, NORMALISED };

template <Residual RESIDUAL>
DEVICE void apply(const ApplyParams& p) {
    const uint32_t in_set = blockIdx.x * blockDim.x + threadIdx.x;
    if (in_set >= p.vectors) return;
    const int64_t vector = int64_t(blockIdx.y) * p.vectors + in_set;
    const int64_t at = vector * 8;
    const uint32_t channel = (in_set * 8) & (p.channels - 1);
    const uint32_t first = blockIdx.y * 4 * p.channels + channel;

    const Float8 y = load_bf16x8(p.y, at);
    const Float8 scale = load_float8(p.statistics, first + 2 * p.channels);
    const Float8 shift = load_float8(p.statistics, first + 3 * p.channels);
    Float8 out;
#pragma unroll
    for (int c = 0; c < 8; ++c) out.value[c] = y.value[c] * scale.value[c] + shift.value[c];

    if constexpr (RESIDUAL != Residual::NONE) {
        Float8 residual = load_bf16x8(p.residual, at);
        if constexpr (RESIDUAL == Residual::NORMALISED) {
            const Float8 scale_s = load_float8(p.residual_statistics, first + 2 * p.channels);
            const Float8 shift_s = load_float8(p.residual_statistics, first + 3 * p.channels);
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                residual.value[c] = residual.value[c] * scale_s.value[c] + shift_s.value[c];
            }
        }
#pragma unroll
        for (int c = 0; c < 8; ++c) out.value[c] += residual.value[c];
    }

    uint32_t mask = 0;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
        // Written so that a NaN passes: a broken step must show in the loss, not vanish in a ReLU.
        if (!(out.value[c] <= 0.0f)) mask |= 1u << c;
        else out.value[c] = 0.0f;
    }
    store_bf16x8(p.out, at, out);
    p.mask[vector] = uint8_t(mask);
}

KERNEL(batch_norm_relu, ApplyParams, 256, NoShared) { apply<Residual::NONE>(p); }
KERNEL(batch_norm_add_relu, ApplyParams, 256, NoShared) { apply<Residual::ACTIVATION>(p); }
KERNEL(batch_norm_add_normalised_relu, ApplyParams, 256, NoShared) { apply<Residual::NORMALISED>(p); }

}  // namespace secateur
