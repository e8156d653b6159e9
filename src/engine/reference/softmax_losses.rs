//! [`SoftmaxLosses`] of the reference engine. Checked by tests/reference_engine.rs and tests/reference_pytorch.rs.

use super::engine::Reference;
use crate::engine::{
    CrossEntropy, LossOutputs, PairedLoss, PairedLossOutputs, Result, SoftmaxLosses, Tensor,
};

impl SoftmaxLosses for Reference {
    fn cross_entropy(
        &mut self,
        loss: &CrossEntropy,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        weights: Option<&Tensor<f32>>,
        outputs: LossOutputs,
    ) -> Result<()> {
        self.losses().cross_entropy(loss, logits, labels, weights, outputs)
    }

    fn divergence(
        &mut self,
        target_logits: &Tensor<f32>,
        logits: &Tensor<f32>,
        scale: f32,
        outputs: LossOutputs,
    ) -> Result<()> {
        self.losses().divergence(target_logits, logits, scale, outputs)
    }

    fn paired_loss(
        &mut self,
        loss: &PairedLoss,
        clean_logits: &Tensor<f32>,
        adversarial_logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        weights: Option<&Tensor<f32>>,
        outputs: PairedLossOutputs,
    ) -> Result<()> {
        self.losses().paired_loss(loss, clean_logits, adversarial_logits, labels, weights, outputs)
    }

    fn signed_deviation(
        &mut self,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        scores: &Tensor<f32>,
    ) -> Result<()> {
        self.losses().signed_deviation(logits, labels, scores)
    }
}
