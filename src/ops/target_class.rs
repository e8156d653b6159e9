//! The wrong class of a given rank: what targeted attacks aim at.

use std::cmp::Ordering;

use super::softmax::{by_logit, by_sample, prediction};
use super::{NO_CLASS, Op};
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::require;
use crate::engine::{Error, Operands, Result, Tensor};

/// `targets[i]`: the class with the `rank`-th largest logit among the classes that are not the label, the highest index first
/// among equals, as where the published codes of APGD and FAB sort in ascending order; [`NO_CLASS`] where a logit is not finite.
#[derive(Clone, Copy, Debug)]
pub struct TargetClass<'a> {
    /// 1 (the largest) to classes - 1.
    pub rank: usize,
    /// `batch x classes`.
    pub logits: &'a Tensor<f32>,
    pub labels: &'a Tensor<u32>,
    pub targets: &'a Tensor<u32>,
}

impl Op for TargetClass<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let (classes, batch) = (operands.classes(), self.labels.len());
        if !(1..classes).contains(&self.rank) {
            return Err(Error::Invalid(format!(
                "wrong class of rank {}, expected 1 to {}: the network has {classes} classes",
                self.rank,
                classes.saturating_sub(1)
            )));
        }
        operands.reads(self.labels, batch)?;
        operands.reads(self.logits, batch * classes)?;
        operands.writes(self.targets, batch)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (logits, labels) = (cpu.input(self.logits)?, cpu.input(self.labels)?);
        let mut targets = cpu.output(self.targets)?;
        for ((target, z), &label) in targets.iter_mut().zip(logits.chunks_exact(cpu.classes())).zip(&*labels)
        {
            let mut wrong: Vec<usize> = (0..z.len()).rev().filter(|&c| c != label as usize).collect();
            // A stable sort: the highest index stays first among equals.
            wrong.sort_by(|&a, &b| z[b].partial_cmp(&z[a]).unwrap_or(Ordering::Equal));
            *target = if prediction(z) == NO_CLASS { NO_CLASS } else { wrong[self.rank - 1] as u32 };
        }
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let params = TargetClassParams {
            logits: cuda.address(self.logits)?,
            labels: cuda.address(self.labels)?,
            targets: cuda.address(self.targets)?,
            batch: self.labels.len() as u32,
            classes: cuda.classes() as u32,
            rank: self.rank as u32,
            padding: 0,
        };
        target_class(cuda.driver(), &params)
    }
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct TargetClassParams {
    /// f32, batch x classes.
    pub logits: Address,
    /// u32, batch.
    pub labels: Address,
    /// u32, batch.
    pub targets: Address,
    pub batch: u32,
    /// 2 to 128.
    pub classes: u32,
    /// 1 to classes - 1.
    pub rank: u32,
    pub padding: u32,
}

/// The wrong class of each sample whose logit is the `rank`-th largest of the wrong ones.
pub fn target_class(driver: &dyn Driver, params: &TargetClassParams) -> Result<()> {
    let name = "target_class";
    require((1..params.classes).contains(&params.rank), name, "rank: 1 to classes - 1", params.rank)?;
    let cost = by_logit(params.batch, params.classes, 0, 1, 2);
    by_sample(driver, name, params.batch, params.classes, params, cost)
}
