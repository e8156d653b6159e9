// The f32 image as the stem reads it: eight bf16 channels a pixel, [hi0 hi1 hi2 lo0 lo1 lo2 0 0] with hi = bf16(x) and
// lo = bf16(x - hi). One bf16 alone would round an image near 1 to whole pixel levels.

#include "portable/portable.h"

namespace secateur {

struct PackParams {
    Global<const float> images;  // pixels x 3
    Global<Bf16> packed;         // pixels x 8
    uint32_t pixels;
};

KERNEL(image_pack, PackParams, 256, NoShared) {
    const uint32_t pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= p.pixels) return;
    Float8 packed = {};
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        const float x = p.images[int64_t(pixel) * 3 + c];
        packed.value[c] = x;
        packed.value[c + 3] = x - to_float(to_bf16(x));
    }
    store_bf16x8(p.packed, int64_t(pixel) * 8, packed);
}

}  // namespace secateur
