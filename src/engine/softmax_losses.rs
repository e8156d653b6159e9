//! Losses of softmax(logits): what training minimises and most attacks ascend, for each sample, with their logit gradients.
//!
//! A part of [`Engine`](super::Engine). Called by objectives, attacks and protocols; checked by `tests/kernel_loss.rs`,
//! `tests/kernel_paired_loss.rs` (kernels), `tests/paired_losses.rs` and `tests/reference_engine.rs` (both engines).

use super::{Result, Tensor};

/// The prediction of a row with a logit that is NaN or infinite: equal to no label, so wrong under every protocol.
pub const NO_CLASS: u32 = u32::MAX;

/// Softmax cross-entropy with label smoothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// The target is `(1 - smoothing) * one_hot + smoothing / classes`.
    pub smoothing: f32,
    /// Factor on the logit gradient, not on the losses: `1 / batch` for a mean.
    pub scale: f32,
}

/// Where a loss writes.
#[derive(Clone, Copy, Debug)]
pub struct LossOutputs<'a> {
    /// Loss of each sample, unscaled and unweighted.
    pub losses: &'a Tensor<f32>,
    /// Class with the largest logit, the lowest index among equals; [`NO_CLASS`] where a logit is not finite.
    pub predictions: &'a Tensor<u32>,
    /// `batch x classes`: scale * weight * d loss / d logits.
    pub logit_gradient: &'a Tensor<f32>,
}

/// A loss of the logits of two inputs at once: the clean image and the adversarial one made from it.
///
/// With z the clean and z' the adversarial logits, p = softmax(z), q = softmax(z'), y the label and
/// KL(p||q) = sum p (log p - log q); gradients flow through both arguments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedLoss {
    pub form: PairedForm,
    /// The factor `b` on the divergence.
    pub divergence: f32,
    /// Factor on both logit gradients, not on the losses: `1 / batch` for a mean.
    pub scale: f32,
}

/// The forms of a [`PairedLoss`]; `b` is its factor on the divergence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PairedForm {
    /// Clean cross-entropy: `- sum t log p + b KL(p||q)`, the target t = (1 - smoothing) e_y + smoothing / classes.
    ///
    /// `dL/dz = (p - t) + b p (log p - log q - KL)`, `dL/dz' = b (q - p)`.
    Trades { smoothing: f32 },
    /// Boosted cross-entropy of the adversarial logits, the divergence weighted by the doubt about the clean image:
    /// `- log q_y - log(1.0001 - q_k + 1e-12) + b w KL(p || q + 1e-12)`, k the wrong class with the largest q (the
    /// lowest index among equals) and w = 1.0000001 - p_y. Needs two classes. The loss is defined by one true class.
    ///
    /// With r = p q / (q + 1e-12): `dL/dz = b [w p (log p - log(q + 1e-12) - KL) - KL p_y (e_y - p)]`,
    /// `dL/dz' = (q - e_y) + q_k / (1.0001 - q_k + 1e-12) (e_k - q) + b w (q sum(r) - r)`.
    Mart,
}

/// Where a [`PairedLoss`] writes.
#[derive(Clone, Copy, Debug)]
pub struct PairedLossOutputs<'a> {
    /// Loss of each sample, unscaled and unweighted.
    pub losses: &'a Tensor<f32>,
    /// Class with the largest adversarial logit, the lowest index among equals; [`NO_CLASS`] where one is not finite.
    pub predictions: &'a Tensor<u32>,
    /// `batch x classes`: scale * weight * d loss / d clean logits.
    pub clean_gradient: &'a Tensor<f32>,
    /// `batch x classes`: scale * weight * d loss / d adversarial logits.
    pub adversarial_gradient: &'a Tensor<f32>,
}

/// The losses of an engine.
pub trait SoftmaxLosses {
    /// Per-sample loss, prediction and logit gradient in one pass; `weights` are per-sample factors.
    fn cross_entropy(
        &mut self,
        loss: &CrossEntropy,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        weights: Option<&Tensor<f32>>,
        outputs: LossOutputs,
    ) -> Result<()>;
    /// KL(p||q) of q = softmax(logits) from a fixed p = softmax(target_logits), per sample; the logit gradient is
    /// `scale * (q - p)`, the predictions are those of `logits`.
    fn divergence(
        &mut self,
        target_logits: &Tensor<f32>,
        logits: &Tensor<f32>,
        scale: f32,
        outputs: LossOutputs,
    ) -> Result<()>;
    /// Per-sample loss, prediction and both logit gradients in one pass; `weights` are per-sample factors.
    fn paired_loss(
        &mut self,
        loss: &PairedLoss,
        clean_logits: &Tensor<f32>,
        adversarial_logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        weights: Option<&Tensor<f32>>,
        outputs: PairedLossOutputs,
    ) -> Result<()>;
    /// The standard deviation of softmax(logits) over the classes (unbiased, so two classes at least), with the sign +
    /// where the largest logit (the lowest index among equals) is the label's and - elsewhere: how sure a sample is of
    /// the right class.
    fn signed_deviation(
        &mut self,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        scores: &Tensor<f32>,
    ) -> Result<()>;
}
