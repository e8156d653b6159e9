// Eight channels at a time: the unit of every elementwise kernel (16 bytes of bf16, one byte of mask).
#pragma once

#include "portable/bf16.h"
#include "portable/global.h"

namespace secateur {

struct Float8 {
    float value[8];
};

/// Eight bf16 from element `i`, a multiple of 8.
DEVICE Float8 load_bf16x8(Global<const Bf16> g, int64_t i) {
    const Bytes16 bytes = load_vector<Bytes16>(g, i);
    Float8 v;
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        v.value[2 * pair] = low_float(bytes.word[pair]);
        v.value[2 * pair + 1] = high_float(bytes.word[pair]);
    }
    return v;
}

/// Rounds eight values to bf16 and stores them at element `i`, a multiple of 8.
DEVICE void store_bf16x8(Global<Bf16> g, int64_t i, const Float8& v) {
    Bytes16 bytes;
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        bytes.word[pair] = pack_bf16(v.value[2 * pair], v.value[2 * pair + 1]);
    }
    store_vector(g, i, bytes);
}

/// Eight f32 from element `i`, a multiple of 4.
DEVICE Float8 load_float8(Global<const float> g, int64_t i) {
    const Float4 low = load_vector<Float4>(g, i);
    const Float4 high = load_vector<Float4>(g, i + 4);
    return {{low.value[0], low.value[1], low.value[2], low.value[3], high.value[0], high.value[1], high.value[2],
             high.value[3]}};
}

}  // namespace secateur
