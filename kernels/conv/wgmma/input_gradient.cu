// Kernels of the input gradient on wgmma, one for each block.
//
// Targets: sm_90a
#include "conv/wgmma/input_gradient.cuh"

namespace secateur {

CONV_INPUT_GRADIENT_WGMMA(128x256, Wgmma128x256)
CONV_INPUT_GRADIENT_WGMMA(64x512, Wgmma64x512)
CONV_INPUT_GRADIENT_WGMMA(64x256, Wgmma64x256)
CONV_INPUT_GRADIENT_WGMMA(resident, WgmmaResident)
KERNEL_CLUSTER_EARLY(conv_input_gradient_wgmma_64x256_split, WgmmaGradientParams, Wgmma64x256Split::THREADS,
                     Wgmma64x256Split::PARTS, WgmmaShared<Wgmma64x256Split>) {
    conv_input_gradient<Wgmma64x256Split>(p, shared, kernel);
}

}  // namespace secateur
