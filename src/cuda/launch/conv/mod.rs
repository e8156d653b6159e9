//! Convolutions on tensor cores: forward, input gradient, image gradient with the attack step, weight gradient.
//!
//! Two families of kernels serve them: `mma` (mma.sync and cp.async, any GPU from sm_80 on, every width) and [`wgmma`] (Hopper,
//! channels in multiples of 64); each function takes the second where the driver and the shape allow it.
//!
//! Activations are bf16 NHWC, weights bf16 KRSC, sums f32. Each function checks its shape, chooses a tile and a grid,
//! and launches one kernel (the weight gradient two). Addresses must hold what the shape says: on the emulator a
//! wrong one is an error, on a GPU it is not caught. Kernels in `kernels/conv/`.

mod cost;
mod forward;
mod image_gradient;
mod input_gradient;
mod mask;
mod params;
mod shape;
mod tile;
mod weight_gradient;
pub mod wgmma;

use crate::cuda::driver::Address;
use crate::engine::Pass;

/// Whether a long sum may be cut into parts, which blocks of a cluster take, where a batch leaves multiprocessors idle. The bits
/// of an element then depend on the size of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    Whole,
    Split,
}

impl From<Pass> for Reduction {
    fn from(pass: Pass) -> Self {
        if pass.splits_sums() { Self::Split } else { Self::Whole }
    }
}

/// What a forward convolution, or its way back, takes and makes.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    pub shape: &'a ConvShape,
    /// The input, or the gradient of the output.
    pub from: Address,
    pub weights: Address,
    /// The output, or the gradient of the input.
    pub to: Address,
}

pub use cost::{flops, forward_cost, input_gradient_cost};
use cost::{image_gradient_cost, weight_gradient_cost, weight_reduce_cost};
pub use forward::{
    ForwardEpilogue, SetStatistics, forward, forward_on_mma, forward_tiled, statistics_partials,
    statistics_tile_rows,
};
pub use image_gradient::{ImageEpilogue, image_gradient};
pub use input_gradient::{
    InputGradientEpilogue, input_gradient, input_gradient_on_mma, input_gradient_tiled,
};
pub use mask::{Mask, MaskOrder, mask_bytes};
pub use shape::ConvShape;
pub use tile::Tile;
pub use weight_gradient::{weight_gradient, weight_gradient_workspace};
