// Shared memory as the async proxy of a Hopper sees it: what TMA wrote, and of ordinary stores what was fenced.
//
// The copy is made when a block first uses the proxy, full of 0xFF as shared memory starts, so that anything written by
// ordinary stores differs from it until its fence. Written in host/async_proxy.cpp.
#pragma once

#include <stdint.h>

namespace secateur::host {

/// Shows these bytes of shared memory to the async proxy.
void fence_async_proxy(const void* written, uint32_t bytes);

}  // namespace secateur::host
