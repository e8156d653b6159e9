//! The two shapes of a training step's passes, which the objectives share: the adversarial images alone, or the clean
//! and the adversarial ones as a pair, each with its own batch statistics.

use crate::batch::Batch;
use crate::engine::{Engine, GradRequest, Pass, Result, Tensor};
use crate::ops::{CrossEntropy, PairedForm, PairedLoss};

/// The train pass of objectives with one.
pub const ONLY: Pass = Pass::Train { slot: 0 };

/// Gradient of the mean cross-entropy of `batch.perturbed`, dL/dz' = (q - target) / batch.
pub fn cross_entropy(
    engine: &mut Engine,
    batch: &Batch,
    smoothing: f32,
    weights: Option<&Tensor<f32>>,
) -> Result<()> {
    cross_entropy_forward(engine, batch, smoothing, weights)?;
    engine.backward(ONLY, &batch.logit_gradient, GradRequest::PARAMETERS)
}

/// The same up to the gradient of the logits.
pub fn cross_entropy_forward(
    engine: &mut Engine,
    batch: &Batch,
    smoothing: f32,
    weights: Option<&Tensor<f32>>,
) -> Result<()> {
    engine.forward(ONLY, &batch.perturbed, &batch.logits)?;
    cross_entropy_loss(engine, batch, smoothing, 1.0 / batch.len() as f32, weights)
}

/// The loss of the logits that the batch holds, and the gradient of these logits times `scale`.
pub fn cross_entropy_loss(
    engine: &mut Engine,
    batch: &Batch,
    smoothing: f32,
    scale: f32,
    weights: Option<&Tensor<f32>>,
) -> Result<()> {
    engine.run(&CrossEntropy { smoothing, weights, ..batch.cross_entropy(scale) })
}

/// Gradient of the mean of a loss of both logits, through both passes.
pub fn paired(
    engine: &mut Engine,
    batch: &Batch,
    form: PairedForm,
    divergence: f32,
    weights: Option<&Tensor<f32>>,
) -> Result<()> {
    engine.forward(Pass::Pair, [&batch.images, &batch.perturbed], [&batch.clean_logits, &batch.logits])?;
    paired_loss(engine, batch, form, divergence, 1.0 / batch.len() as f32, weights)?;
    engine.backward(Pass::Pair, [&batch.clean_gradient, &batch.logit_gradient], GradRequest::PARAMETERS)
}

/// The loss of both logits that the batch holds, and the gradients of these logits times `scale`.
pub fn paired_loss(
    engine: &mut Engine,
    batch: &Batch,
    form: PairedForm,
    divergence: f32,
    scale: f32,
    weights: Option<&Tensor<f32>>,
) -> Result<()> {
    let outputs = batch.paired_outputs();
    engine.run(&PairedLoss {
        form,
        divergence,
        scale,
        clean_logits: &batch.clean_logits,
        adversarial_logits: &batch.logits,
        labels: &batch.labels,
        weights,
        outputs,
    })
}
