//! [`SoftmaxLosses`] on our kernels. Checked by tests/paired_losses.rs and tests/engine_agreement.rs.

use super::driver::Address;
use super::engine::Cuda;
use super::launch::loss;
use crate::engine::{
    CrossEntropy, Engine, LossOutputs, PairedLoss, PairedLossOutputs, Result, SoftmaxLosses, Tensor,
};

impl SoftmaxLosses for Cuda {
    fn cross_entropy(
        &mut self,
        loss: &CrossEntropy,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        weights: Option<&Tensor<f32>>,
        outputs: LossOutputs,
    ) -> Result<()> {
        let batch = labels.len();
        let classes = self.network().classes;
        let params = loss::CrossEntropyParams {
            logits: self.logits(logits, batch)?,
            labels: self.address(labels)?,
            weights: weights.map_or(Ok(Address::NULL), |weights| self.sized(weights, batch))?,
            losses: self.sized(outputs.losses, batch)?,
            predictions: self.sized(outputs.predictions, batch)?,
            logit_gradient: self.logits(outputs.logit_gradient, batch)?,
            batch: batch as u32,
            classes: classes as u32,
            smoothing: loss.smoothing,
            scale: loss.scale,
        };
        loss::cross_entropy(self.driver(), &params)
    }

    fn divergence(
        &mut self,
        target_logits: &Tensor<f32>,
        logits: &Tensor<f32>,
        scale: f32,
        outputs: LossOutputs,
    ) -> Result<()> {
        let batch = outputs.losses.len();
        let params = loss::DivergenceParams {
            target_logits: self.logits(target_logits, batch)?,
            logits: self.logits(logits, batch)?,
            losses: self.address(outputs.losses)?,
            predictions: self.sized(outputs.predictions, batch)?,
            logit_gradient: self.logits(outputs.logit_gradient, batch)?,
            batch: batch as u32,
            classes: self.network().classes as u32,
            scale,
            padding: 0,
        };
        loss::divergence(self.driver(), &params)
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
        let batch = labels.len();
        let params = loss::PairedLossParams {
            clean_logits: self.logits(clean_logits, batch)?,
            adversarial_logits: self.logits(adversarial_logits, batch)?,
            labels: self.address(labels)?,
            weights: weights.map_or(Ok(Address::NULL), |weights| self.sized(weights, batch))?,
            losses: self.sized(outputs.losses, batch)?,
            predictions: self.sized(outputs.predictions, batch)?,
            clean_gradient: self.logits(outputs.clean_gradient, batch)?,
            adversarial_gradient: self.logits(outputs.adversarial_gradient, batch)?,
            batch: batch as u32,
            classes: self.network().classes as u32,
            divergence: loss.divergence,
            scale: loss.scale,
            smoothing: 0.0,
            padding: 0,
        };
        loss::paired_loss(self.driver(), loss.form, &params)
    }

    fn signed_deviation(
        &mut self,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        scores: &Tensor<f32>,
    ) -> Result<()> {
        let batch = labels.len();
        let params = loss::SignedDeviationParams {
            logits: self.logits(logits, batch)?,
            labels: self.address(labels)?,
            scores: self.sized(scores, batch)?,
            batch: batch as u32,
            classes: self.network().classes as u32,
        };
        loss::signed_deviation(self.driver(), &params)
    }
}
