// The async proxy's view of shared memory.

#include "host/async_proxy.h"

#include <stdlib.h>
#include <string.h>

#include "host/scheduler.h"

namespace secateur::host {

char* proxy_memory(BlockState& block) {
    if (!block.proxy_used) {
        if (block.proxy == nullptr) {
            block.proxy = static_cast<char*>(aligned_alloc(1024, max_shared));
            if (block.proxy == nullptr) throw std::bad_alloc();
        }
        memset(block.proxy, 0xFF, block.shared_bytes);
        block.proxy_used = true;
    }
    return block.proxy;
}

void fence_async_proxy(const void* written, uint32_t bytes) {
    if (!in_shared(written, bytes)) fault("fence_async_proxy: %u bytes outside the block's shared memory", bytes);
    BlockState& block = block_of(*current_thread);
    const auto offset = size_t(static_cast<const char*>(written) - block.shared);
    memcpy(proxy_memory(block) + offset, written, bytes);
}

void proxy_write(BlockState& block, uint32_t offset, const void* from, uint32_t bytes) {
    memcpy(block.shared_memory() + offset, from, bytes);
    memcpy(proxy_memory(block) + offset, from, bytes);
}

void proxy_check(BlockState& block, const char* reader, uint32_t offset, uint32_t bytes) {
    const char* proxy = proxy_memory(block) + offset;
    const char* memory = block.shared + offset;
    if (memcmp(proxy, memory, bytes) == 0) return;
    uint32_t i = 0;
    while (proxy[i] == memory[i]) ++i;
    fault("%s reads byte %u of shared memory, which was written by ordinary stores without fence_async_proxy after them",
          reader, offset + i);
}

}  // namespace secateur::host
