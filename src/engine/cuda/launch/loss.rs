//! Losses: `kernels/loss/`. Checked by `tests/kernel_loss.rs`, `tests/kernel_paired_loss.rs` and `tests/kernel_margin.rs`.

use super::{Cost, F32, U32, require, run};
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
    // Softmax, then target and scale; labels, losses, predictions and weights are a word a sample.
    let words = if params.weights == Address::NULL { 3 } else { 4 };
    let cost = by_logit(params.batch, params.classes, 7, 2, words);
    by_sample(driver, "cross_entropy", params.batch, params.classes, params, cost)
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
    // Two log-softmaxes, the sum of p (log p - log q), and the gradient.
    let cost = by_logit(params.batch, params.classes, 14, 3, 2);
    by_sample(driver, "divergence", params.batch, params.classes, params, cost)
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
    /// Set by [`paired_loss`] from the form.
    pub smoothing: f32,
    pub padding: u32,
}

/// Loss, prediction and both logit gradients of each sample.
pub fn paired_loss(driver: &dyn Driver, form: PairedForm, params: &PairedLossParams) -> Result<()> {
    let (name, smoothing) = match form {
        PairedForm::Trades { smoothing } => ("paired_loss_clean_cross_entropy", smoothing),
        PairedForm::Mart => ("paired_loss_boosted_cross_entropy", 0.0),
    };
    let params = &PairedLossParams { smoothing, ..*params };
    require(params.classes >= 2, name, "classes: 2 to 128", params.classes)?;
    // The same and a second gradient.
    let words = if params.weights == Address::NULL { 3 } else { 4 };
    let cost = by_logit(params.batch, params.classes, 20, 4, words);
    by_sample(driver, name, params.batch, params.classes, params, cost)
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
    // Softmax, and the squares of what it differs from its mean.
    let cost = by_logit(params.batch, params.classes, 7, 1, 2);
    by_sample(driver, name, params.batch, params.classes, params, cost)
}

/// Cost of a loss: `operations` on each logit, `tensors` of the logits' shape and `words` a sample.
fn by_logit(batch: u32, classes: u32, operations: usize, tensors: usize, words: usize) -> Cost {
    let (batch, classes) = (batch as usize, classes as usize);
    Cost::new(operations * batch * classes, tensors * batch * classes * F32 + words * batch * U32)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct MarginParams {
    /// f32, batch x classes.
    pub logits: Address,
    /// u32, batch.
    pub labels: Address,
    /// u32, batch: classes to aim at; null for the best wrong one.
    pub targets: Address,
    /// f32, batch.
    pub losses: Address,
    /// u32, batch.
    pub predictions: Address,
    /// f32, batch x classes.
    pub logit_gradient: Address,
    pub batch: u32,
    /// 2 to 128; 4 at least with targets.
    pub classes: u32,
}

/// Margin loss of each sample, prediction and logit gradient: of the best wrong class, or with targets the DLR loss.
pub fn margin_loss(driver: &dyn Driver, params: &MarginParams) -> Result<()> {
    let (name, wanted) = match params.targets {
        Address::NULL => ("margin_loss_best_wrong", 2),
        _ => ("margin_loss_targeted_dlr", 4),
    };
    require(params.classes >= wanted, name, "classes: 2 (with targets 4) to 128", params.classes)?;
    // A handful of operations a sample; the rest are comparisons.
    let words = if params.targets == Address::NULL { 3 } else { 4 };
    let cost = by_logit(params.batch, params.classes, 0, 2, words);
    by_sample(driver, name, params.batch, params.classes, params, cost)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct WrongClassParams {
    /// f32, batch x classes.
    pub logits: Address,
    /// u32, batch.
    pub labels: Address,
    /// u32, batch.
    pub wrong: Address,
    pub batch: u32,
    /// 2 to 128.
    pub classes: u32,
    /// 1 to classes - 1.
    pub rank: u32,
    pub padding: u32,
}

/// The wrong class of each sample whose logit is the `rank`-th largest of the wrong ones.
pub fn wrong_class(driver: &dyn Driver, params: &WrongClassParams) -> Result<()> {
    let name = "wrong_class";
    require((1..params.classes).contains(&params.rank), name, "rank: 1 to classes - 1", params.rank)?;
    let cost = by_logit(params.batch, params.classes, 0, 1, 2);
    by_sample(driver, name, params.batch, params.classes, params, cost)
}

/// Launches a kernel that gives each sample a warp, and a block four of them.
fn by_sample<P: bytemuck::Pod>(
    driver: &dyn Driver,
    name: &str,
    batch: u32,
    classes: u32,
    params: &P,
    cost: Cost,
) -> Result<()> {
    require((1..=128).contains(&classes), name, "classes: 1 to 128", classes)?;
    run(driver, name, [batch.div_ceil(4), 1, 1], params, cost)
}
