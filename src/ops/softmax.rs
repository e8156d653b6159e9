//! What losses of a row of logits share: log softmax, prediction, outputs, and how their kernels are launched.

use rayon::prelude::*;

use crate::cpu::Cpu;
use crate::cuda::driver::Driver;
use crate::cuda::launch::{Cost, F32, U32, require, run};
use crate::engine::{Operands, Result, Tensor};

/// The prediction of a row with a logit that is NaN or infinite: equal to no label, so wrong under every protocol.
pub const NO_CLASS: u32 = u32::MAX;

/// Where a loss writes.
#[derive(Clone, Copy, Debug)]
pub struct LossOutputs<'a> {
    /// Loss of each sample, unscaled and unweighted; NaN where its label is no class.
    pub losses: &'a Tensor<f32>,
    /// Class with the largest logit, the lowest index among equals; [`NO_CLASS`] where a logit is not finite.
    pub predictions: &'a Tensor<u32>,
    /// `batch x classes`: scale * weight * d loss / d logits.
    pub logit_gradient: &'a Tensor<f32>,
}

impl LossOutputs<'_> {
    pub(super) fn check(&self, operands: &mut Operands, batch: usize) -> Result<()> {
        operands.writes(self.losses, batch)?;
        operands.writes(self.predictions, batch)?;
        operands.writes(self.logit_gradient, batch * operands.classes())
    }

    /// One row a sample: `loss` returns loss and prediction of a row and writes its gradient.
    pub(super) fn fill(
        &self,
        cpu: &Cpu,
        loss: impl Fn(usize, &mut [f32]) -> (f32, u32) + Sync,
    ) -> Result<()> {
        let (mut losses, mut predictions) = (cpu.output(self.losses)?, cpu.output(self.predictions)?);
        let mut gradient = cpu.output(self.logit_gradient)?;
        let results = losses.par_iter_mut().zip(predictions.par_iter_mut());
        gradient.par_chunks_exact_mut(cpu.classes()).zip(results).enumerate().for_each(
            |(sample, (gradient, (value, prediction)))| (*value, *prediction) = loss(sample, gradient),
        );
        Ok(())
    }
}

/// Writes log softmax of `logits`; returns the class with the largest one, the lowest index among equals.
///
/// Log probabilities of finite logits are finite, however far these lie apart.
pub fn log_softmax(logits: &[f32], log: &mut [f32]) -> usize {
    let best = argmax(logits.iter().copied());
    // The largest exponential is one: left out of the sum and added by ln_1p, the digits of the others survive.
    let others = logits.iter().enumerate().filter(|&(c, _)| c != best);
    let log_total = others.map(|(_, z)| (z - logits[best]).exp()).sum::<f32>().ln_1p();
    for (log, z) in log.iter_mut().zip(logits) {
        *log = z - logits[best] - log_total;
    }
    best
}

/// The class that a row of logits predicts: [`NO_CLASS`] where one of them is NaN or infinite.
pub fn prediction(logits: &[f32]) -> u32 {
    match logits.iter().all(|z| z.is_finite()) {
        true => argmax(logits.iter().copied()) as u32,
        false => NO_CLASS,
    }
}

/// Position of the largest value, the first among equals.
pub fn argmax(values: impl Iterator<Item = f32>) -> usize {
    let (mut best, mut top) = (0, f32::NEG_INFINITY);
    for (position, value) in values.enumerate() {
        if value > top {
            (best, top) = (position, value);
        }
    }
    best
}

/// The value of a class; NaN where the label is no class, so that a bad label shows.
pub fn at_class(values: &[f32], label: u32) -> f32 {
    values.get(label as usize).copied().unwrap_or(f32::NAN)
}

/// 1 where `class` is the label, else 0.
pub fn one_hot(class: usize, label: u32) -> f32 {
    if class == label as usize { 1.0 } else { 0.0 }
}

/// Cost of a loss: `operations` on each logit, `tensors` of the logits' shape and `words` a sample.
pub fn by_logit(batch: u32, classes: u32, operations: usize, tensors: usize, words: usize) -> Cost {
    let (batch, classes) = (batch as usize, classes as usize);
    Cost::new(operations * batch * classes, tensors * batch * classes * F32 + words * batch * U32)
}

/// Launches a kernel that gives each sample a warp, and a block four of them.
pub fn by_sample<P: bytemuck::Pod>(
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
