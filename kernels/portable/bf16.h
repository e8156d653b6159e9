// bf16: the upper half of an f32, rounded to nearest even; a NaN becomes 0x7FFF, as the cvt instruction has it.
#pragma once

#include <string.h>

#include "portable/kernel.h"

namespace secateur {

/// The 32 bits of a float, and back.
DEVICE uint32_t float_bits(float f) {
#ifdef __CUDACC__
    return __float_as_uint(f);
#else
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
#endif
}
DEVICE float bits_float(uint32_t bits) {
#ifdef __CUDACC__
    return __uint_as_float(bits);
#else
    float f;
    memcpy(&f, &bits, 4);
    return f;
#endif
}

struct Bf16 {
    uint16_t bits;
};

DEVICE float to_float(Bf16 b) { return bits_float(uint32_t(b.bits) << 16); }

DEVICE Bf16 to_bf16(float f) {
#ifdef __CUDACC__
    Bf16 b;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b.bits) : "f"(f));
    return b;
#else
    const uint32_t bits = float_bits(f);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return {0x7FFF};
    return {uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
#endif
}

/// Two bf16 in a word: the first in the low half, as they lie in memory.
DEVICE uint32_t pack_bf16(float low, float high) {
#ifdef __CUDACC__
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return uint32_t(to_bf16(high).bits) << 16 | to_bf16(low).bits;
#endif
}
/// The same of what is above zero, else +0; a NaN stays one.
DEVICE uint32_t pack_bf16_relu(float low, float high) {
#ifdef __CUDACC__
    uint32_t word;
    asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return pack_bf16(low <= 0.0f ? 0.0f : low, high <= 0.0f ? 0.0f : high);
#endif
}
DEVICE float low_float(uint32_t pair) { return bits_float(pair << 16); }
DEVICE float high_float(uint32_t pair) { return bits_float(pair & 0xFFFF0000u); }

}  // namespace secateur
