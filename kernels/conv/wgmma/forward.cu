// Kernels of the forward convolution on wgmma, one for each epilogue and block.
//
// Targets: sm_90a
#include "conv/wgmma/forward.cuh"

namespace secateur {

#define CONV_FORWARD_WGMMA_SPLIT(operation, shape, T)                                                           \
    KERNEL_CLUSTER_EARLY(operation##_wgmma_##shape, WgmmaForwardParams, T::THREADS, T::PARTS, WgmmaShared<T>) { \
        operation<T>(p, shared, kernel);                                                                                \
    }

CONV_FORWARD_WGMMA(conv_forward_relu, 128x256, Wgmma128x256)
CONV_FORWARD_WGMMA(conv_forward_relu, 64x512, Wgmma64x512)
CONV_FORWARD_WGMMA(conv_forward_relu, 64x256, Wgmma64x256)
CONV_FORWARD_WGMMA_SPLIT(conv_forward_relu, 64x256_split, Wgmma64x256Split)
CONV_FORWARD_WGMMA(conv_forward_relu, resident, WgmmaResident)
CONV_FORWARD_WGMMA(conv_forward_bias, 128x256, Wgmma128x256)
CONV_FORWARD_WGMMA(conv_forward_bias, 64x512, Wgmma64x512)
CONV_FORWARD_WGMMA(conv_forward_bias, 64x256, Wgmma64x256)
CONV_FORWARD_WGMMA_SPLIT(conv_forward_bias, 64x256_split, Wgmma64x256Split)
CONV_FORWARD_WGMMA(conv_forward_bias, resident, WgmmaResident)
CONV_FORWARD_WGMMA(conv_forward_statistics, 128x256, Wgmma128x256)
CONV_FORWARD_WGMMA(conv_forward_statistics, 64x512, Wgmma64x512)
CONV_FORWARD_WGMMA(conv_forward_statistics, 64x256, Wgmma64x256)
CONV_FORWARD_WGMMA_SPLIT(conv_forward_statistics, 64x256_split, Wgmma64x256Split)
CONV_FORWARD_WGMMA(conv_forward_statistics, resident, WgmmaResident)

}  // namespace secateur
