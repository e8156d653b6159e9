// The rules of TMA: what is checked when a copy is issued, when it happens, and what must not be left over.
//
// Loads happen at once where the launch asks for that (Emulator::early), else one by one when nobody can go on, so that whoever
// does not wait reads poison or old data; a store to another block of the cluster counts as a load of that block. Stores to
// device memory read shared memory at once, or at the last moment: at the wait that covers their group, or at the end of the
// kernel.

#include "host/tma.h"

#include <string.h>

#include <algorithm>

#include "host/async_proxy.h"
#include "host/cluster.h"
#include "host/mbarrier.h"
#include "host/memory.h"
#include "host/scheduler.h"

namespace secateur::host {

namespace {

HostTensorMap read_map(const char* what, const void* address, uint32_t kind) {
    HostTensorMap map;
    memcpy(&map, address, sizeof map);
    if (map.kind == kind) return map;
    if (map.kind == HostTensorMap::tiled || map.kind == HostTensorMap::im2col) {
        fault("%s: the tensor map is for %s", what, kind == HostTensorMap::tiled ? "im2col loads" : "tiled copies");
    }
    fault("%s: no tensor map of this emulator in the parameters (Driver::tensor_map makes one)", what);
}

/// The place of a box in the block's shared memory.
uint32_t check_box(const char* what, const void* pointer, const HostTensorMap& map, int rank) {
    if (map.rank != rank) fault("%s: %d coordinates, the tensor map has rank %d", what, rank, map.rank);
    // A swizzled chunk may lie anywhere in its 128 bytes.
    const uint32_t bytes = map.swizzle == Swizzle::none ? box_bytes(map) : (box_bytes(map) + 127) / 128 * 128;
    if (!in_shared(pointer, bytes)) fault("%s: a box of %u bytes reaches outside the block's shared memory", what, bytes);
    const uint32_t offset = shared_offset(pointer);
    if (offset % 128 != 0) fault("%s: byte %u of shared memory, a box must be aligned to 128 bytes", what, offset);
    return offset;
}

void store_value(const PendingLoad& load) {
    const auto rank = uint32_t(__builtin_ctz(load.blocks));
    BlockState& target = *emulator->blocks[rank];
    if (target.exited == emulator->kernel->threads) {
        fault("store_remote: block %u of the cluster left the kernel with a store to its byte %u under way", rank, load.to);
    }
    memcpy(target.shared_memory() + load.to, load.value, load.bytes);
}

void execute(const PendingLoad& load) {
    switch (load.kind) {
        case LoadKind::box: read_box(load); break;
        case LoadKind::bulk: proxy_write(block_of(*load.thread), load.to, load.from, load.bytes); break;
        case LoadKind::value: store_value(load); break;
    }
    for (uint32_t rank = 0; rank < emulator->block_count; ++rank) {
        if (!(load.blocks >> rank & 1)) continue;
        BlockState& target = *emulator->blocks[rank];
        mbarrier_complete_bytes(reinterpret_cast<uint64_t*>(target.shared_memory() + load.full), load.bytes);
    }
}

void issue(PendingLoad& load, uint64_t* full, uint32_t blocks) {
    const BlockState& own = block_of(*current_thread);
    if (load.kind != LoadKind::value) check_waited();
    mbarrier_check(full);
    load.thread = current_thread;
    load.full = shared_offset(full);
    load.blocks = blocks == 0 ? 1u << own.rank : blocks;
    if (load.blocks >> emulator->block_count != 0) {
        fault("tma_load_multicast: blocks 0x%x of a cluster of %u", load.blocks, emulator->block_count);
    }
    if (emulator->early) {
        execute(load);
    } else {
        emulator->loads.push_back(load);
    }
}

}  // namespace

void tma_load(void* to, const void* map, uint64_t* full, int rank, const int32_t* at, uint32_t blocks) {
    PendingLoad load{};
    load.kind = LoadKind::box;
    load.map = read_map("tma_load", map, HostTensorMap::tiled);
    load.to = check_box("tma_load", to, load.map, rank);
    load.bytes = box_bytes(load.map);
    memcpy(load.at, at, sizeof(int32_t) * size_t(rank));
    issue(load, full, blocks);
}

void tma_load_im2col(void* to, const void* map, uint64_t* full, const int32_t* at, uint32_t offset_w, uint32_t offset_h) {
    PendingLoad load{};
    load.kind = LoadKind::box;
    load.map = read_map("tma_load_im2col", map, HostTensorMap::im2col);
    load.to = check_box("tma_load_im2col", to, load.map, 4);
    load.bytes = box_bytes(load.map);
    memcpy(load.at, at, 4 * sizeof(int32_t));
    if (offset_w > 255 || offset_h > 255) {
        fault("tma_load_im2col: offsets %u and %u, a rank of 4 takes 0 to 255", offset_w, offset_h);
    }
    load.offset_w = uint16_t(offset_w);
    load.offset_h = uint16_t(offset_h);
    for (int i = 0; i < 2; ++i) {
        const int32_t last = int32_t(load.map.dim[i + 1]) - 1 + load.map.upper[i];
        if (at[i + 1] < load.map.lower[i] || at[i + 1] > last) {
            fault("tma_load_im2col: %c %d, the pixel box of the map spans %d to %d", "wh"[i], at[i + 1],
                  load.map.lower[i], last);
        }
    }
    issue(load, full, 0);
}

void store_remote(const void* to, const void* value, uint32_t bytes, uint64_t* full, uint32_t rank) {
    const uint64_t* const there = mbarrier_remote(full, rank, "store_remote");
    if (!in_shared(to, bytes)) fault("store_remote: %u bytes to outside the block's shared memory", bytes);
    PendingLoad load{};
    load.kind = LoadKind::value;
    load.to = shared_offset(to);
    if (load.to % bytes != 0) fault("store_remote: byte %u of shared memory, expected a multiple of %u", load.to, bytes);
    load.bytes = bytes;
    memcpy(load.value, value, bytes);
    auto& filled = emulator->filled_remotely;
    if (std::find(filled.begin(), filled.end(), there) == filled.end()) filled.push_back(there);
    issue(load, full, 1u << rank);
}

void bulk_load(void* to, uint64_t from, uint32_t bytes, uint64_t* full) {
    if (bytes == 0 || bytes % 16 != 0) fault("bulk_load: %u bytes, expected a multiple of 16", bytes);
    if (!in_shared(to, bytes)) fault("bulk_load: %u bytes to outside the block's shared memory", bytes);
    PendingLoad load{};
    load.kind = LoadKind::bulk;
    load.to = shared_offset(to);
    if (load.to % 16 != 0) fault("bulk_load: byte %u of shared memory, expected a multiple of 16", load.to);
    load.bytes = bytes;
    load.from = resolve(from, bytes, 16);
    issue(load, full, 0);
}

void prefetch_tensor_map(const void* map) {
    uint32_t kind;
    memcpy(&kind, map, sizeof kind);
    read_map("prefetch_tensor_map", map, kind == HostTensorMap::im2col ? kind : HostTensorMap::tiled);
}

void tma_store(const void* map, const void* from, int rank, const int32_t* at) {
    check_waited();
    PendingStore store{};
    store.thread = current_thread;
    store.block = current_thread->block;
    store.group = current_thread->store_groups;
    store.map = read_map("tma_store", map, HostTensorMap::tiled);
    store.from = check_box("tma_store", from, store.map, rank);
    memcpy(store.at, at, sizeof(int32_t) * size_t(rank));
    if (emulator->early) {
        write_box(store);
        store.done = true;
    }
    emulator->stores.push_back(store);
}

void tma_store_commit() { ++current_thread->store_groups; }

void tma_store_wait(uint32_t newest, bool) {
    Thread& self = *current_thread;
    auto& stores = emulator->stores;
    size_t kept = 0;
    for (size_t i = 0; i < stores.size(); ++i) {
        const bool covered = stores[i].thread == &self && stores[i].group + newest < self.store_groups;
        if (!covered) {
            stores[kept++] = stores[i];
        } else if (!stores[i].done) {
            write_box(stores[i]);
        }
    }
    stores.resize(kept);
}

void execute_oldest_load() {
    const PendingLoad load = emulator->loads.front();
    emulator->loads.pop_front();
    current_thread = load.thread;
    current_block = load.thread->block;
    execute(load);
}

void tma_check_end() {
    if (!emulator->loads.empty()) {
        const PendingLoad& load = emulator->loads.front();
        current_thread = load.thread;
        fault("a %s of %u bytes to byte %u of shared memory was still under way at the end of the kernel: nobody waited "
              "for it", load.kind == LoadKind::value ? "store" : "load", load.bytes, load.to);
    }
    for (const PendingStore& store : emulator->stores) {
        current_thread = store.thread;
        current_block = store.block;
        if (store.group == store.thread->store_groups) {
            fault("tma_store from byte %u of shared memory: no tma_store_commit before the end of the kernel", store.from);
        }
        if (!store.done) write_box(store);
    }
}

}  // namespace secateur::host
