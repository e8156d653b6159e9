// Convolutions on wgmma whose pixels TMA gathers in its im2col mode: the kernels of conv/wgmma with another order of pixels, to be
// measured next to them.
//
// Targets: sm_90a
//
// A slot is one tap of 256 pixels that are neighbours in memory, across rows and images: each pixel is loaded nine times, three times as
// often as by planes.
#include "conv/wgmma/forward.cuh"
#include "conv/wgmma/input_gradient.cuh"

namespace secateur {

/// Pixels in the order of memory, of a 3 x 3 convolution with this stride; the row and column of a slot are those of its tap.
template <int STRIDE>
struct Im2col {
    DEVICE static void load(void* to, const TensorMap* maps, Mbarrier& full, const WgmmaPlan& plan, uint32_t group,
                            const Slot& slot, int32_t depth) {
        const uint32_t pixel = group * GROUP_PIXELS, within = (1u << plan.log2_side) - 1;
        const int32_t column = int32_t(pixel & within), row = int32_t(pixel >> plan.log2_side & within);
        tma_load_im2col(to, maps[slot.map], full,
                        {depth, STRIDE * column - 1, STRIDE * row - 1, int32_t(pixel >> (2 * plan.log2_side))},
                        uint16_t(slot.column), uint16_t(slot.row));
    }

    DEVICE static GridPixel pixel(const WgmmaPlan& plan, const GroupTile& tile, uint32_t index) {
        const uint32_t pixel = tile.group * GROUP_PIXELS + tile.first + index, within = (1u << plan.log2_side) - 1;
        const uint32_t image = pixel >> (2 * plan.log2_side);
        return {image, pixel >> plan.log2_side & within, pixel & within, image < plan.batch};
    }

    DEVICE static StageBox box(const WgmmaPlan&, const GroupTile& tile, uint32_t stage) {
        return {{int32_t(tile.channel), int32_t(tile.group * GROUP_PIXELS + tile.first + stage * STAGE_PIXELS), 0, 0}};
    }
};

template <class T, int STRIDE = 1>
struct Im2colTile : T {
    using Pixels = Im2col<STRIDE>;
};
using Im2col128x256 = Im2colTile<Wgmma128x256>;
using Im2col64x512 = Im2colTile<Wgmma64x512>;
using Im2col64x256 = Im2colTile<Wgmma64x256>;
using StridedIm2col128x256 = Im2colTile<Wgmma128x256, 2>;
using StridedIm2col64x256 = Im2colTile<Wgmma64x256, 2>;

CONV_FORWARD_WGMMA(conv_forward_relu, im2col_128x256, Im2col128x256)
CONV_FORWARD_WGMMA(conv_forward_relu, im2col_64x512, Im2col64x512)
CONV_FORWARD_WGMMA(conv_forward_relu, im2col_64x256, Im2col64x256)
CONV_FORWARD_WGMMA(conv_forward_relu, im2col_stride2_128x256, StridedIm2col128x256)
CONV_FORWARD_WGMMA(conv_forward_relu, im2col_stride2_64x256, StridedIm2col64x256)
CONV_INPUT_GRADIENT_WGMMA(im2col_128x256, Im2col128x256)
CONV_INPUT_GRADIENT_WGMMA(im2col_64x512, Im2col64x512)
CONV_INPUT_GRADIENT_WGMMA(im2col_64x256, Im2col64x256)

}  // namespace secateur
