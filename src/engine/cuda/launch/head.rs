//! Average pool and linear layer: `kernels/head/`. Checked by `tests/kernel_head.rs`.

use super::{require, run};
use crate::engine::Result;
use crate::engine::cuda::driver::{Address, Driver};

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct HeadForwardParams {
    /// bf16, batch x 16 pixels x features.
    pub activation: Address,
    /// f32, classes x features.
    pub weight: Address,
    /// f32, classes.
    pub bias: Address,
    /// f32, batch x features: the pooled features, kept for the backward pass.
    pub pooled: Address,
    /// f32, batch x classes.
    pub logits: Address,
    /// A multiple of 8, at most 512.
    pub features: u32,
    pub classes: u32,
}

/// Logits of `batch` images.
pub fn head_forward(driver: &dyn Driver, batch: usize, params: &HeadForwardParams) -> Result<()> {
    let (name, features) = ("head_forward", params.features);
    require(
        features.is_multiple_of(8) && features <= 512,
        name,
        "features: a multiple of 8 up to 512",
        features,
    )?;
    run(driver, name, [batch as u32, 1, 1], params)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct HeadBackwardParams {
    /// f32, batch x classes.
    pub logit_gradient: Address,
    /// f32, classes x features.
    pub weight: Address,
    /// Bits of the last activation, batch x 16 pixels x features.
    pub mask: Address,
    /// bf16, batch x 16 pixels x features.
    pub gradient: Address,
    /// A power of two from 8 to 1024.
    pub features: u32,
    pub classes: u32,
}

/// The masked gradient with respect to the last activation of `batch` images.
pub fn head_input_gradient(driver: &dyn Driver, batch: usize, params: &HeadBackwardParams) -> Result<()> {
    let (name, features) = ("head_input_gradient", params.features);
    let fits = (8..=1024).contains(&features) && features.is_power_of_two();
    require(fits, name, "features: a power of two from 8 to 1024", features)?;
    run(driver, name, [batch as u32, 1, 1], params)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct HeadWeightGradientParams {
    pub logit_gradient: Address,
    pub pooled: Address,
    /// f32, classes x features.
    pub weight_gradient: Address,
    /// f32, classes.
    pub bias_gradient: Address,
    pub batch: u32,
    /// A multiple of 32.
    pub features: u32,
    pub classes: u32,
    /// 1 adds to the gradients already there.
    pub accumulate: u32,
}

/// Gradients of the linear layer's weight and bias.
pub fn head_weight_gradient(driver: &dyn Driver, params: &HeadWeightGradientParams) -> Result<()> {
    let (name, features) = ("head_weight_gradient", params.features);
    require(features.is_multiple_of(32), name, "features: a multiple of 32", features)?;
    run(driver, name, [features / 32, params.classes, 1], params)
}
