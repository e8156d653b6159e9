//! Average pool and linear layer: `kernels/head/`.

use super::{BF16, Cost, F32, U32, require, run};
use crate::cuda::driver::{Address, Driver};
use crate::engine::{AscentLoss, Result};

/// Pixels of the last stage, which the head averages.
const PIXELS: usize = 16;

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
    let (features, classes) = (features as usize, params.classes as usize);
    let linear = classes * (features + 1);
    let pooled = batch * features;
    let bytes = pooled * PIXELS * BF16 + (linear + pooled + batch * classes) * F32;
    let cost = Cost::new(pooled * PIXELS + 2 * batch * classes * features, bytes);
    run(driver, name, [batch as u32, 1, 1], params, cost)
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
    let (features, classes) = (features as usize, params.classes as usize);
    let elements = batch * PIXELS * features;
    let bytes = elements * BF16 + elements / 8 + (batch + features) * classes * F32;
    let cost = Cost::new(batch * features * (2 * classes + 1), bytes);
    run(driver, name, [batch as u32, 1, 1], params, cost)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct HeadAscentParams {
    /// bf16, batch x 16 pixels x features, after a ReLU.
    pub activation: Address,
    /// f32, classes x features.
    pub weight: Address,
    /// f32, classes.
    pub bias: Address,
    /// u32, batch; null for the divergence.
    pub labels: Address,
    /// f32, batch x classes; null but for the divergence.
    pub target_logits: Address,
    /// bf16, batch x 16 pixels x features; may be the activation's memory.
    pub gradient: Address,
    /// A multiple of 32, at most 512.
    pub features: u32,
    /// 1 (margin: 2) to 128.
    pub classes: u32,
}

/// From the last activation of `batch` images through the ascended loss to its masked gradient.
pub fn head_ascent(
    driver: &dyn Driver,
    loss: AscentLoss,
    batch: usize,
    params: &HeadAscentParams,
) -> Result<()> {
    // Operations of the loss on a logit (those of src/ops, without the loss itself), and bytes that tell it what to
    // ascend.
    let (features, classes) = (params.features as usize, params.classes as usize);
    let (name, fewest, operations, bytes) = match loss {
        AscentLoss::CrossEntropy => ("head_ascent_cross_entropy", 1, 6, U32),
        AscentLoss::Divergence => ("head_ascent_divergence", 1, 11, classes * F32),
        AscentLoss::Margin => ("head_ascent_margin", 2, 0, U32),
    };
    let fits = params.features.is_multiple_of(32) && features <= 512;
    require(fits, name, "features: a multiple of 32 up to 512", params.features)?;
    require((fewest..=128).contains(&params.classes), name, "classes: 1 (margin: 2) to 128", params.classes)?;
    let pooled = batch * features;
    let linear = 2 * batch * classes * features;
    let flops = pooled * PIXELS + 2 * linear + batch * classes * operations + pooled;
    let bytes = 2 * pooled * PIXELS * BF16 + classes * (features + 1) * F32 + batch * bytes;
    run(driver, name, [batch as u32, 1, 1], params, Cost::new(flops, bytes))
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
    let (batch, width, classes) = (params.batch as usize, features as usize, params.classes as usize);
    let written = classes * (width + 1) * if params.accumulate == 0 { 1 } else { 2 };
    let bytes = (batch * (classes + width) + written) * F32;
    let cost = Cost::new(batch * classes * (2 * width + 1), bytes);
    run(driver, name, [features / 32, params.classes, 1], params, cost)
}
