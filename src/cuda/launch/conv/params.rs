//! Parameter structs: the mirrors of those at the head of `kernels/conv/*.cu`. Sizes are checked at every launch.

use bytemuck::{Pod, Zeroable};

use crate::cuda::driver::Address;

/// `Gather` of `kernels/conv/geometry.cuh`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Gather {
    pub pixels: u32,
    pub log2_grid_side: u32,
    pub log2_image_side: u32,
    pub log2_channels: u32,
    pub taps: u32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ForwardParams {
    pub input: Address,
    pub weights: Address,
    pub bias: Address,
    pub residual: Address,
    pub output: Address,
    pub mask: Address,
    pub statistics: Address,
    pub gather: Gather,
    pub log2_out_channels: u32,
    pub log2_column_tiles: u32,
    pub unused: u32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct InputGradientParams {
    pub output_gradient: Address,
    pub weights: Address,
    pub residual: Address,
    pub mask: Address,
    pub input_gradient: Address,
    pub gather: Gather,
    pub kernel_taps: u32,
    pub log2_in_channels: u32,
    pub log2_column_tiles: u32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ImageGradientParams {
    pub output_gradient: Address,
    pub weights: Address,
    pub gradient: Address,
    pub images: Address,
    pub perturbed: Address,
    pub packed: Address,
    pub gather: Gather,
    pub step_size: f32,
    pub epsilon: f32,
    pub unused: u32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct WeightGradientParams {
    pub input: Address,
    pub output_gradient: Address,
    pub workspace: Address,
    pub gather: Gather,
    pub log2_out_channels: u32,
    pub pixels_a_part: u32,
    pub unused: u32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct WeightReduceParams {
    pub workspace: Address,
    pub gradient: Address,
    pub elements: u32,
    pub parts: u32,
    pub accumulate: u32,
    pub unused: u32,
}
