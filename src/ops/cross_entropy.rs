//! Softmax cross-entropy with label smoothing: loss, prediction and logit gradient of each sample.

use super::softmax::{at_class, by_logit, by_sample, log_softmax, one_hot, prediction};
use super::{LossOutputs, Op};
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::engine::{Operands, Result, Tensor};

/// With `t = (1 - smoothing) * one_hot + smoothing / classes` and `p = softmax(z)`: loss `-sum t log p`, gradient
/// `scale * weight * (p - t)`.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy<'a> {
    pub smoothing: f32,
    /// Factor on the logit gradient, not on the losses: `1 / batch` for a mean.
    pub scale: f32,
    /// `batch x classes`.
    pub logits: &'a Tensor<f32>,
    pub labels: &'a Tensor<u32>,
    /// Factor of each sample on its logit gradient.
    pub weights: Option<&'a Tensor<f32>>,
    pub outputs: LossOutputs<'a>,
}

impl Op for CrossEntropy<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let batch = self.labels.len();
        operands.reads(self.labels, batch)?;
        operands.reads(self.logits, batch * operands.classes())?;
        self.weights.iter().try_for_each(|weights| operands.reads(weights, batch))?;
        self.outputs.check(operands, batch)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (logits, labels) = (cpu.input(self.logits)?, cpu.input(self.labels)?);
        let weights = self.weights.map(|weights| cpu.input(weights)).transpose()?;
        let (classes, smoothing, scale) = (cpu.classes(), self.smoothing, self.scale);
        let uniform = smoothing / classes as f32;
        let (logits, labels, weights) = (&logits[..], &labels[..], weights.as_deref());
        self.outputs.fill(cpu, |sample, gradient| {
            let (logits, label) = (&logits[sample * classes..][..classes], labels[sample]);
            let factor = scale * weights.map_or(1.0, |weights| weights[sample]);
            // The gradient holds log p first.
            log_softmax(logits, gradient);
            let at_label = at_class(gradient, label);
            let mut loss = if at_label.is_nan() { f32::NAN } else { 0.0 };
            for (c, slot) in gradient.iter_mut().enumerate() {
                let (target, log_p) = (uniform + (1.0 - smoothing) * one_hot(c, label), *slot);
                loss -= target * log_p;
                *slot = factor * (log_p.exp() - target);
            }
            (loss, prediction(logits))
        })
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let params = CrossEntropyParams {
            logits: cuda.address(self.logits)?,
            labels: cuda.address(self.labels)?,
            weights: cuda.optional(self.weights)?,
            losses: cuda.address(self.outputs.losses)?,
            predictions: cuda.address(self.outputs.predictions)?,
            logit_gradient: cuda.address(self.outputs.logit_gradient)?,
            batch: self.labels.len() as u32,
            classes: cuda.classes() as u32,
            smoothing: self.smoothing,
            scale: self.scale,
        };
        cross_entropy(cuda.driver(), &params)
    }
}

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
