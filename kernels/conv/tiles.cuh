// The tile shapes that the convolutions are built with; src/cuda/launch/conv/tile.rs chooses among them.
//
// A warp tile of 64 x 64 reads 4 KiB of shared memory for 131 kFLOP, 64 x 32 reads 3 KiB for 66 kFLOP. Four stages of 32
// take 64 KiB and 48 KiB a block, so that even the 100 KiB of a consumer GPU hold one or two blocks.
#pragma once

#include "conv/tile.cuh"

namespace secateur {

// Forward and input gradient: 128 pixels by 128, 64 or 16 channels.
using Tile128x128 = Tile<128, 128, 32, 2, 2, 4>;
using Tile128x64 = Tile<128, 64, 32, 2, 2, 4>;
using Tile128x16 = Tile<128, 16, 32, 4, 1, 4>;

// Weight gradient: 64 or 16 output channels by 192 or 64 (tap, input channel) columns. Three taps of 64 channels fill 192.
using Tile64x192 = Tile<64, 192, 32, 1, 4, 4>;
using Tile16x64 = Tile<16, 64, 32, 1, 4, 4>;

}  // namespace secateur
