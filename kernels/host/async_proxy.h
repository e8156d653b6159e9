// Shared memory as the async proxy of a Hopper sees it: what TMA wrote, and of ordinary stores what was fenced.
//
// The copy is made when a block first uses the proxy, full of 0xFF as shared memory starts, so that anything written by
// ordinary stores differs from it until its fence. Written in host/async_proxy.cpp.
#pragma once

#include <stdint.h>

namespace secateur::host {

struct BlockState;

/// Shows these bytes of shared memory to the async proxy.
void fence_async_proxy(const void* written, uint32_t bytes);

/// The proxy's view of the block's shared memory.
char* proxy_memory(BlockState& block);
/// Writes through the proxy: both views.
void proxy_write(BlockState& block, uint32_t offset, const void* from, uint32_t bytes);
/// Ends the launch where the two views of what `reader` reads differ.
void proxy_check(BlockState& block, const char* reader, uint32_t offset, uint32_t bytes);

}  // namespace secateur::host
