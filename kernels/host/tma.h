// What portable/tma.h calls on the host: TMA copies between device and shared memory through tensor maps.
//
// A tensor map holds the emulator's own encoding there (HostTensorMap), written by src/cuda/driver/tensor_map.rs. Loads
// and stores are checked when they are issued and happen as the launch's order says (host/library.h). Written in
// host/tma.cpp (rules) and host/tensor_map.cpp (copies).
#pragma once

#include <stdint.h>

namespace secateur::host {

/// A load through the 128 bytes at `map`; `blocks` names the blocks of the cluster that get it, 0 for the own one alone.
void tma_load(void* to, const void* map, uint64_t* full, int rank, const int32_t* at, uint32_t blocks);
/// The same in im2col mode, `at` being c, w, h, n.
void tma_load_im2col(void* to, const void* map, uint64_t* full, const int32_t* at, uint32_t offset_w, uint32_t offset_h);
void tma_store(const void* map, const void* from, int rank, const int32_t* at);
void tma_store_commit();
/// Until at most `newest` groups of stores of this thread are under way, `read` for their reading only.
void tma_store_wait(uint32_t newest, bool read);
void bulk_load(void* to, uint64_t from, uint32_t bytes, uint64_t* full);
/// Checks that there is a map.
void prefetch_tensor_map(const void* map);

/// Executes the load that waits longest.
void execute_oldest_load();
/// Executes what is left at the end of the kernel; ends the launch where something was never committed or waited for.
void tma_check_end();

}  // namespace secateur::host
