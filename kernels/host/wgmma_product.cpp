// The arithmetic of wgmma: operands through descriptors, products in f32.
//
// Operands are read in octets, 8 neighbours in m or n at one k: straight from MN-major rows, by 8x8 transposes from K-major ones.
// As in host/mma.cpp accumulators stay where the threads have them: thread (warp w, g, t) holds rows 16 w + g and + 8 of columns
// 2 t and 2 t + 1 of every eight as one row of N / 2 floats {c0, c1, c2, c3} ..., and a step adds {a, a, a', a'} x {b, b', b, b'}
// to it. Products, which are exact, are added in the order of k.

#include "host/wgmma.h"

#include <string.h>

#include <algorithm>
#include <memory>

#include "host/async_proxy.h"
#include "host/scheduler.h"
#include "host/vectors.h"

namespace secateur::host {

namespace {

/// Eight bf16.
typedef uint16_t Halves __attribute__((vector_size(16)));

#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(to_mask(a)){__VA_ARGS__})
typedef int32_t QuadMask __attribute__((vector_size(16)));
Halves to_mask(Halves);
QuadMask to_mask(Quad);
#endif

constexpr int k_step = 16;            // of one product
constexpr int max_steps = 4;          // products whose operands are expanded together
constexpr int max_k = k_step * max_steps;
constexpr int max_n = 256;

/// Expanded operands of up to max_steps products.
struct Operands {
    // a[w][g][k]: {row g, row g, row g + 8, row g + 8} of warp w's sixteen.
    alignas(64) float a[4][8][max_k][4];
    // b[t][j / 4][k][4 * (j % 4) ..]: {column 2t, 2t + 1, 2t, 2t + 1} of each eight columns j.
    alignas(64) float b[4][max_n / 32][max_k][16];
};

/// An operand as its descriptor describes it, in the current block.
struct Operand {
    BlockState* block;
    const char* memory;
    const char* proxy;
    uint32_t start, leading, stride, base;
    bool mn_major;
    const char* name;

    Operand(uint64_t descriptor, bool mn_major, const char* name)
        : block(&block_of(*current_thread)),
          memory(block->shared),
          proxy(proxy_memory(*block)),
          start(uint32_t(descriptor & 0x3FFF) << 4),
          leading(uint32_t(descriptor >> 16 & 0x3FFF) << 4),
          stride(uint32_t(descriptor >> 32 & 0x3FFF) << 4),
          base(uint32_t(descriptor >> 49 & 7)),
          mn_major(mn_major),
          name(name) {
        if (descriptor >> 62 != 1) {
            fault("wgmma: the descriptor of %s, 0x%llx, is not of the 128-byte swizzle, the only one the emulator has", name,
                  (unsigned long long)descriptor);
        }
    }

    /// 16 bytes at a place of the unswizzled layout. Bits 4 to 6 are xored with bits 7 to 9, counted from where the pattern
    /// starts.
    Halves chunk(uint32_t place) const {
        const uint32_t at = place ^ ((((place >> 7) - base) & 7) << 4);
        if (at + 16 > block->shared_bytes) {
            fault("wgmma: operand %s (start %u, leading %u, stride %u) reaches byte %u, the block has %zu bytes of shared memory",
                  name, start, leading, stride, at + 15, block->shared_bytes);
        }
        Halves value, fenced;
        memcpy(&value, memory + at, 16);
        memcpy(&fenced, proxy + at, 16);
        if (memcmp(&value, &fenced, 16) != 0) proxy_check(*block, "wgmma", at, 16);
        return value;
    }

    /// Elements 8 j .. 8 j + 7 in m or n, for each of the 16 k.
    void octets(uint32_t j, Halves (&k)[k_step]) const {
        if (mn_major) {
            const uint32_t column = start + j / 8 * leading + j % 8 * 16;
            for (uint32_t i = 0; i < k_step; ++i) k[i] = chunk(column + i / 8 * stride + i % 8 * 128);
        } else {
            for (uint32_t half = 0; half < 2; ++half) {
                Halves rows[8];
                for (uint32_t i = 0; i < 8; ++i) rows[i] = chunk(start + j * stride + i * 128 + half * 16);
                transpose(rows, &k[8 * half]);
            }
        }
    }

    /// Of all its bytes, of `size` in m or n.
    uint64_t sum(uint32_t size) const {
        uint64_t sum = 0;
        for_each_place(size, [&](uint32_t place) {
            const Halves value = chunk(place);
            uint64_t words[2];
            memcpy(words, &value, 16);
            sum = (sum ^ words[0]) * 0x9E3779B97F4A7C15u + words[1];
            sum ^= sum >> 29;
        });
        return sum;
    }
    void check_sum(uint32_t size, uint64_t before) const {
        if (sum(size) == before) return;
        fault("wgmma: operand %s (start %u) changed between the wgmma and its wgmma_wait: its buffer was released too early, or "
              "no barrier stands between those who write it and the wgmma", name, start);
    }

    /// That no load under way is to write what this operand, of `size` in m or n, reads.
    void check_loads(uint32_t size) const {
        const uint32_t rows = mn_major ? (size - 1) / 64 * leading + stride + 1024 : (size - 1) / 8 * stride + 1024;
        for (const PendingLoad& load : emulator->loads) {
            const bool here = (load.blocks >> block->rank & 1) != 0 && load.to < start + rows && start < load.to + load.bytes;
            if (!here) continue;
            for_each_place(size, [&](uint32_t place) {
                if (place < load.to || place >= load.to + load.bytes) return;
                fault("wgmma: operand %s (start %u) reads byte %u of shared memory, which a load still under way is to write: no "
                      "mbarrier_wait for it", name, start, place);
            });
        }
    }

    /// The places of its chunks, before swizzling.
    template <class Visit>
    void for_each_place(uint32_t size, Visit visit) const {
        for (uint32_t j = 0; j < size / 8; ++j) {
            for (uint32_t i = 0; i < k_step; ++i) {
                visit(mn_major ? start + j / 8 * leading + j % 8 * 16 + i / 8 * stride + i % 8 * 128
                               : start + j * stride + i / 2 * 128 + i % 2 * 16);
            }
        }
    }

    static void transpose(const Halves (&row)[8], Halves* column) {
        Halves pair[8], quad[8];
        for (int i = 0; i < 4; ++i) {
            pair[2 * i] = SHUFFLE(row[i], row[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            pair[2 * i + 1] = SHUFFLE(row[i], row[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        // pair[2 i + h] = rows i, i + 4 interleaved, columns 4 h .. 4 h + 3.
        for (int i = 0; i < 2; ++i) {
            for (int h = 0; h < 2; ++h) {
                const Halves a = pair[2 * i + h], b = pair[2 * (i + 2) + h];
                quad[4 * i + 2 * h] = SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
                quad[4 * i + 2 * h + 1] = SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
            }
        }
        // quad[4 i + q] = rows i, i + 2, i + 4, i + 6 interleaved, columns 2 q and 2 q + 1.
        for (int q = 0; q < 4; ++q) {
            column[2 * q] = SHUFFLE(quad[q], quad[4 + q], 0, 8, 1, 9, 2, 10, 3, 11);
            column[2 * q + 1] = SHUFFLE(quad[q], quad[4 + q], 4, 12, 5, 13, 6, 14, 7, 15);
        }
    }
};

/// The first or last four of eight bf16 as floats.
inline Quad low_floats(Halves v) {
    const Halves zero{};
    Quad result;
    const Halves words = SHUFFLE(zero, v, 0, 8, 0, 9, 0, 10, 0, 11);
    memcpy(&result, &words, 16);
    return result;
}
inline Quad high_floats(Halves v) {
    const Halves zero{};
    Quad result;
    const Halves words = SHUFFLE(zero, v, 0, 12, 0, 13, 0, 14, 0, 15);
    memcpy(&result, &words, 16);
    return result;
}

inline void put(float* to, Quad value) { memcpy(to, &value, 16); }

void spread_a(const Operand& a, int step, Operands& operands) {
    for (uint32_t warp = 0; warp < 4; ++warp) {
        Halves top[k_step], bottom[k_step];
        a.octets(2 * warp, top);
        a.octets(2 * warp + 1, bottom);
        for (int i = 0; i < k_step; ++i) {
            const int k = step * k_step + i;
            float values[2][8];
            put(&values[0][0], low_floats(top[i]));
            put(&values[0][4], high_floats(top[i]));
            put(&values[1][0], low_floats(bottom[i]));
            put(&values[1][4], high_floats(bottom[i]));
            for (int g = 0; g < 8; ++g) {
                put(operands.a[warp][g][k], Quad{values[0][g], values[0][g], values[1][g], values[1][g]});
            }
        }
    }
}

void spread_b(const Operand& b, int n, int step, Operands& operands) {
    for (uint32_t j = 0; j < uint32_t(n) / 8; ++j) {
        Halves columns[k_step];
        b.octets(j, columns);
        for (int i = 0; i < k_step; ++i) {
            const int k = step * k_step + i;
            const Quad low = low_floats(columns[i]), high = high_floats(columns[i]);
            put(&operands.b[0][j / 4][k][4 * (j % 4)], SHUFFLE(low, low, 0, 1, 0, 1));
            put(&operands.b[1][j / 4][k][4 * (j % 4)], SHUFFLE(low, low, 2, 3, 2, 3));
            put(&operands.b[2][j / 4][k][4 * (j % 4)], SHUFFLE(high, high, 0, 1, 0, 1));
            put(&operands.b[3][j / 4][k][4 * (j % 4)], SHUFFLE(high, high, 2, 3, 2, 3));
        }
    }
}

/// The products of all threads. LANES threads that share their columns go together over a panel of 16 floats, so that eight sums
/// stay in registers and hide the latency of an addition. `Vector` must be one that the target has: wider ones live in memory.
template <class Vector, int LANES>
__attribute__((always_inline)) inline void multiply(const WgmmaIssue& issue, const Operands& operands, int k_count,
                                                    bool accumulate) {
    constexpr int width = sizeof(Vector) / 4, vectors = 16 / width;
    // A template argument loses the alignment of its typedef, and accumulators are aligned as floats are.
    typedef Vector Unaligned __attribute__((aligned(4), may_alias));
    for (int t = 0; t < 4; ++t) {
        for (int panel = 0; panel < issue.shape.n / 32; ++panel) {
            for (int row = 0; row < 32; row += LANES) {
                float* acc[LANES];
                Vector sum[LANES][vectors];
                const float* a[LANES];
                const float* b = operands.b[t][panel][0];
#pragma GCC unroll 8
                for (int l = 0; l < LANES; ++l) {
                    acc[l] = issue.acc[(row + l) / 8 * 32 + (row + l) % 8 * 4 + t] + 16 * panel;
                    a[l] = operands.a[(row + l) / 8][(row + l) % 8][0];
#pragma GCC unroll 4
                    for (int v = 0; v < vectors; ++v) {
                        sum[l][v] = accumulate ? Vector(*reinterpret_cast<Unaligned*>(acc[l] + v * width)) : Vector{};
                    }
                }
                for (int k = 0; k < k_count; ++k) {
                    Vector column[vectors];
#pragma GCC unroll 4
                    for (int v = 0; v < vectors; ++v) column[v] = *reinterpret_cast<const Vector*>(b + 16 * k + v * width);
#pragma GCC unroll 8
                    for (int l = 0; l < LANES; ++l) {
                        const Vector factor = repeat<Vector>(a[l] + 4 * k);
#pragma GCC unroll 4
                        for (int v = 0; v < vectors; ++v) add_product(sum[l][v], factor, column[v]);
                    }
                }
#pragma GCC unroll 8
                for (int l = 0; l < LANES; ++l) {
#pragma GCC unroll 4
                    for (int v = 0; v < vectors; ++v) *reinterpret_cast<Unaligned*>(acc[l] + v * width) = sum[l][v];
                }
            }
        }
    }
}

typedef void Multiply(const WgmmaIssue&, const Operands&, int, bool);

void multiply_narrow(const WgmmaIssue& issue, const Operands& operands, int k_count, bool accumulate) {
    multiply<Quad, 2>(issue, operands, k_count, accumulate);
}

#if SECATEUR_HOST_X86
__attribute__((target("avx2,fma"))) void multiply_avx2(const WgmmaIssue& issue, const Operands& operands, int k_count,
                                                   bool accumulate) {
    multiply<Octet, 4>(issue, operands, k_count, accumulate);
}
__attribute__((target("avx512f"))) void multiply_avx512(const WgmmaIssue& issue, const Operands& operands, int k_count,
                                                        bool accumulate) {
    multiply<Hexadecet, 8>(issue, operands, k_count, accumulate);
}
#endif

/// The one for this CPU; all give the same bits.
Multiply* chosen_multiply() {
#if SECATEUR_HOST_X86
    if (__builtin_cpu_supports("avx512f")) return multiply_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return multiply_avx2;
#endif
    return multiply_narrow;
}

}  // namespace

void wgmma_note_operands(WgmmaIssue& issue) {
    issue.sums[0] = Operand(issue.a, issue.shape.a_mn_major, "A").sum(64);
    issue.sums[1] = Operand(issue.b, issue.shape.b_mn_major, "B").sum(uint32_t(issue.shape.n));
}

void wgmma_execute(const WgmmaIssue* issues, uint32_t count) {
    static Multiply* const multiply_all = chosen_multiply();
    static thread_local std::unique_ptr<Operands> operands;
    if (operands == nullptr) operands = std::make_unique<Operands>();
    for (uint32_t i = 0; i < count;) {
        // Products that go on with the sums of the one before share one pass over the accumulators.
        const WgmmaIssue& first = issues[i];
        uint32_t steps = 0;
        while (steps < max_steps && i + steps < count) {
            const WgmmaIssue& next = issues[i + steps];
            const bool goes_on = steps == 0 || (next.accumulate && next.shape.n == first.shape.n &&
                                                memcmp(next.acc, first.acc, sizeof first.acc) == 0);
            if (!goes_on) break;
            const Operand a(next.a, next.shape.a_mn_major, "A"), b(next.b, next.shape.b_mn_major, "B");
            a.check_loads(64);
            b.check_loads(uint32_t(next.shape.n));
            if (emulator->early) {
                a.check_sum(64, next.sums[0]);
                b.check_sum(uint32_t(next.shape.n), next.sums[1]);
            }
            spread_a(a, int(steps), *operands);
            spread_b(b, next.shape.n, int(steps), *operands);
            ++steps;
        }
        multiply_all(first, *operands, int(steps) * k_step, first.accumulate);
        i += steps;
    }
}

}  // namespace secateur::host
