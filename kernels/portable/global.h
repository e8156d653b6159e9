// Pointers to device memory: plain ones on a GPU, checked ones on the host.
//
// On the host the eight bytes are a handle (host/memory.h): which allocation, and the offset in it. Arithmetic is integer
// arithmetic; every access is checked for life, bounds and alignment, and a bad one ends the launch with an error.
#pragma once

#include <string.h>

#include <type_traits>

#include "portable/kernel.h"
#ifndef __CUDACC__
#include "host/memory.h"
#endif

namespace secateur {

/// A pointer to elements of T in device memory; eight bytes in both worlds, so that parameter structs agree.
template <class T>
struct Global {
#ifdef __CUDACC__
    T* pointer;

    DEVICE T& operator[](int64_t i) const { return pointer[i]; }
    DEVICE Global operator+(int64_t n) const { return {pointer + n}; }
    DEVICE bool present() const { return pointer != nullptr; }

    template <class U, class = std::enable_if_t<std::is_same<U, const T>::value && !std::is_same<U, T>::value>>
    DEVICE operator Global<U>() const {
        return {pointer};
    }
    /// The same place seen as elements of another type.
    template <class U>
    DEVICE Global<U> as() const {
        return {reinterpret_cast<U*>(pointer)};
    }
#else
    uint64_t address;

    T& operator[](int64_t i) const { return *at<T>(i); }
    Global operator+(int64_t n) const { return {address + static_cast<uint64_t>(n) * sizeof(T)}; }
    bool present() const { return address != 0; }

    template <class U, class = std::enable_if_t<std::is_same<U, const T>::value && !std::is_same<U, T>::value>>
    operator Global<U>() const {
        return {address};
    }
    template <class U>
    Global<U> as() const {
        return {address};
    }
    /// The checked host pointer of a V that starts at element `i`.
    template <class V>
    V* at(int64_t i) const {
        host::check_waited();
        return static_cast<V*>(host::resolve(address + static_cast<uint64_t>(i) * sizeof(T), sizeof(V), alignof(V)));
    }
#endif
};

static_assert(sizeof(Global<float>) == 8, "parameter structs are shared with 64-bit Rust");

/// 16, 8 and 4 bytes, for wide accesses.
struct alignas(16) Bytes16 {
    uint32_t word[4];
};
struct alignas(8) Bytes8 {
    uint32_t word[2];
};
struct alignas(8) Float2 {
    float value[2];
};
struct alignas(16) Float4 {
    float value[4];
};
struct alignas(16) Double2 {
    double value[2];
};

/// Reads a V at element `i` of `g` in one access; `g + i` must be aligned to alignof(V), which is sizeof(V).
template <class V, class T>
DEVICE V load_vector(Global<T> g, int64_t i) {
    static_assert(alignof(V) == sizeof(V), "a vector type is aligned to its size");
#ifdef __CUDACC__
    return *reinterpret_cast<const V*>(g.pointer + i);
#else
    return *g.template at<const V>(i);
#endif
}

/// Writes `v` at element `i` of `g` in one access, aligned likewise.
template <class V, class T>
DEVICE void store_vector(Global<T> g, int64_t i, const V& v) {
    static_assert(alignof(V) == sizeof(V), "a vector type is aligned to its size");
    static_assert(!std::is_const<T>::value, "this memory is read only");
#ifdef __CUDACC__
    // In PTX, since nvcc 13.0 stores even a uint4 word by word here.
    if constexpr (sizeof(V) == 16) {
        uint32_t word[4];
        memcpy(word, &v, 16);
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(g.pointer + i), "r"(word[0]), "r"(word[1]),
                     "r"(word[2]), "r"(word[3])
                     : "memory");
    } else if constexpr (sizeof(V) == 8) {
        uint32_t word[2];
        memcpy(word, &v, 8);
        asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(g.pointer + i), "r"(word[0]), "r"(word[1]) : "memory");
    } else {
        *reinterpret_cast<V*>(g.pointer + i) = v;
    }
#else
    *g.template at<V>(i) = v;
#endif
}

}  // namespace secateur
