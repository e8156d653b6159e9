//! The two shapes of a training step's passes, which the objectives share: the adversarial images alone, or the clean
//! and the adversarial ones as a pair, each with its own batch statistics.

use crate::batch::Batch;
use crate::engine::{CrossEntropy, Engine, PairedForm, PairedLoss, Pass, Result, Tensor};

/// The train pass of objectives with one.
pub const ONLY: Pass = Pass::Train { slot: 0 };

/// Gradient of the mean cross-entropy of `batch.perturbed`, dL/dz' = (q - target) / batch.
pub fn cross_entropy(
    engine: &mut dyn Engine,
    batch: &Batch,
    smoothing: f32,
    weights: Option<&Tensor<f32>>,
) -> Result<()> {
    cross_entropy_forward(engine, batch, smoothing, weights)?;
    engine.parameter_gradient(ONLY, &batch.logit_gradient, false)
}

/// The same up to the gradient of the logits.
pub fn cross_entropy_forward(
    engine: &mut dyn Engine,
    batch: &Batch,
    smoothing: f32,
    weights: Option<&Tensor<f32>>,
) -> Result<()> {
    engine.forward(ONLY, &batch.perturbed, &batch.logits)?;
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
    engine.forward_pair([&batch.images, &batch.perturbed], [&batch.clean_logits, &batch.logits])?;
    paired_loss(engine, batch, form, divergence, 1.0 / batch.len() as f32, weights)?;
    engine.pair_gradient([&batch.clean_gradient, &batch.logit_gradient])
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
