//! The divergence of predictions from a fixed distribution: loss, prediction and logit gradient of each sample.

use super::softmax::{by_logit, by_sample, log_softmax, prediction};
use super::{LossOutputs, Op};
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::engine::{Operands, Result, Tensor};

/// KL(p||q) of q = softmax(logits) from a fixed p = softmax(target_logits); the logit gradient is `scale * (q - p)`, the
/// predictions are those of `logits`.
#[derive(Clone, Copy, Debug)]
pub struct Divergence<'a> {
    /// Factor on the logit gradient, not on the losses.
    pub scale: f32,
    /// `batch x classes`.
    pub target_logits: &'a Tensor<f32>,
    /// `batch x classes`.
    pub logits: &'a Tensor<f32>,
    pub outputs: LossOutputs<'a>,
}

impl Op for Divergence<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let batch = self.outputs.losses.len();
        operands.reads(self.target_logits, batch * operands.classes())?;
        operands.reads(self.logits, batch * operands.classes())?;
        self.outputs.check(operands, batch)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (targets, logits) = (cpu.input(self.target_logits)?, cpu.input(self.logits)?);
        let (classes, scale, targets, logits) = (cpu.classes(), self.scale, &targets[..], &logits[..]);
        self.outputs.fill(cpu, |sample, log_q| {
            let row = sample * classes..(sample + 1) * classes;
            let (target, logits) = (&targets[row.clone()], &logits[row]);
            let mut log_p = vec![0.0; classes];
            log_softmax(target, &mut log_p);
            log_softmax(logits, log_q);
            let mut loss = 0.0;
            for (slot, &log_p) in log_q.iter_mut().zip(&log_p) {
                let (p, log_q) = (log_p.exp(), *slot);
                loss += p * (log_p - log_q);
                *slot = scale * (log_q.exp() - p);
            }
            (loss, prediction(logits))
        })
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let params = DivergenceParams {
            target_logits: cuda.address(self.target_logits)?,
            logits: cuda.address(self.logits)?,
            losses: cuda.address(self.outputs.losses)?,
            predictions: cuda.address(self.outputs.predictions)?,
            logit_gradient: cuda.address(self.outputs.logit_gradient)?,
            batch: self.outputs.losses.len() as u32,
            classes: cuda.classes() as u32,
            scale: self.scale,
            padding: 0,
        };
        divergence(cuda.driver(), &params)
    }
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
