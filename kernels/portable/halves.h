// Words as two halves of 16 bits: what makes a mask of packed bf16 and applies one. For files that say `// Targets: sm_90a`.
#pragma once

#include "portable/kernel.h"

namespace secateur {

/// Each half 1 where it is above 0 as a signed number, else 0: of packed bf16 those above zero, and NaN as bf16.h rounds it.
DEVICE uint32_t positive_halves(uint32_t pair) {
#ifdef __CUDACC__
    uint32_t ones;
    asm("min.relu.s16x2 %0, %1, %2;" : "=r"(ones) : "r"(pair), "r"(0x00010001));
    return ones;
#else
    return uint32_t(int16_t(pair) > 0) | uint32_t(int16_t(pair >> 16) > 0) << 16;
#endif
}

/// The low half all ones where the top bit of byte LOW of `word` is set, else 0; the high half likewise by byte HIGH.
template <uint32_t LOW, uint32_t HIGH>
DEVICE uint32_t halves_of_signs(uint32_t word) {
    static_assert(LOW < 4 && HIGH < 4, "a word has four bytes");
#ifdef __CUDACC__
    // A selector of 8 + byte repeats the sign of that byte.
    constexpr uint32_t selector = (8 + LOW) * 0x11 | (8 + HIGH) * 0x1100;
    uint32_t halves;
    asm("prmt.b32 %0, %1, 0, %2;" : "=r"(halves) : "r"(word), "n"(selector));
    return halves;
#else
    return (word >> (8 * LOW + 7) & 1) * 0xFFFFu | (word >> (8 * HIGH + 7) & 1) * 0xFFFF0000u;
#endif
}

}  // namespace secateur
