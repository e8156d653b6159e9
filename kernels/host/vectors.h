// Vectors of floats for the arithmetic of host/mma.cpp and host/wgmma_product.cpp, in the extension that GCC and Clang share.
#pragma once

#include <string.h>

namespace secateur::host {

typedef float Quad __attribute__((vector_size(16)));
typedef float Octet __attribute__((vector_size(32)));
typedef float Hexadecet __attribute__((vector_size(64)));

/// Four floats, again and again across the vector. Written as a shuffle: a wide load of what narrow stores have just written
/// waits for them to reach the cache.
template <class Vector>
__attribute__((always_inline)) inline Vector repeat(const float* four) {
    const Quad quad = *reinterpret_cast<const Quad*>(four);
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
    if constexpr (sizeof(Vector) == 64) {
        return __builtin_shufflevector(quad, quad, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
    } else if constexpr (sizeof(Vector) == 32) {
        return __builtin_shufflevector(quad, quad, 0, 1, 2, 3, 0, 1, 2, 3);
    } else {
        return quad;
    }
#else
    Vector v;
    for (size_t i = 0; i < sizeof(Vector) / 16; ++i) memcpy(reinterpret_cast<char*>(&v) + 16 * i, &quad, 16);
    return v;
#endif
}

}  // namespace secateur::host
