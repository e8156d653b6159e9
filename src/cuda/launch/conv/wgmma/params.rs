//! Parameter structs: the mirrors of those in `kernels/conv/wgmma/`. Sizes are checked at every launch.

use bytemuck::{Pod, Zeroable};

use super::plan::Plan;
use crate::cuda::driver::{Address, TensorMap};

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Operands {
    pub pixels: [TensorMap; 4],
    pub weights: TensorMap,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct ForwardParams {
    pub operands: Operands,
    pub output: TensorMap,
    pub residual: TensorMap,
    pub bias: Address,
    pub mask: Address,
    pub statistics: Address,
    pub has_residual: u32,
    pub log2_out_channels: u32,
    /// A `MaskOrder`.
    pub mask_order: u32,
    pub plan: Plan,
    pub unused: u32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct GradientParams {
    pub operands: Operands,
    pub output: [TensorMap; 4],
    pub residual: TensorMap,
    pub mask: Address,
    /// Which phase has a residual; 4 for none.
    pub residual_phase: u32,
    pub log2_in_channels: u32,
    pub log2_stride: u32,
    /// Bits 2 phase + 1 and 2 phase: parity of row and column.
    pub parities: u32,
    /// A `MaskOrder`.
    pub mask_order: u32,
    pub plan: Plan,
    pub unused: [u32; 3],
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct WeightGradientParams {
    pub pixels: [TensorMap; 4],
    pub output_gradient: TensorMap,
    pub workspace: Address,
    pub columns: u32,
    pub log2_in_channels: u32,
    pub log2_out_channels: u32,
    /// Of 256 pixels.
    pub groups: u32,
    pub groups_a_part: u32,
    pub unused: u32,
    pub plan: Plan,
    pub padding: [u32; 2],
}
