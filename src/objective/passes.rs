//! The two shapes of a training step's passes, which the objectives share: the adversarial images alone, or the clean
//! and the adversarial ones, each with its own batch statistics.

use crate::batch::Batch;
use crate::engine::{CrossEntropy, Engine, PairedForm, PairedLoss, Pass, Result, Tensor};

/// The train pass of objectives with one, and the clean pass of those with two.
pub const FIRST: Pass = Pass::Train { slot: 0 };
/// The adversarial pass of objectives with two.
pub const SECOND: Pass = Pass::Train { slot: 1 };

/// Gradient of the mean cross-entropy of `batch.perturbed`, dL/dz' = (q - target) / batch.
pub fn cross_entropy(
    engine: &mut dyn Engine,
    batch: &Batch,
    smoothing: f32,
    weights: Option<&Tensor<f32>>,
) -> Result<()> {
    cross_entropy_forward(engine, batch, smoothing, weights)?;
    engine.parameter_gradient(FIRST, &batch.logit_gradient, false)
}

/// The same up to the gradient of the logits.
pub fn cross_entropy_forward(
    engine: &mut dyn Engine,
    batch: &Batch,
    smoothing: f32,
    weights: Option<&Tensor<f32>>,
) -> Result<()> {
    engine.forward(FIRST, &batch.perturbed, &batch.logits)?;
    cross_entropy_loss(engine, batch, smoothing, 1.0 / batch.len() as f32, weights)
}

/// The loss of the logits that the batch holds, and the gradient of these logits times `scale`.
pub fn cross_entropy_loss(
    engine: &mut dyn Engine,
    batch: &Batch,
    smoothing: f32,
    scale: f32,
    weights: Option<&Tensor<f32>>,
) -> Result<()> {
    let loss = CrossEntropy { smoothing, scale };
    engine.cross_entropy(&loss, &batch.logits, &batch.labels, weights, batch.outputs())
}

/// Gradient of the mean of a loss of both logits, through both passes.
pub fn paired(
    engine: &mut dyn Engine,
    batch: &Batch,
    form: PairedForm,
    divergence: f32,
    weights: Option<&Tensor<f32>>,
) -> Result<()> {
    engine.forward(FIRST, &batch.images, &batch.clean_logits)?;
    engine.forward(SECOND, &batch.perturbed, &batch.logits)?;
    paired_loss(engine, batch, form, divergence, 1.0 / batch.len() as f32, weights)?;
    engine.parameter_gradient(FIRST, &batch.clean_gradient, false)?;
    engine.parameter_gradient(SECOND, &batch.logit_gradient, true)
}

/// The loss of both logits that the batch holds, and the gradients of these logits times `scale`.
pub fn paired_loss(
    engine: &mut dyn Engine,
    batch: &Batch,
    form: PairedForm,
    divergence: f32,
    scale: f32,
    weights: Option<&Tensor<f32>>,
) -> Result<()> {
    let loss = PairedLoss { form, divergence, scale };
    let outputs = batch.paired_outputs();
    engine.paired_loss(&loss, &batch.clean_logits, &batch.logits, &batch.labels, weights, outputs)
}
