//! How sure a sample is of the right class: the score by which BulletTrain (Hua et al., 2021) sorts a batch.

use rayon::prelude::*;

use super::Op;
use super::softmax::{by_logit, by_sample, log_softmax, prediction};
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::require;
use crate::engine::{Operands, Result, Tensor};

/// The standard deviation of softmax(logits) over the classes (unbiased, so two classes at least), with the sign +
/// where the largest logit (the lowest index among equals) is the label's and - elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct BulletTrainScore<'a> {
    /// `batch x classes`.
    pub logits: &'a Tensor<f32>,
    pub labels: &'a Tensor<u32>,
    pub scores: &'a Tensor<f32>,
}

impl Op for BulletTrainScore<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        operands.at_least_classes("a deviation over the classes", 2)?;
        let batch = self.labels.len();
        operands.reads(self.labels, batch)?;
        operands.reads(self.logits, batch * operands.classes())?;
        operands.writes(self.scores, batch)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (logits, labels) = (cpu.input(self.logits)?, cpu.input(self.labels)?);
        let (classes, labels) = (cpu.classes(), &labels[..]);
        let mut scores = cpu.output(self.scores)?;
        // The mean of a softmax is one over the classes.
        let mean = 1.0 / classes as f32;
        scores.par_iter_mut().zip(logits.par_chunks_exact(classes)).enumerate().for_each(
            |(sample, (score, logits))| {
                let mut log = vec![0.0; classes];
                log_softmax(logits, &mut log);
                let squares: f32 = log.iter().map(|log_p| (log_p.exp() - mean).powi(2)).sum();
                let deviation = (squares / (classes - 1) as f32).sqrt();
                *score = if prediction(logits) == labels[sample] { deviation } else { -deviation };
            },
        );
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let params = BulletTrainScoreParams {
            logits: cuda.address(self.logits)?,
            labels: cuda.address(self.labels)?,
            scores: cuda.address(self.scores)?,
            batch: self.labels.len() as u32,
            classes: cuda.classes() as u32,
        };
        bullet_train_score(cuda.driver(), &params)
    }
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BulletTrainScoreParams {
    /// f32, batch x classes.
    pub logits: Address,
    /// u32, batch.
    pub labels: Address,
    /// f32, batch.
    pub scores: Address,
    pub batch: u32,
    /// 2 to 128.
    pub classes: u32,
}

/// Standard deviation of each sample's softmax, negative where the prediction is wrong.
pub fn bullet_train_score(driver: &dyn Driver, params: &BulletTrainScoreParams) -> Result<()> {
    let name = "bullet_train_score";
    require(params.classes >= 2, name, "classes: 2 to 128", params.classes)?;
    // Softmax, and the squares of what it differs from its mean.
    let cost = by_logit(params.batch, params.classes, 7, 1, 2);
    by_sample(driver, name, params.batch, params.classes, params, cost)
}
