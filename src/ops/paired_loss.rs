//! The losses of TRADES and MART, of the logits of two inputs at once: the clean image and the adversarial one made from it.

use rayon::prelude::*;

use super::Op;
use super::margin::best_wrong;
use super::softmax::{argmax, at_class, by_logit, by_sample, log_softmax, one_hot, prediction};
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::require;
use crate::engine::{Operands, Result, Tensor};

/// With z the clean and z' the adversarial logits, p = softmax(z), q = softmax(z'), y the label and
/// KL(p||q) = sum p (log p - log q); gradients flow through both arguments.
#[derive(Clone, Copy, Debug)]
pub struct PairedLoss<'a> {
    pub form: PairedForm,
    /// The factor `b` on the divergence.
    pub divergence: f32,
    /// Factor on both logit gradients, not on the losses: `1 / batch` for a mean.
    pub scale: f32,
    /// `batch x classes`.
    pub clean_logits: &'a Tensor<f32>,
    /// `batch x classes`.
    pub adversarial_logits: &'a Tensor<f32>,
    pub labels: &'a Tensor<u32>,
    /// Factor of each sample on its logit gradients.
    pub weights: Option<&'a Tensor<f32>>,
    pub outputs: PairedLossOutputs<'a>,
}

/// The forms of a [`PairedLoss`]; `b` is its factor on the divergence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PairedForm {
    /// TRADES (Zhang et al., 2019): `- sum t log p + b KL(p||q)`, the target t = (1 - smoothing) e_y + smoothing / classes.
    ///
    /// `dL/dz = (p - t) + b p (log p - log q - KL)`, `dL/dz' = b (q - p)`.
    Trades { smoothing: f32 },
    /// MART (Wang et al., 2020), the divergence weighted by the doubt about the clean image:
    /// `- log q_y - log(1.0001 - q_k + 1e-12) + b w KL(p || q + 1e-12)`, k the wrong class with the largest q (the
    /// lowest index among equals) and w = 1.0000001 - p_y. The loss is defined by one true class.
    ///
    /// With r = p q / (q + 1e-12): `dL/dz = b [w p (log p - log(q + 1e-12) - KL) - KL p_y (e_y - p)]`,
    /// `dL/dz' = (q - e_y) + q_k / (1.0001 - q_k + 1e-12) (e_k - q) + b w (q sum(r) - r)`.
    Mart,
}

/// Where a [`PairedLoss`] writes.
#[derive(Clone, Copy, Debug)]
pub struct PairedLossOutputs<'a> {
    /// Loss of each sample, unscaled and unweighted; NaN where its label is no class.
    pub losses: &'a Tensor<f32>,
    /// Class with the largest adversarial logit, the lowest index among equals; [`NO_CLASS`](super::NO_CLASS) where one is not
    /// finite.
    pub predictions: &'a Tensor<u32>,
    /// `batch x classes`: scale * weight * d loss / d clean logits.
    pub clean_gradient: &'a Tensor<f32>,
    /// `batch x classes`: scale * weight * d loss / d adversarial logits.
    pub adversarial_gradient: &'a Tensor<f32>,
}

impl Op for PairedLoss<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        operands.at_least_classes("a paired loss", 2)?;
        let (batch, logits) = (self.labels.len(), self.labels.len() * operands.classes());
        operands.reads(self.labels, batch)?;
        operands.reads(self.clean_logits, logits)?;
        operands.reads(self.adversarial_logits, logits)?;
        self.weights.iter().try_for_each(|weights| operands.reads(weights, batch))?;
        operands.writes(self.outputs.losses, batch)?;
        operands.writes(self.outputs.predictions, batch)?;
        operands.writes(self.outputs.clean_gradient, logits)?;
        operands.writes(self.outputs.adversarial_gradient, logits)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (clean, adversarial) = (cpu.input(self.clean_logits)?, cpu.input(self.adversarial_logits)?);
        let labels = cpu.input(self.labels)?;
        let weights = self.weights.map(|weights| cpu.input(weights)).transpose()?;
        let (mut losses, mut predictions) =
            (cpu.output(self.outputs.losses)?, cpu.output(self.outputs.predictions)?);
        let mut of_clean = cpu.output(self.outputs.clean_gradient)?;
        let mut of_adversarial = cpu.output(self.outputs.adversarial_gradient)?;
        let classes = cpu.classes();
        let (labels, weights) = (&labels[..], weights.as_deref());
        let PairedLoss { form, divergence, scale, .. } = *self;
        let logits = clean.par_chunks_exact(classes).zip(adversarial.par_chunks_exact(classes));
        let gradients =
            of_clean.par_chunks_exact_mut(classes).zip(of_adversarial.par_chunks_exact_mut(classes));
        let results = losses.par_iter_mut().zip(predictions.par_iter_mut());
        logits.zip(gradients).zip(results).enumerate().for_each(
            |(sample, (((clean, adversarial), (of_clean, of_adversarial)), (loss, predicted)))| {
                let factor = scale * weights.map_or(1.0, |weights| weights[sample]);
                *loss = row(form, divergence, [clean, adversarial], labels[sample], of_clean, of_adversarial);
                of_clean.iter_mut().chain(of_adversarial).for_each(|slot| *slot *= factor);
                *predicted = prediction(adversarial);
            },
        );
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let params = PairedLossParams {
            clean_logits: cuda.address(self.clean_logits)?,
            adversarial_logits: cuda.address(self.adversarial_logits)?,
            labels: cuda.address(self.labels)?,
            weights: cuda.optional(self.weights)?,
            losses: cuda.address(self.outputs.losses)?,
            predictions: cuda.address(self.outputs.predictions)?,
            clean_gradient: cuda.address(self.outputs.clean_gradient)?,
            adversarial_gradient: cuda.address(self.outputs.adversarial_gradient)?,
            batch: self.labels.len() as u32,
            classes: cuda.classes() as u32,
            divergence: self.divergence,
            scale: self.scale,
            smoothing: 0.0,
            padding: 0,
        };
        paired_loss(cuda.driver(), self.form, &params)
    }
}

/// The loss of one sample; writes both gradients.
fn row(
    form: PairedForm,
    b: f32,
    [clean, adversarial]: [&[f32]; 2],
    label: u32,
    clean_gradient: &mut [f32],
    adversarial_gradient: &mut [f32],
) -> f32 {
    // Each gradient holds its row's log probabilities first.
    log_softmax(clean, clean_gradient);
    log_softmax(adversarial, adversarial_gradient);
    match form {
        PairedForm::Trades { smoothing } => trades(b, smoothing, label, clean_gradient, adversarial_gradient),
        PairedForm::Mart => mart(b, label, clean_gradient, adversarial_gradient),
    }
}

/// KL(p||q), and its gradient p (log p - log q - KL) with respect to the logits of p.
///
/// `log_q` may be changed a little by the caller (a floor), so the ratios are not those of a softmax. They are counted from
/// that of the class that leads: where p is sure of it, its ratio is all of KL, and the difference of the two would
/// have no digits left.
fn kl(log_p: &[f32], log_q: impl Fn(usize) -> f32) -> (f32, Vec<f32>) {
    let lead = argmax(log_p.iter().copied());
    let lead_ratio = log_p[lead] - log_q(lead);
    let mut gradient: Vec<f32> =
        log_p.iter().enumerate().map(|(c, p)| p.exp() * (p - log_q(c) - lead_ratio)).collect();
    let rest: f32 = gradient.iter().sum();
    for (slot, p) in gradient.iter_mut().zip(log_p) {
        *slot -= p.exp() * rest;
    }
    (lead_ratio + rest, gradient)
}

/// From log p and log q to the gradients in their place; returns the loss.
fn trades(b: f32, smoothing: f32, label: u32, clean: &mut [f32], adversarial: &mut [f32]) -> f32 {
    let (divergence, gradient) = kl(clean, |c| adversarial[c]);
    let (sure, uniform) = (1.0 - smoothing, smoothing / clean.len() as f32);
    let loss = b * divergence - (sure * at_class(clean, label) + uniform * clean.iter().sum::<f32>());
    for (c, (clean, adversarial)) in clean.iter_mut().zip(adversarial).enumerate() {
        let (p, q) = (clean.exp(), adversarial.exp());
        *clean = p - (sure * one_hot(c, label) + uniform) + b * gradient[c];
        *adversarial = b * (q - p);
    }
    loss
}

/// Keeps the logarithm of q, and a quotient by it, finite where q underflows; part of the published formula.
const FLOOR: f32 = 1e-12;

/// From log p and log q to the gradients in their place; returns the loss. Differences from one are taken through `exp_m1` of
/// a log probability, so that the small constants keep their digits.
fn mart(b: f32, label: u32, clean: &mut [f32], adversarial: &mut [f32]) -> f32 {
    // Above exp(-9) the floor is less than half a unit in the last place of q.
    let floored = |log_q: f32| if log_q > -9.0 { log_q } else { (log_q.exp() + FLOOR).ln() };
    let (divergence, gradient) = kl(clean, |c| floored(adversarial[c]));
    let attraction = |log_p: f32, log_q: f32| log_p.exp() * (log_q.exp() / (log_q.exp() + FLOOR));
    let pull: f32 = clean.iter().zip(&*adversarial).map(|(&p, &q)| attraction(p, q)).sum();

    let wrong = best_wrong(adversarial, label);
    let log_p_label = at_class(clean, label);
    let (p_label, label_gap) = (log_p_label.exp(), -log_p_label.exp_m1());
    let (q_wrong, wrong_gap) = (adversarial[wrong].exp(), -adversarial[wrong].exp_m1());
    let (doubt, not_wrong) = (1e-7 + label_gap, 1e-4 + wrong_gap);
    let loss = b * doubt * divergence - not_wrong.ln() - at_class(adversarial, label);

    for (c, (clean, adversarial)) in clean.iter_mut().zip(adversarial).enumerate() {
        let (log_p, log_q) = (*clean, *adversarial);
        let (p, q) = (log_p.exp(), log_q.exp());
        // e_y - p and e_k - q: the factors before them are large where the gaps are small.
        let to_label = if c == label as usize { label_gap } else { -p };
        let to_wrong = if c == wrong { wrong_gap } else { -q };
        *clean = b * (doubt * gradient[c] - divergence * p_label * to_label);
        *adversarial = q - one_hot(c, label)
            + q_wrong / not_wrong * to_wrong
            + b * doubt * (q * pull - attraction(log_p, log_q));
    }
    loss
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct PairedLossParams {
    /// f32, batch x classes.
    pub clean_logits: Address,
    /// f32, batch x classes.
    pub adversarial_logits: Address,
    /// u32, batch.
    pub labels: Address,
    /// f32, batch: factors on the logit gradients; null for none.
    pub weights: Address,
    /// f32, batch.
    pub losses: Address,
    /// u32, batch.
    pub predictions: Address,
    /// f32, batch x classes.
    pub clean_gradient: Address,
    /// f32, batch x classes.
    pub adversarial_gradient: Address,
    pub batch: u32,
    /// 2 to 128.
    pub classes: u32,
    /// Factor on the divergence.
    pub divergence: f32,
    pub scale: f32,
    /// Set by [`paired_loss`] from the form.
    pub smoothing: f32,
    pub padding: u32,
}

/// Loss, prediction and both logit gradients of each sample.
pub fn paired_loss(driver: &dyn Driver, form: PairedForm, params: &PairedLossParams) -> Result<()> {
    let (name, smoothing) = match form {
        PairedForm::Trades { smoothing } => ("trades_loss", smoothing),
        PairedForm::Mart => ("mart_loss", 0.0),
    };
    let params = &PairedLossParams { smoothing, ..*params };
    require(params.classes >= 2, name, "classes: 2 to 128", params.classes)?;
    // The same and a second gradient.
    let words = if params.weights == Address::NULL { 3 } else { 4 };
    let cost = by_logit(params.batch, params.classes, 20, 4, words);
    by_sample(driver, name, params.batch, params.classes, params, cost)
}
