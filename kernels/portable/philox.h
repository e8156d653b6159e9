// Philox4x32-10, the mirror of src/philox.rs: the same counters, the same bits. tests/emulator/portable.rs compares the two.
#pragma once

#include "portable/exact.h"

namespace secateur {

/// Four random words.
struct PhiloxBlock {
    uint32_t word[4];
};

/// Everything a number depends on but its sample and index; filled by Rust from `philox::Key`.
struct Philox {
    uint32_t seed_low;
    uint32_t seed_high;
    uint32_t epoch;
    /// Purpose in the high byte, step below it.
    uint32_t purpose_and_step;

    /// Numbers 4 * block .. 4 * block + 4 of `sample`.
    DEVICE PhiloxBlock block(uint32_t sample, uint32_t block) const;
};

/// Ten rounds of Philox on a 128-bit counter under a 64-bit key.
DEVICE PhiloxBlock philox4x32_10(PhiloxBlock counter, uint32_t key_low, uint32_t key_high) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        if (round > 0) {
            key_low += 0x9E3779B9u;
            key_high += 0xBB67AE85u;
        }
        const uint64_t even = uint64_t(counter.word[0]) * 0xD2511F53u;
        const uint64_t odd = uint64_t(counter.word[2]) * 0xCD9E8D57u;
        counter = {{uint32_t(odd >> 32) ^ counter.word[1] ^ key_low, uint32_t(odd),
                    uint32_t(even >> 32) ^ counter.word[3] ^ key_high, uint32_t(even)}};
    }
    return counter;
}

DEVICE PhiloxBlock Philox::block(uint32_t sample, uint32_t block) const {
    return philox4x32_10({{block, sample, epoch, purpose_and_step}}, seed_low, seed_high);
}

/// Uniform on [0, 1) with 24 random bits: every value is exact in f32.
DEVICE float philox_unit(uint32_t word) { return float(word >> 8) * (1.0f / 16777216.0f); }

/// Uniform on [-radius, radius): one rounding, so the same bits on every device.
DEVICE float philox_symmetric(uint32_t word, float radius) {
    return product(radius, 2.0f * philox_unit(word) - 1.0f);
}

/// Two independent standard normals from two words (Box and Muller, 1958).
DEVICE void philox_normals(uint32_t first, uint32_t second, float& x, float& y) {
    // 1 - u is in (0, 1], so the logarithm is finite.
    const float radius = sqrtf(-2.0f * logf(1.0f - philox_unit(first)));
    const float turns = philox_unit(second);
#ifdef __CUDACC__
    // In half turns: the functions of radians carry a reduction for huge angles, and with it a stack frame.
    x = radius * cospif(2.0f * turns);
    y = radius * sinpif(2.0f * turns);
#else
    const double angle = 6.28318530717958647692 * double(turns);
    x = radius * float(cos(angle));
    y = radius * float(sin(angle));
#endif
}

}  // namespace secateur
