// Copies of boxes between device and shared memory, as a tensor map describes them.

#include "host/tensor_map.h"

#include <string.h>

#include "host/async_proxy.h"
#include "host/memory.h"
#include "host/scheduler.h"

namespace secateur::host {

namespace {

constexpr uint32_t max_row_bytes = 256 * 4;

/// Elements of a box along a dimension.
uint32_t count(const HostTensorMap& map, int i) {
    const uint32_t step = i == 0 ? 1 : map.step[i];
    return (map.box[i] + step - 1) / step;
}

/// Part of a row that lies in the tensor, in elements of the box, and where it starts in device memory.
struct Row {
    uint32_t first, last;
    uint64_t address;
};

/// Elements `at` to `at + elements` of dimension 0, at the given place in the others.
Row row_of(const HostTensorMap& map, int64_t at, uint32_t elements, const int64_t* others) {
    Row row{0, 0, map.address};
    for (int i = 1; i < map.rank; ++i) {
        if (others[i] < 0 || others[i] >= int64_t(map.dim[i])) return row;
        row.address += uint64_t(others[i]) * map.stride[i - 1];
    }
    const int64_t first = at < 0 ? -at : 0;
    const int64_t last = int64_t(map.dim[0]) - at < int64_t(elements) ? int64_t(map.dim[0]) - at : int64_t(elements);
    if (first >= last) return row;
    row.first = uint32_t(first);
    row.last = uint32_t(last);
    row.address += uint64_t(at + first) * map.element_bytes;
    return row;
}

void* host_address(const HostTensorMap& map, const Row& row) {
    return resolve(row.address, uint64_t(row.last - row.first) * map.element_bytes, map.element_bytes);
}

/// Calls `visit(row)` for each row of a tiled box, in the order of shared memory.
template <class Visit>
void for_each_row(const HostTensorMap& map, const int32_t* at, Visit visit) {
    uint32_t index[5] = {};
    for (;;) {
        int64_t others[5];
        for (int i = 1; i < map.rank; ++i) others[i] = int64_t(at[i]) + int64_t(index[i]) * map.step[i];
        visit(row_of(map, at[0], map.box[0], others));
        int i = 1;
        while (i < map.rank && ++index[i] == count(map, i)) index[i++] = 0;
        if (i == map.rank) return;
    }
}

/// Writes rows to shared memory one after another, in every block that gets them.
struct RowWriter {
    const PendingLoad& load;
    uint32_t offset;

    void operator()(const Row& row) {
        const HostTensorMap& map = load.map;
        const uint32_t elements = map.kind == HostTensorMap::im2col ? map.channels : map.box[0];
        const uint32_t bytes = elements * map.element_bytes;
        alignas(16) char values[max_row_bytes];
        if (row.first != 0 || row.last != elements) memset(values, 0, bytes);
        if (row.first != row.last) {
            const uint32_t start = row.first * map.element_bytes;
            memcpy(values + start, host_address(map, row), (row.last - row.first) * map.element_bytes);
        }
        for (uint32_t rank = 0; rank < emulator->block_count; ++rank) {
            if (!(load.blocks >> rank & 1)) continue;
            BlockState& block = *emulator->blocks[rank];
            char* memory = block.shared_memory();
            char* proxy = proxy_memory(block);
            for (uint32_t chunk = 0; chunk < bytes; chunk += 16) {
                const uint32_t to = swizzled(map.swizzle, offset + chunk);
                memcpy(memory + to, values + chunk, 16);
                memcpy(proxy + to, values + chunk, 16);
            }
        }
        offset += bytes;
    }
};

}  // namespace

uint32_t box_bytes(const HostTensorMap& map) {
    if (map.kind == HostTensorMap::im2col) return uint32_t(map.channels) * map.pixels * map.element_bytes;
    uint32_t bytes = map.element_bytes;
    for (int i = 0; i < map.rank; ++i) bytes *= count(map, i);
    return bytes;
}

void read_box(const PendingLoad& load) {
    const HostTensorMap& map = load.map;
    RowWriter write{load, load.to};
    if (map.kind == HostTensorMap::tiled) {
        for_each_row(map, load.at, write);
        return;
    }
    // Pixels follow each other in w, then h, then n, inside the pixel box; the offsets shift what is read, not the order.
    int64_t w = load.at[1], h = load.at[2], n = load.at[3];
    for (uint32_t pixel = 0; pixel < map.pixels; ++pixel) {
        const int64_t others[4] = {0, w + load.offset_w, h + load.offset_h, n};
        write(row_of(map, load.at[0], map.channels, others));
        w += map.step[1];
        if (w <= int64_t(map.dim[1]) - 1 + map.upper[0]) continue;
        w = map.lower[0];
        h += map.step[2];
        if (h <= int64_t(map.dim[2]) - 1 + map.upper[1]) continue;
        h = map.lower[1];
        n += map.step[3];
    }
}

void write_box(const PendingStore& store) {
    const HostTensorMap& map = store.map;
    BlockState& block = *store.block;
    uint32_t offset = store.from;
    for_each_row(map, store.at, [&](const Row& row) {
        const uint32_t bytes = uint32_t(map.box[0]) * map.element_bytes;
        alignas(16) char values[max_row_bytes];
        for (uint32_t chunk = 0; chunk < bytes; chunk += 16) {
            const uint32_t from = swizzled(map.swizzle, offset + chunk);
            proxy_check(block, "tma_store", from, 16);
            memcpy(values + chunk, block.shared + from, 16);
        }
        offset += bytes;
        if (row.first == row.last) return;
        memcpy(host_address(map, row), values + row.first * map.element_bytes,
               (row.last - row.first) * map.element_bytes);
    });
}

}  // namespace secateur::host
