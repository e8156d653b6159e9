// Question c of scripts/probes/hopper.cu: do TMA loads and stores do what kernels/host/tensor_map.cpp does, in the shapes in which
// the convolutions use them? Dimensions c, w, n, h, whose strides do not grow, coordinates below 0, boxes longer than the batch,
// every second pixel, im2col mode. Each element of shared memory is compared with a plain loop. A wait that does not end in time
// is an answer too: other bytes arrived than those of the whole box.
#pragma once

#include <cuda.h>

#include "portable/tma.h"

struct BoxShared {
    alignas(1024) unsigned char box[48 * 1024];
    Mbarrier full;
};

/// c, w, n, h as tiled maps of the convolutions have them; c, w, h, n in im2col mode.
struct Coordinates {
    int at[4];
};

/// Loads a box, dumps shared memory as it is, and stores the box through `to` where that is asked for. `offset_w` < 0: tiled.
__global__ void __launch_bounds__(128, 1)
    copy_box(const __grid_constant__ TensorMap from, const __grid_constant__ TensorMap to, Coordinates from_at, Coordinates to_at,
             int offset_w, int offset_h, int bytes, int stores, uint4* raw, int* ended) {
    extern __shared__ __align__(1024) unsigned char memory[];
    BoxShared& shared = *reinterpret_cast<BoxShared*>(memory);
    for (int i = threadIdx.x; i < int(sizeof shared.box) / 16; i += blockDim.x) {
        reinterpret_cast<uint4*>(shared.box)[i] = make_uint4(~0u, ~0u, ~0u, ~0u);
    }
    fence_async_proxy(shared.box, sizeof shared.box);
    if (threadIdx.x == 0) {
        mbarrier_init(shared.full, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_expect_bytes(shared.full, bytes);
        const int32_t at[4] = {from_at.at[0], from_at.at[1], from_at.at[2], from_at.at[3]};
        if (offset_w < 0) {
            tma_load<4>(shared.box, from, shared.full, at);
        } else {
            tma_load_im2col(shared.box, from, shared.full, at, uint16_t(offset_w), uint16_t(offset_h));
        }
    }
    uint32_t done = 0;
    for (int tries = 0; tries < 100000 && done == 0; ++tries) {
        asm volatile(
            "{\n"
            ".reg .pred done;\n"
            "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], 0;\n"
            "selp.b32 %0, 1, 0, done;\n"
            "}"
            : "=r"(done)
            : "r"(shared_address(&shared.full))
            : "memory");
    }
    const bool all = __syncthreads_and(int(done)) != 0;
    for (int i = threadIdx.x; i < bytes / 16; i += blockDim.x) raw[i] = reinterpret_cast<uint4*>(shared.box)[i];
    if (threadIdx.x != 0) return;
    *ended = all;
    if (all && stores) {
        const int32_t at[4] = {to_at.at[0], to_at.at[1], to_at.at[2], to_at.at[3]};
        tma_store<4>(to, shared.box, at);
        tma_store_commit();
        tma_store_wait<0>();
    }
}

/// A batch of square images, NHWC, of 16-bit elements that are never 0 or 0xFFFF.
struct ProbeImages {
    int batch, side, channels;
    size_t elements() const { return size_t(batch) * side * side * channels; }
    size_t index(int n, int h, int w, int c) const { return ((size_t(n) * side + h) * side + w) * channels + c; }
    static uint16_t value(size_t index) { return uint16_t(1 + index * 40503 % 32749); }
};

/// What a map shows: every `every`-th pixel from (row, column) on, boxes of 64 channels by w by n by h; or, where `pixels` is not 0,
/// a 3 x 3 kernel of stride `every` and padding 1 in im2col mode.
struct ProbeMap {
    ProbeImages images;
    int every, row, column;
    int box[3];  // w, n, h
    int pixels;
};

/// The map, or the error of the driver.
static CUresult probe_map(const ProbeMap& p, void* memory, TensorMap& to) {
    const ProbeImages& images = p.images;
    const auto find = [](const char* symbol) {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult found;
        CHECK(cudaGetDriverEntryPointByVersion(symbol, &function, 12000, cudaEnableDefault, &found));
        return function;
    };
    const auto tiled = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(find("cuTensorMapEncodeTiled"));
    const auto im2col = reinterpret_cast<decltype(&cuTensorMapEncodeIm2col)>(find("cuTensorMapEncodeIm2col"));
    if (tiled == nullptr || im2col == nullptr) return CUDA_ERROR_NOT_FOUND;

    const cuuint64_t pixel = 2 * images.channels, line = images.side * pixel, image = images.side * line;
    const cuuint64_t channels = images.channels, side = images.side / p.every, batch = images.batch;
    alignas(128) CUtensorMap map;
    CUresult result;
    if (p.pixels != 0) {
        const cuuint64_t dims[4] = {channels, cuuint64_t(images.side), cuuint64_t(images.side), batch};
        const cuuint64_t strides[3] = {pixel, line, image};
        const int corner[2] = {-1, -1};
        const cuuint32_t steps[4] = {1, cuuint32_t(p.every), cuuint32_t(p.every), 1};
        result = im2col(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, memory, dims, strides, corner, corner, 64, p.pixels, steps,
                        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    } else {
        const cuuint64_t dims[4] = {channels, side, batch, side}, strides[3] = {p.every * pixel, image, p.every * line};
        const cuuint32_t box[4] = {64, cuuint32_t(p.box[0]), cuuint32_t(p.box[1]), cuuint32_t(p.box[2])};
        const cuuint32_t steps[4] = {1, 1, 1, 1};
        char* const first = static_cast<char*>(memory) + p.row * line + p.column * pixel;
        result = tiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, first, dims, strides, box, steps,
                       CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                       CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    }
    if (result != CUDA_SUCCESS) return result;
    // As src/cuda/driver/device.rs does.
    int driver;
    CHECK(cudaDriverGetVersion(&driver));
    memcpy(&to, &map, sizeof to);
    if (driver <= 13010 && 2 * images.elements() < 128 * 1024) to.word[1] &= ~(uint64_t(1) << 21);
    return result;
}

/// Element of the images of each place of the box at `at`, in the order of memory; -1 where it lies outside.
static std::vector<long> probe_elements(const ProbeMap& p, const Coordinates& at, int offset_w, int offset_h) {
    const ProbeImages& images = p.images;
    std::vector<long> elements;
    const auto put = [&](bool inside, int n, int h, int w) {
        for (int c = at.at[0]; c < at.at[0] + 64; ++c) elements.push_back(inside ? long(images.index(n, h, w, c)) : -1);
    };
    if (p.pixels != 0) {
        // In w, then h, then n, inside the pixel box from -1 to side - 2; the offsets shift what is read, not the order.
        int w = at.at[1], h = at.at[2], n = at.at[3];
        for (int i = 0; i < p.pixels; ++i) {
            const int y = h + offset_h, x = w + offset_w;
            put(n < images.batch && y >= 0 && y < images.side && x >= 0 && x < images.side, n, y, x);
            if ((w += p.every) <= images.side - 2) continue;
            w = -1;
            if ((h += p.every) <= images.side - 2) continue;
            h = -1;
            ++n;
        }
        return elements;
    }
    const int side = images.side / p.every;
    for (int h = at.at[3]; h < at.at[3] + p.box[2]; ++h) {
        for (int n = at.at[2]; n < at.at[2] + p.box[1]; ++n) {
            for (int w = at.at[1]; w < at.at[1] + p.box[0]; ++w) {
                const bool inside = h >= 0 && h < side && w >= 0 && w < side && n >= 0 && n < images.batch;
                put(inside, n, p.every * h + p.row, p.every * w + p.column);
            }
        }
    }
    return elements;
}

/// Reports how many elements of shared memory, or with `to` of the tensor stored to, are wrong: none, we think. Negative: -1 where
/// the wait did not end, -1000 minus the driver's error where it refused a map.
static void box_question(const char* what, const ProbeMap& from, Coordinates at, int offset_w, int offset_h, const ProbeMap* to,
                         Coordinates to_at) {
    std::vector<uint16_t> source(from.images.elements());
    for (size_t i = 0; i < source.size(); ++i) source[i] = ProbeImages::value(i);
    const std::vector<long> elements = probe_elements(from, at, offset_w, offset_h);
    const size_t bytes = 2 * elements.size(), target_elements = to != nullptr ? to->images.elements() : 8;
    void *device_source, *device_target;
    uint4* raw;
    int* ended;
    CHECK(cudaMalloc(&device_source, 2 * source.size()));
    CHECK(cudaMalloc(&device_target, 2 * target_elements));
    CHECK(cudaMalloc(&raw, bytes));
    CHECK(cudaMalloc(&ended, sizeof(int)));
    CHECK(cudaMemcpy(device_source, source.data(), 2 * source.size(), cudaMemcpyHostToDevice));
    CHECK(cudaMemset(device_target, 0xFF, 2 * target_elements));
    CHECK(cudaMemset(raw, 0xFF, bytes));

    TensorMap from_map, to_map{};
    CUresult result = probe_map(from, device_source, from_map);
    if (result == CUDA_SUCCESS && to != nullptr) result = probe_map(*to, device_target, to_map);
    double measured = -1000.0 - result;
    if (result == CUDA_SUCCESS) {
        CHECK(cudaFuncSetAttribute(copy_box, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(BoxShared))));
        copy_box<<<1, 128, sizeof(BoxShared)>>>(from_map, to_map, at, to_at, offset_w, offset_h, int(bytes), to != nullptr, raw,
                                                ended);
        CHECK(cudaGetLastError());
        int all;
        CHECK(cudaMemcpy(&all, ended, sizeof all, cudaMemcpyDeviceToHost));
        size_t wrong = 0;
        if (to != nullptr) {
            std::vector<uint16_t> wanted(target_elements, 0xFFFF), got(target_elements);
            const std::vector<long> places = probe_elements(*to, to_at, 0, 0);
            for (size_t i = 0; i < places.size(); ++i) {
                if (places[i] >= 0) wanted[places[i]] = elements[i] < 0 ? 0 : source[elements[i]];
            }
            CHECK(cudaMemcpy(got.data(), device_target, 2 * target_elements, cudaMemcpyDeviceToHost));
            for (size_t i = 0; i < target_elements; ++i) wrong += got[i] != wanted[i];
        } else {
            std::vector<uint16_t> got(elements.size());
            CHECK(cudaMemcpy(got.data(), raw, bytes, cudaMemcpyDeviceToHost));
            for (size_t i = 0; i < elements.size(); ++i) {
                // 16-byte chunk c of row r lies at chunk c ^ (r % 8).
                const size_t place = i ^ (i / 64 % 8) * 8;
                wrong += got[place] != (elements[i] < 0 ? 0 : source[elements[i]]);
            }
        }
        measured = all ? double(wrong) : -1.0;
    }
    CHECK(cudaFree(device_source));
    CHECK(cudaFree(device_target));
    CHECK(cudaFree(raw));
    CHECK(cudaFree(ended));
    report(std::string("c. TMA: ") + what, 0, measured, "elements wrong", measured == 0);
}

constexpr int BOXES = 10;
static void box(int question) {
    const ProbeImages small{5, 4, 128}, large{2, 32, 64}, even{5, 8, 64}, middle{3, 8, 64};
    const ProbeMap halves{small, 1, 0, 0, {4, 16, 6}, 0}, column{middle, 1, 0, 0, {}, 256};
    const ProbeMap stage{small, 1, 0, 0, {4, 16, 1}, 0}, parity{{5, 8, 128}, 2, 1, 0, {4, 16, 1}, 0};
    const auto load = [](const char* what, const ProbeMap& map, Coordinates at, int offset_w = -1, int offset_h = 0) {
        box_question(what, map, at, offset_w, offset_h, nullptr, {});
    };
    const auto store = [&](const char* what, const ProbeMap& to, Coordinates at) {
        box_question(what, stage, {{0, 0, 0, 2}}, -1, 0, &to, at);
    };
    switch (question) {
        case 0: return load("dimensions c, w, n, h; 16 images of a batch of 5, from row and column -1 on", halves, {{64, -1, 0, -1}});
        case 1: return load("ten rows of 32 that end below and right of the image", {large, 1, 0, 0, {32, 1, 10}, 0}, {{0, 1, 1, 23}});
        case 2: return load("a box wholly outside, of images 16 to 31 of a batch of 5", halves, {{64, 0, 16, 0}});
        case 3: return load("every second pixel by strides, from (1, 1) on", {even, 2, 1, 1, {4, 16, 5}, 0}, {{0, -1, 0, -1}});
        case 4: return load("im2col, 256 pixels of stride 1 beyond the batch, tap (2, 1)", column, {{0, -1, -1, 0}}, 1, 2);
        case 5: return load("im2col, the same from the middle of an image on, tap (0, 2)", column, {{0, 2, 3, 1}}, 2, 0);
        case 6: return load("im2col of stride 2, tap (1, 2)", {middle, 2, 0, 0, {}, 256}, {{0, 1, 3, 0}}, 2, 1);
        case 7: return store("store of 64 pixels, images 5 to 15 clipped", stage, {{64, 0, 0, 3}});
        case 8: return store("the same to every second pixel", parity, {{64, 0, 0, 3}});
        default: return store("store wholly outside", stage, {{64, 0, 16, 3}});
    }
}
