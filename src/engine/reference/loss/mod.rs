//! Losses of a batch: lengths and labels checked, samples in parallel, results written; the mathematics of one sample is in
//! the files beside. Checked by `tests/reference_engine.rs` and `tests/paired_losses.rs`; called by the engine.

mod cross_entropy;
mod margin;
mod paired;
mod softmax;

use rayon::prelude::*;

use super::invalid;
use super::memory::{Heap, expect_len};
use crate::engine::{CrossEntropy, LossOutputs, Margin, PairedLoss, PairedLossOutputs, Result, Tensor};

/// Logits of `classes` classes in the tensors of `heap`.
pub struct Losses<'a> {
    pub heap: &'a Heap,
    pub classes: usize,
}

impl Losses<'_> {
    pub fn cross_entropy(
        &self,
        loss: &CrossEntropy,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        weights: Option<&Tensor<f32>>,
        outputs: LossOutputs,
    ) -> Result<()> {
        let batch = labels.len();
        let (logits, labels) = (self.logits(logits, batch)?, self.labels(labels)?);
        let weights = self.weights(weights, batch)?;
        self.expect_outputs(batch, outputs.losses, outputs.predictions, &[outputs.logit_gradient])?;
        let mut gradient = vec![0.0; logits.len()];
        let results = self.rows_mut(&mut gradient).zip(self.rows(&logits)).zip(&labels).zip(&weights);
        let results = results
            .map(|(((gradient, z), &label), &weight)| {
                cross_entropy::cross_entropy(loss, weight, z, label, gradient)
            })
            .collect();
        self.heap.view_mut(outputs.logit_gradient)?.copy_from_slice(&gradient);
        self.write(results, outputs.losses, outputs.predictions)
    }

    pub fn divergence(
        &self,
        target_logits: &Tensor<f32>,
        logits: &Tensor<f32>,
        scale: f32,
        outputs: LossOutputs,
    ) -> Result<()> {
        let batch = outputs.losses.len();
        let (targets, logits) = (self.logits(target_logits, batch)?, self.logits(logits, batch)?);
        self.expect_outputs(batch, outputs.losses, outputs.predictions, &[outputs.logit_gradient])?;
        let mut gradient = vec![0.0; logits.len()];
        let results = self.rows_mut(&mut gradient).zip(self.rows(&targets)).zip(self.rows(&logits));
        let results = results
            .map(|((gradient, target), logits)| paired::divergence(scale, target, logits, gradient))
            .collect();
        self.heap.view_mut(outputs.logit_gradient)?.copy_from_slice(&gradient);
        self.write(results, outputs.losses, outputs.predictions)
    }

    pub fn paired_loss(
        &self,
        loss: &PairedLoss,
        clean_logits: &Tensor<f32>,
        adversarial_logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        weights: Option<&Tensor<f32>>,
        outputs: PairedLossOutputs,
    ) -> Result<()> {
        self.expect_two_classes("a paired loss")?;
        let batch = labels.len();
        let clean = self.logits(clean_logits, batch)?;
        let adversarial = self.logits(adversarial_logits, batch)?;
        let (labels, weights) = (self.labels(labels)?, self.weights(weights, batch)?);
        let gradients = [outputs.clean_gradient, outputs.adversarial_gradient];
        self.expect_outputs(batch, outputs.losses, outputs.predictions, &gradients)?;
        let (mut of_clean, mut of_adversarial) = (vec![0.0; clean.len()], vec![0.0; clean.len()]);
        let logits = self.rows(&clean).zip(self.rows(&adversarial));
        let slots = self.rows_mut(&mut of_clean).zip(self.rows_mut(&mut of_adversarial));
        let results = logits
            .zip(slots)
            .zip(labels.par_iter().zip(&weights))
            .map(|((logits, slots), (&label, weight))| {
                paired::paired_loss(loss, loss.scale * weight, logits, label, slots)
            })
            .collect();
        self.heap.view_mut(outputs.clean_gradient)?.copy_from_slice(&of_clean);
        self.heap.view_mut(outputs.adversarial_gradient)?.copy_from_slice(&of_adversarial);
        self.write(results, outputs.losses, outputs.predictions)
    }

    pub fn signed_deviation(
        &self,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        scores: &Tensor<f32>,
    ) -> Result<()> {
        self.expect_two_classes("a deviation over the classes")?;
        let logits = self.logits(logits, labels.len())?;
        let labels = self.labels(labels)?;
        expect_len(scores, labels.len())?;
        let values: Vec<f32> =
            self.rows(&logits).zip(&labels).map(|(z, &label)| paired::signed_deviation(z, label)).collect();
        self.heap.view_mut(scores)?.copy_from_slice(&values);
        Ok(())
    }

    pub fn margin_loss(
        &self,
        margin: Margin,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        outputs: LossOutputs,
    ) -> Result<()> {
        margin.check(self.classes)?;
        let (logits, labels) = (self.logits(logits, labels.len())?, self.labels(labels)?);
        let targets = match margin {
            Margin::BestWrong => None,
            Margin::TargetedDlr { targets } => {
                expect_len(targets, labels.len())?;
                Some(self.labels(targets)?)
            }
        };
        self.expect_outputs(labels.len(), outputs.losses, outputs.predictions, &[outputs.logit_gradient])?;
        let mut gradient = vec![0.0; logits.len()];
        let results = self.rows_mut(&mut gradient).zip(self.rows(&logits)).zip(&labels).enumerate();
        let results = results
            .map(|(n, ((gradient, z), &label))| match &targets {
                None => margin::best_wrong(z, label, gradient),
                Some(targets) => margin::targeted_dlr(z, label, targets[n], gradient),
            })
            .collect();
        self.heap.view_mut(outputs.logit_gradient)?.copy_from_slice(&gradient);
        self.write(results, outputs.losses, outputs.predictions)
    }

    pub fn wrong_class(
        &self,
        rank: usize,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        classes: &Tensor<u32>,
    ) -> Result<()> {
        let (logits, labels) = (self.logits(logits, labels.len())?, self.labels(labels)?);
        expect_len(classes, labels.len())?;
        let rows = self.rows(&logits).zip(&labels);
        let found: Vec<u32> = rows.map(|(z, &label)| margin::wrong_class(rank, z, label)).collect();
        self.heap.view_mut(classes)?.copy_from_slice(&found);
        Ok(())
    }

    fn rows<'a>(&self, logits: &'a [f32]) -> impl IndexedParallelIterator<Item = &'a [f32]> + use<'a> {
        logits.par_chunks_exact(self.classes)
    }

    fn rows_mut<'a>(
        &self,
        logits: &'a mut [f32],
    ) -> impl IndexedParallelIterator<Item = &'a mut [f32]> + use<'a> {
        logits.par_chunks_exact_mut(self.classes)
    }

    fn logits(&self, logits: &Tensor<f32>, batch: usize) -> Result<Vec<f32>> {
        expect_len(logits, batch * self.classes)?;
        self.heap.copy(logits)
    }

    fn labels(&self, labels: &Tensor<u32>) -> Result<Vec<usize>> {
        let values = self.heap.copy(labels)?;
        if let Some(at) = values.iter().position(|&label| label as usize >= self.classes) {
            let (name, label, classes) = (labels.name(), values[at], self.classes);
            return invalid(format!("{name}: label {label} at position {at}, expected less than {classes}"));
        }
        Ok(values.into_iter().map(|label| label as usize).collect())
    }

    /// The weights of the samples, 1 where absent.
    fn weights(&self, weights: Option<&Tensor<f32>>, batch: usize) -> Result<Vec<f32>> {
        let Some(weights) = weights else { return Ok(vec![1.0; batch]) };
        expect_len(weights, batch)?;
        self.heap.copy(weights)
    }

    fn expect_outputs(
        &self,
        batch: usize,
        losses: &Tensor<f32>,
        predictions: &Tensor<u32>,
        gradients: &[&Tensor<f32>],
    ) -> Result<()> {
        expect_len(losses, batch)?;
        expect_len(predictions, batch)?;
        gradients.iter().try_for_each(|gradient| expect_len(gradient, batch * self.classes))
    }

    fn expect_two_classes(&self, what: &str) -> Result<()> {
        if self.classes >= 2 {
            return Ok(());
        }
        invalid(format!("{what} needs 2 classes at least, the network has {}", self.classes))
    }

    fn write(&self, results: Vec<(f32, u32)>, losses: &Tensor<f32>, predictions: &Tensor<u32>) -> Result<()> {
        let (loss, prediction): (Vec<f32>, Vec<u32>) = results.into_iter().unzip();
        self.heap.view_mut(losses)?.copy_from_slice(&loss);
        self.heap.view_mut(predictions)?.copy_from_slice(&prediction);
        Ok(())
    }
}
