// Vectors of floats for the arithmetic of host/mma.cpp and host/wgmma_product.cpp, in the extension that GCC and Clang share.
#pragma once

#include <string.h>

namespace secateur::host {

typedef float Quad __attribute__((vector_size(16)));
typedef float Octet __attribute__((vector_size(32)));
typedef float Hexadecet __attribute__((vector_size(64)));

// The instructions are spelled out, as the functions that use these are compiled for several instruction sets, of which the compiler
// knows only in the one that it inlines them into.
#if defined(__x86_64__) && defined(__GNUC__)
#define SECATEUR_HOST_X86 1
#else
#define SECATEUR_HOST_X86 0
#endif

/// Four floats, again and again across the vector.
template <class Vector>
__attribute__((always_inline)) inline Vector repeat(const float* four) {
    const Quad& quad = *reinterpret_cast<const Quad*>(four);
    Vector vector;
#if SECATEUR_HOST_X86
    if constexpr (sizeof(Vector) == 64) {
        asm("vbroadcastf32x4 %1, %0" : "=v"(vector) : "m"(quad));
        return vector;
    } else if constexpr (sizeof(Vector) == 32) {
        asm("vbroadcastf128 %1, %0" : "=x"(vector) : "m"(quad));
        return vector;
    }
#endif
    for (size_t i = 0; i < sizeof(Vector) / 16; ++i) memcpy(reinterpret_cast<char*>(&vector) + 16 * i, &quad, 16);
    return vector;
}

/// `sum += a * b` of bf16 numbers. Their products are exact in f32, so a fused operation gives the bits of two, but where a product is
/// below 2^-126.
template <class Vector>
__attribute__((always_inline)) inline void add_product(Vector& sum, Vector a, Vector b) {
#if SECATEUR_HOST_X86
    if constexpr (sizeof(Vector) == 64) {
        asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
        return;
    } else if constexpr (sizeof(Vector) == 32) {
        asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
        return;
    }
#endif
    sum += a * b;
}

}  // namespace secateur::host
