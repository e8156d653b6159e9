//! Losses on differences of logits, which attacks of an evaluation ascend: they keep their slope where the softmax saturates.

use std::cmp::Ordering;

use super::margin::best_wrong;
use super::softmax::{at_class, by_logit, by_sample, one_hot, prediction};
use super::{LossOutputs, NO_CLASS, Op};
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::require;
use crate::engine::{Operands, Result, Tensor};

/// Loss, prediction and logit gradient (of that loss, not of a mean) of each sample. A logit that is not finite, or a label or target
/// that is no class, gives a loss of NaN.
#[derive(Clone, Copy, Debug)]
pub struct MarginLoss<'a> {
    pub margin: Margin<'a>,
    /// `batch x classes`.
    pub logits: &'a Tensor<f32>,
    pub labels: &'a Tensor<u32>,
    pub outputs: LossOutputs<'a>,
}

/// The forms of a margin loss, of logits z and label y.
#[derive(Clone, Copy, Debug)]
pub enum Margin<'a> {
    /// `max over c != y of z_c - z_y` (Carlini and Wagner, 2017); the lowest index among equal wrong classes. Needs two
    /// classes.
    BestWrong,
    /// The targeted difference-of-logits ratio (Croce and Hein, 2020) for a class t of each sample:
    /// `-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)`, z_(k) the k-th largest logit. Among equal logits the highest
    /// index ranks first, as where the published code sorts in ascending order. Needs four classes.
    TargetedDlr { targets: &'a Tensor<u32> },
}

impl Margin<'_> {
    pub(super) fn check(&self, operands: &mut Operands, batch: usize) -> Result<()> {
        match self {
            Self::BestWrong => operands.at_least_classes("a margin loss", 2),
            Self::TargetedDlr { targets } => {
                operands.at_least_classes("the targeted DLR loss", 4)?;
                operands.reads(targets, batch)
            }
        }
    }
}

impl Op for MarginLoss<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let batch = self.labels.len();
        self.margin.check(operands, batch)?;
        operands.reads(self.labels, batch)?;
        operands.reads(self.logits, batch * operands.classes())?;
        self.outputs.check(operands, batch)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (logits, labels) = (cpu.input(self.logits)?, cpu.input(self.labels)?);
        let targets = match self.margin {
            Margin::BestWrong => None,
            Margin::TargetedDlr { targets } => Some(cpu.input(targets)?),
        };
        let (classes, logits, labels, targets) =
            (cpu.classes(), &logits[..], &labels[..], targets.as_deref());
        self.outputs.fill(cpu, |sample, gradient| {
            let (logits, label) = (&logits[sample * classes..][..classes], labels[sample]);
            let loss = match targets {
                None => best_wrong_loss(logits, label, gradient),
                Some(targets) => targeted_dlr(logits, label, targets[sample], gradient),
            };
            let prediction = prediction(logits);
            (if prediction == NO_CLASS { f32::NAN } else { loss }, prediction)
        })
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let params = MarginParams {
            logits: cuda.address(self.logits)?,
            labels: cuda.address(self.labels)?,
            targets: match self.margin {
                Margin::BestWrong => Address::NULL,
                Margin::TargetedDlr { targets } => cuda.address(targets)?,
            },
            losses: cuda.address(self.outputs.losses)?,
            predictions: cuda.address(self.outputs.predictions)?,
            logit_gradient: cuda.address(self.outputs.logit_gradient)?,
            batch: self.labels.len() as u32,
            classes: cuda.classes() as u32,
        };
        margin_loss(cuda.driver(), &params)
    }
}

/// `max over wrong z - z_y`; writes the gradient.
fn best_wrong_loss(logits: &[f32], label: u32, gradient: &mut [f32]) -> f32 {
    let wrong = best_wrong(logits, label);
    for (c, slot) in gradient.iter_mut().enumerate() {
        *slot = one_hot(c, wrong as u32) - one_hot(c, label);
    }
    logits[wrong] - at_class(logits, label)
}

/// The targeted DLR loss; writes the gradient.
fn targeted_dlr(logits: &[f32], label: u32, target: u32, gradient: &mut [f32]) -> f32 {
    let ranked = ranking(logits);
    let (first, third, fourth) = (ranked[0], ranked[2], ranked[3]);
    let span = logits[first] - 0.5 * (logits[third] + logits[fourth]) + 1e-12;
    let loss = -(at_class(logits, label) - at_class(logits, target)) / span;
    for (c, slot) in gradient.iter_mut().enumerate() {
        let is = |class: usize| if c == class { 1.0 } else { 0.0 };
        let stretches = is(first) - 0.5 * is(third) - 0.5 * is(fourth);
        *slot = (one_hot(c, target) - one_hot(c, label) - loss * stretches) / span;
    }
    loss
}

/// Classes by falling logit, the highest index first among equals.
fn ranking(logits: &[f32]) -> Vec<usize> {
    let mut classes: Vec<usize> = (0..logits.len()).rev().collect();
    classes.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap_or(Ordering::Equal));
    classes
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
    let (name, expected) = match params.targets {
        Address::NULL => ("margin_loss_best_wrong", 2),
        _ => ("margin_loss_targeted_dlr", 4),
    };
    require(params.classes >= expected, name, "classes: 2 (with targets 4) to 128", params.classes)?;
    // A handful of operations a sample; the rest are comparisons.
    let words = if params.targets == Address::NULL { 3 } else { 4 };
    let cost = by_logit(params.batch, params.classes, 0, 2, words);
    by_sample(driver, name, params.batch, params.classes, params, cost)
}
