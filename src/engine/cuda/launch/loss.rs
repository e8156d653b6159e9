//! Losses: `kernels/loss/`. Checked by `tests/kernel_loss.rs` and `tests/kernel_paired_loss.rs`.

use super::{require, run};
use crate::engine::cuda::driver::{Address, Driver};
use crate::engine::{PairedForm, Result};

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct CrossEntropyParams {
    /// f32, batch x classes.
    pub logits: Address,
    /// u32, batch.
    pub labels: Address,
    /// f32, batch: factors on the logit gradient; null for none.
    pub weights: Address,
    /// f32, batch.
    pub losses: Address,
    /// u32, batch.
    pub predictions: Address,
    /// f32, batch x classes.
    pub logit_gradient: Address,
    pub batch: u32,
    /// 1 to 128.
    pub classes: u32,
    pub smoothing: f32,
    pub scale: f32,
}

/// Loss, prediction and logit gradient of each sample.
pub fn cross_entropy(driver: &dyn Driver, params: &CrossEntropyParams) -> Result<()> {
    by_sample(driver, "cross_entropy", params.batch, params.classes, params)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct DivergenceParams {
    /// f32, batch x classes: logits of the fixed distribution.
    pub target_logits: Address,
    /// f32, batch x classes.
    pub logits: Address,
    /// f32, batch.
    pub losses: Address,
    /// u32, batch.
    pub predictions: Address,
    /// f32, batch x classes.
    pub logit_gradient: Address,
    pub batch: u32,
    /// 1 to 128.
    pub classes: u32,
    pub scale: f32,
    pub padding: u32,
}

/// Divergence of each sample from its target, prediction and logit gradient.
pub fn divergence(driver: &dyn Driver, params: &DivergenceParams) -> Result<()> {
    by_sample(driver, "divergence", params.batch, params.classes, params)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct PairedLossParams {
    /// f32, batch x classes.
    pub clean_logits: Address,
    /// f32, batch x classes.
    pub adversarial_logits: Address,
    /// u32, batch.
    pub labels: Address,
    /// f32, batch: factors on the logit gradients; null for none.
    pub weights: Address,
    /// f32, batch.
    pub losses: Address,
    /// u32, batch.
    pub predictions: Address,
    /// f32, batch x classes.
    pub clean_gradient: Address,
    /// f32, batch x classes.
    pub adversarial_gradient: Address,
    pub batch: u32,
    /// 2 to 128.
    pub classes: u32,
    /// Factor on the divergence.
    pub divergence: f32,
    pub scale: f32,
}

/// Loss, prediction and both logit gradients of each sample.
pub fn paired_loss(driver: &dyn Driver, form: PairedForm, params: &PairedLossParams) -> Result<()> {
    let name = match form {
        PairedForm::CleanCrossEntropy => "paired_loss_clean_cross_entropy",
        PairedForm::BoostedCrossEntropy => "paired_loss_boosted_cross_entropy",
    };
    require(params.classes >= 2, name, "classes: 2 to 128", params.classes)?;
    by_sample(driver, name, params.batch, params.classes, params)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SignedDeviationParams {
    /// f32, batch x classes.
    pub logits: Address,
    /// u32, batch.
    pub labels: Address,
    /// f32, batch.
    pub scores: Address,
    pub batch: u32,
    /// 2 to 128.
    pub classes: u32,
}

/// Standard deviation of each sample's softmax, negative where the prediction is wrong.
pub fn signed_deviation(driver: &dyn Driver, params: &SignedDeviationParams) -> Result<()> {
    let name = "signed_deviation";
    require(params.classes >= 2, name, "classes: 2 to 128", params.classes)?;
    by_sample(driver, name, params.batch, params.classes, params)
}

/// Launches a kernel that gives each sample a warp, and a block four of them.
fn by_sample<P: bytemuck::Pod>(
    driver: &dyn Driver,
    name: &str,
    batch: u32,
    classes: u32,
    params: &P,
) -> Result<()> {
    require((1..=128).contains(&classes), name, "classes: 1 to 128", classes)?;
    run(driver, name, [batch.div_ceil(4), 1, 1], params)
}
