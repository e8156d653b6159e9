// What portable/mbarrier.h calls on the host: barriers in shared memory that count arrivals and bytes, and named barriers.
//
// The eight bytes of an Mbarrier hold its whole state, as on a GPU: phase, arrivals a phase, arrivals missing, bytes
// missing. A wait parks the thread until the phase ends. Written in host/mbarrier.cpp.
#pragma once

#include <stdint.h>

#include <string>

namespace secateur::host {

struct Thread;

void mbarrier_init(uint64_t* state, uint32_t arrivals);
/// One arrival, after `bytes` more bytes are expected.
void mbarrier_arrive(uint64_t* state, uint32_t bytes);
/// `cluster`: what other blocks stored before is visible after; without it such stores end the launch. `kernel` must be the id of the
/// kernel that runs, and `name` holds the 16 characters of the barrier's name, for messages.
void mbarrier_wait(uint64_t* state, uint32_t parity, bool cluster, uint32_t kernel, const uint32_t name[4]);
/// One arrival at the barrier at the same place in block `rank` of the cluster.
void mbarrier_arrive_remote(uint64_t* state, uint32_t rank);
void named_barrier(uint32_t id, uint32_t threads);

/// An asynchronous copy has written `bytes` bytes.
void mbarrier_complete_bytes(uint64_t* state, uint32_t bytes);
/// That this is a barrier of the current block.
void mbarrier_check(const uint64_t* state);
/// The barrier at the same place in block `rank`, which must still be there; `what` is the operation, for messages.
uint64_t* mbarrier_remote(const uint64_t* state, uint32_t rank, const char* what);
/// What the barrier lacks that this thread waits for, for messages; and what a GPU says of a wait that does not end.
void mbarrier_describe(const Thread& thread, char* text, uint32_t capacity);
std::string mbarrier_gave_up(const Thread& thread);

}  // namespace secateur::host
