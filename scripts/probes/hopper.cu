// Questions to a Hopper GPU that decide how the convolutions on wgmma are built, each with the answer that we expect.
//
//   nvcc -std=c++17 -O3 -I kernels -gencode=arch=compute_90a,code=sm_90a scripts/probes/hopper.cu -o hopper
//   ./hopper --list    # names of the questions: a0 ... a7, b0 ... b4, c0 ... c9
//   ./hopper a0        # the answer, a line of JSON
//
// A process answers one question, so that an illegal access, which ends a process's work on the GPU, or a hang loses no other.
//
// a. Does an operand that starts some rows of 128 bytes after a swizzle atom, and whose groups of 8 rows are 1280 bytes apart (a
//    halo tile of 10 pixels a row), read what it should: with base offset 0, and with the base offset (address >> 7) & 7?
// b. What rate do 2 warpgroups an SM reach with operands that stay in shared memory: m64n256k16 (weights on the M side, pixels on
//    the N side, as kernels/conv/wgmma) against m64n128k16 and m64n64k16; with transposed weights, as the input gradient has
//    them; and fp8?
// c. Do TMA loads and stores, tiled and im2col, treat boxes and what lies outside the tensor as the emulator does (tma.cuh)?
//
// (a) and (c) compare every element, (a) with sums of small integers, which bf16 and f32 hold exactly. (b) runs on normal random
// numbers, since power limits a Hopper and zeros cost less. Exit code 1 where CUDA fails, 2 for a name that is no question, 3 where
// there is no Hopper. Uses the portable headers of the kernels, so it also proves their descriptors.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "portable/mbarrier.h"
#include "portable/portable.h"
#include "portable/wgmma.h"

using namespace secateur;

#define CHECK(call) check(call, #call)
static void check(cudaError_t error, const char* call) {
    if (error == cudaSuccess) return;
    fprintf(stderr, "error: %s: %s\n", call, cudaGetErrorString(error));
    exit(1);
}

static void report(const std::string& question, double predicted, double measured, const char* unit, bool as_predicted) {
    printf("{\"question\": \"%s\", \"predicted\": %.4g, \"measured\": %.4g, \"unit\": \"%s\", \"verdict\": \"%s\"}\n",
           question.c_str(), predicted, measured, unit, as_predicted ? "as predicted" : "NOT AS PREDICTED");
}

#include "tma.cuh"

// ---- a. Shifted starts -----------------------------------------------------------------------------------------------------

constexpr int SIDE = 8;        // the tile: 8 x 8 pixels
constexpr int DEPTH = 64;      // channels: 128 bytes a pixel
constexpr int MAX_PIXELS = 128;

struct ShiftShared {
    alignas(1024) __nv_bfloat16 pixels[MAX_PIXELS * DEPTH];
    alignas(1024) __nv_bfloat16 other[64 * DEPTH];
};

/// Writes rows of 128 bytes as TMA would: 16-byte chunk c of row r at chunk c ^ (r % 8).
__device__ void store_swizzled(__nv_bfloat16* to, const __nv_bfloat16* from, int count) {
    for (int i = threadIdx.x; i < count * DEPTH; i += blockDim.x) {
        const int row = i / DEPTH, channel = i % DEPTH;
        to[row * DEPTH + (((channel / 8) ^ (row % 8)) * 8 | channel % 8)] = from[i];
    }
}

/// One product of 64 x 64 x 64: the tile of 64 pixels from row `shift` on, its groups of 8 pixels `stride` bytes apart, and 64 rows of
/// the other operand. The pixels are A (PIXELS_ARE_A) or B. out is 64 x 64, A's rows first.
template <bool PIXELS_ARE_A>
__global__ void __launch_bounds__(128, 1)
    shifted_product(const __nv_bfloat16* pixels, const __nv_bfloat16* other, int shift, int stride, int base_offset, float* out) {
    extern __shared__ __align__(1024) unsigned char bytes[];
    ShiftShared& shared = *reinterpret_cast<ShiftShared*>(bytes);
    store_swizzled(shared.pixels, pixels, MAX_PIXELS);
    store_swizzled(shared.other, other, 64);
    fence_async_proxy(&shared, sizeof shared);
    __syncthreads();

    float acc[32];
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < DEPTH / 16; ++k) {
        const uint64_t tile = matrix_descriptor(shared.pixels + shift * DEPTH + k * 16, 0, stride, base_offset);
        const uint64_t dense = matrix_descriptor(shared.other + k * 16, 0, 1024, 0);
        wgmma_bf16<64>(acc, PIXELS_ARE_A ? tile : dense, PIXELS_ARE_A ? dense : tile, k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_pin(acc);
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = 2 * (threadIdx.x % 4);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) out[(row + 8 * (e / 2)) * 64 + 8 * j + column + e % 2] = acc[4 * j + e];
    }
}

/// Of the nine taps of a 3 x 3 kernel, how many read what they should.
template <bool PIXELS_ARE_A>
static int right_taps(int pitch, bool offset_of_address) {
    std::mt19937 generator(7);
    std::uniform_int_distribution<int> draw(-4, 4);
    std::vector<float> pixels(MAX_PIXELS * DEPTH), other(64 * DEPTH);
    for (float& value : pixels) value = float(draw(generator));
    for (float& value : other) value = float(draw(generator));
    const auto upload = [](const std::vector<float>& values) {
        std::vector<__nv_bfloat16> rounded(values.begin(), values.end());
        __nv_bfloat16* device;
        CHECK(cudaMalloc(&device, rounded.size() * sizeof rounded[0]));
        CHECK(cudaMemcpy(device, rounded.data(), rounded.size() * sizeof rounded[0], cudaMemcpyHostToDevice));
        return device;
    };
    __nv_bfloat16 *const device_pixels = upload(pixels), *const device_other = upload(other);
    float* device_out;
    CHECK(cudaMalloc(&device_out, 64 * 64 * sizeof(float)));
    const auto kernel = shifted_product<PIXELS_ARE_A>;
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(ShiftShared))));

    int right = 0;
    for (int tap = 0; tap < 9; ++tap) {
        const int shift = tap / 3 * pitch + tap % 3;
        // Rows of 128 bytes after a start that is a multiple of 1024: bits 7 to 9 of the address.
        const int base_offset = offset_of_address ? shift & 7 : 0;
        CHECK(cudaMemset(device_out, 0xFF, 64 * 64 * sizeof(float)));
        kernel<<<1, 128, sizeof(ShiftShared)>>>(device_pixels, device_other, shift, pitch * 128, base_offset, device_out);
        CHECK(cudaGetLastError());
        std::vector<float> out(64 * 64);
        CHECK(cudaMemcpy(out.data(), device_out, out.size() * sizeof(float), cudaMemcpyDeviceToHost));
        bool equal = true;
        for (int p = 0; p < 64; ++p) {
            const int pixel = shift + p / SIDE * pitch + p % SIDE;
            for (int o = 0; o < 64; ++o) {
                float sum = 0;
                for (int k = 0; k < DEPTH; ++k) sum += pixels[pixel * DEPTH + k] * other[o * DEPTH + k];
                equal = equal && out[PIXELS_ARE_A ? p * 64 + o : o * 64 + p] == sum;
            }
        }
        right += equal;
    }
    CHECK(cudaFree(device_pixels));
    CHECK(cudaFree(device_other));
    CHECK(cudaFree(device_out));
    return right;
}

constexpr int SHIFTED_STARTS = 8;
static void shifted_start(int question) {
    const bool pixels_are_a = question < 4, of_address = question % 2 == 1;
    const int pitch = question / 2 % 2 == 0 ? 8 : 10;
    // The hardware swizzles by bits of the address itself, we think: then a base offset only spoils, where it is not 0.
    int predicted = 0;
    for (int tap = 0; tap < 9; ++tap) predicted += !of_address || (tap / 3 * pitch + tap % 3) % 8 == 0;
    const int measured = pixels_are_a ? right_taps<true>(pitch, of_address) : right_taps<false>(pitch, of_address);
    report(std::string("a. shifted starts, pixels as ") + (pixels_are_a ? "A" : "B") + ", SBO " + std::to_string(pitch * 128) +
               ", base offset " + (of_address ? "(address >> 7) & 7" : "0"),
           predicted, measured, "taps of 9 right", predicted == measured);
}

// ---- b. Rates of resident operands -----------------------------------------------------------------------------------------

// Of one warpgroup: nine taps of weights, 64 x 64, and ten planes of 32 pixels, of which a tap reads eight. The two warpgroups of
// a block share the weights.
constexpr int TAPS = 9, PLANES = 10, PLANE_PIXELS = 32, PIXELS = 256;
struct RateShared {
    alignas(1024) unsigned char weights[TAPS][64 * 128];
    alignas(1024) unsigned char pixels[2][PLANES * PLANE_PIXELS * 128];
};

enum class Kind { Bf16, Bf16TransposedWeights, Fp8 };

#define ACC_8(i)                                                                                                     \
    "+f"(acc[i]), "+f"(acc[i + 1]), "+f"(acc[i + 2]), "+f"(acc[i + 3]), "+f"(acc[i + 4]), "+f"(acc[i + 5]),          \
        "+f"(acc[i + 6]), "+f"(acc[i + 7])
#define ACC_32(i) ACC_8(i), ACC_8(i + 8), ACC_8(i + 16), ACC_8(i + 24)
/// m64n256k32 of e4m3.
__device__ __forceinline__ void wgmma_e4m3(float (&acc)[128], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile(
        "{\n"
        ".reg .pred accumulate;\n"
        "setp.ne.b32 accumulate, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, accumulate, 1, 1;\n"
        "}"
        : ACC_32(0), ACC_32(32), ACC_32(64), ACC_32(96)
        : "l"(a), "l"(b), "r"(int(accumulate)));
}

/// `rounds` times nine taps: 64 channels by 256 pixels a warpgroup, 128 bytes deep, in 256 / N instructions a depth step.
template <Kind KIND, int N>
__global__ void __launch_bounds__(256, 1) resident_loop(const unsigned char* random, int rounds, float* out) {
    extern __shared__ __align__(1024) unsigned char bytes[];
    RateShared& shared = *reinterpret_cast<RateShared*>(bytes);
    for (int i = threadIdx.x; i < int(sizeof shared); i += blockDim.x) bytes[i] = random[i];
    fence_async_proxy(&shared, sizeof shared);
    __syncthreads();

    constexpr int PARTS = PIXELS / N;
    float acc[PARTS][N / 2] = {};
    const int group = threadIdx.x / 128;
    for (int round = 0; round < rounds; ++round) {
        for (int tap = 0; tap < TAPS; ++tap) {
            const unsigned char* const weights = shared.weights[tap];
            const unsigned char* const pixels = shared.pixels[group] + tap / 3 * PLANE_PIXELS * 128;
#pragma unroll
            for (int part = 0; part < PARTS; ++part) wgmma_pin(acc[part]);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 4; ++k) {
#pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    const uint64_t b = matrix_descriptor(pixels + part * N * 128 + k * 32, 0, 1024);
                    if constexpr (KIND == Kind::Fp8) {
                        wgmma_e4m3(acc[part], matrix_descriptor(weights + k * 32, 0, 1024), b, true);
                    } else if constexpr (KIND == Kind::Bf16) {
                        wgmma_bf16<N>(acc[part], matrix_descriptor(weights + k * 32, 0, 1024), b, true);
                    } else {
                        wgmma_bf16<N, Major::MN>(acc[part], matrix_descriptor(weights + k * 2048, 1024, 1024), b, true);
                    }
                }
            }
            wgmma_commit();
            wgmma_wait<1>();
        }
    }
    wgmma_wait<0>();
    float sum = 0;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        wgmma_pin(acc[part]);
#pragma unroll
        for (int i = 0; i < N / 2; ++i) sum += acc[part][i];
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

/// Operations a second of the whole device: the median of 7 launches.
template <Kind KIND, int N>
static double rate(int multiprocessors) {
    constexpr int ROUNDS = 1500;
    std::mt19937 generator(11);
    std::normal_distribution<float> normal;
    std::vector<unsigned char> random(sizeof(RateShared));
    for (size_t i = 0; i + 1 < random.size(); i += 2) {
        if (KIND == Kind::Fp8) {
            // Sign, and magnitudes below 2: exponents up to the bias.
            for (int b = 0; b < 2; ++b) random[i + b] = (generator() & 0x80) | generator() % 0x40;
        } else {
            const __nv_bfloat16 value(normal(generator));
            memcpy(&random[i], &value, 2);
        }
    }
    unsigned char* device_random;
    float* out;
    CHECK(cudaMalloc(&device_random, random.size()));
    CHECK(cudaMalloc(&out, size_t(multiprocessors) * 256 * sizeof(float)));
    CHECK(cudaMemcpy(device_random, random.data(), random.size(), cudaMemcpyHostToDevice));
    const auto kernel = resident_loop<KIND, N>;
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(RateShared))));
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    std::vector<float> milliseconds;
    for (int run = 0; run < 10; ++run) {
        CHECK(cudaEventRecord(begin));
        kernel<<<multiprocessors, 256, sizeof(RateShared)>>>(device_random, ROUNDS, out);
        CHECK(cudaGetLastError());
        CHECK(cudaEventRecord(end));
        CHECK(cudaEventSynchronize(end));
        float time;
        CHECK(cudaEventElapsedTime(&time, begin, end));
        if (run >= 3) milliseconds.push_back(time);
    }
    std::sort(milliseconds.begin(), milliseconds.end());
    CHECK(cudaFree(device_random));
    CHECK(cudaFree(out));
    constexpr double DEPTH_ELEMENTS = KIND == Kind::Fp8 ? 128 : 64;
    const double operations = 2.0 * 64 * PIXELS * DEPTH_ELEMENTS * TAPS * ROUNDS * 2 * multiprocessors;
    return operations / (milliseconds[milliseconds.size() / 2] * 1e-3);
}

/// Predictions for 132 multiprocessors, scaled to this device. The tensor cores do 2048 multiply-adds of bf16 a clock and
/// shared memory gives 128 bytes: m64n256k16 takes 128 clocks and reads 80 clocks' worth, m64n64k16 takes 32 and reads 32.
constexpr int RATES = 5;
static void rate_of(int question, int multiprocessors) {
    const auto row = [&](const char* what, double predicted, double measured) {
        predicted *= multiprocessors / 132.0;
        measured /= 1e12;
        report(std::string("b. ") + what, predicted, measured, "TFLOP/s", std::abs(measured / predicted - 1) <= 0.07);
    };
    switch (question) {
        case 0: return row("m64n256k16, weights as A, pixels as B", 790, rate<Kind::Bf16, 256>(multiprocessors));
        case 1: return row("m64n128k16", 780, rate<Kind::Bf16, 128>(multiprocessors));
        case 2: return row("m64n64k16: shared memory and tensor cores equally busy", 680, rate<Kind::Bf16, 64>(multiprocessors));
        case 3:
            return row("m64n256k16, weights transposed (input gradient)", 790,
                       rate<Kind::Bf16TransposedWeights, 256>(multiprocessors));
        default: return row("m64n256k32 of e4m3", 1500, rate<Kind::Fp8, 256>(multiprocessors));
    }
}

int main(int count, char** arguments) {
    const int questions[3] = {SHIFTED_STARTS, RATES, BOXES};
    const std::string asked = count == 2 ? arguments[1] : "";
    int kind = -1, question = -1;
    for (int k = 0; k < 3; ++k) {
        for (int q = 0; q < questions[k]; ++q) {
            const std::string name = "abc"[k] + std::to_string(q);
            if (asked == "--list") printf("%s\n", name.c_str());
            if (asked == name) kind = k, question = q;
        }
    }
    if (asked == "--list") return 0;
    if (question < 0) {
        fprintf(stderr, "error: '%s' is no question; --list names them\n", asked.c_str());
        return 2;
    }
    int devices = 0;
    cudaDeviceProp device;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        fprintf(stderr, "error: no GPU\n");
        return 3;
    }
    CHECK(cudaGetDeviceProperties(&device, 0));
    if (device.major != 9 || device.minor != 0) {
        fprintf(stderr, "error: %s has compute capability %d.%d; these questions are for 9.0\n", device.name, device.major, device.minor);
        return 3;
    }
    switch (kind) {
        case 0: shifted_start(question); break;
        case 1: rate_of(question, device.multiProcessorCount); break;
        default: box(question); break;
    }
    return 0;
}
