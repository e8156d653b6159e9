//! Losses that compare two rows of logits, and how sure a row is of its label; one sample a call.
//!
//! Formulas and gradients are those of [`PairedForm`], [`SoftmaxLosses::divergence`] and
//! [`SoftmaxLosses::signed_deviation`]. Differences from one are taken through `exp_m1` of a log probability, so that the small
//! constants keep their digits. Checked against PyTorch and finite differences by `tests/paired_losses.rs`.
//!
//! [`SoftmaxLosses::divergence`]: crate::engine::SoftmaxLosses::divergence
//! [`SoftmaxLosses::signed_deviation`]: crate::engine::SoftmaxLosses::signed_deviation

use super::softmax::{argmax, log_softmax, prediction};
use crate::engine::{PairedForm, PairedLoss};

/// KL(p||q) of q = softmax(logits) from p = softmax(target): returns loss and prediction, writes `scale * (q - p)`.
pub fn divergence(scale: f32, target: &[f32], logits: &[f32], gradient: &mut [f32]) -> (f32, u32) {
    let mut log_p = vec![0.0; target.len()];
    log_softmax(target, &mut log_p);
    let log_q = gradient;
    log_softmax(logits, log_q);
    let mut loss = 0.0;
    for (slot, &log_p) in log_q.iter_mut().zip(&log_p) {
        let (p, log_q) = (log_p.exp(), *slot);
        loss += p * (log_p - log_q);
        *slot = scale * (log_q.exp() - p);
    }
    (loss, prediction(logits))
}

/// Returns loss and prediction of the adversarial logits, writes both gradients. `factor` is scale times weight.
pub fn paired_loss(
    loss: &PairedLoss,
    factor: f32,
    (clean, adversarial): (&[f32], &[f32]),
    label: usize,
    (clean_gradient, adversarial_gradient): (&mut [f32], &mut [f32]),
) -> (f32, u32) {
    // Each gradient holds its row's log probabilities first.
    log_softmax(clean, clean_gradient);
    log_softmax(adversarial, adversarial_gradient);
    let value = match loss.form {
        PairedForm::Trades { smoothing } => {
            clean_cross_entropy(loss.divergence, smoothing, label, clean_gradient, adversarial_gradient)
        }
        PairedForm::Mart => {
            boosted_cross_entropy(loss.divergence, label, clean_gradient, adversarial_gradient)
        }
    };
    for slot in clean_gradient.iter_mut().chain(adversarial_gradient) {
        *slot *= factor;
    }
    (value, prediction(adversarial))
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
fn clean_cross_entropy(
    b: f32,
    smoothing: f32,
    label: usize,
    clean: &mut [f32],
    adversarial: &mut [f32],
) -> f32 {
    let (divergence, gradient) = kl(clean, |c| adversarial[c]);
    let (sure, uniform) = (1.0 - smoothing, smoothing / clean.len() as f32);
    let loss = b * divergence - (sure * clean[label] + uniform * clean.iter().sum::<f32>());
    for (c, (clean, adversarial)) in clean.iter_mut().zip(adversarial).enumerate() {
        let (p, q) = (clean.exp(), adversarial.exp());
        *clean = p - (sure * one_hot(c, label) + uniform) + b * gradient[c];
        *adversarial = b * (q - p);
    }
    loss
}

/// Keeps the logarithm of q, and a quotient by it, finite where q underflows; part of the published formula.
const FLOOR: f32 = 1e-12;

/// From log p and log q to the gradients in their place; returns the loss.
fn boosted_cross_entropy(b: f32, label: usize, clean: &mut [f32], adversarial: &mut [f32]) -> f32 {
    // Above exp(-9) the floor is less than half a unit in the last place of q.
    let floored = |log_q: f32| if log_q > -9.0 { log_q } else { (log_q.exp() + FLOOR).ln() };
    let (divergence, gradient) = kl(clean, |c| floored(adversarial[c]));
    let attraction = |log_p: f32, log_q: f32| log_p.exp() * (log_q.exp() / (log_q.exp() + FLOOR));
    let pull: f32 = clean.iter().zip(&*adversarial).map(|(&p, &q)| attraction(p, q)).sum();

    let without_label =
        adversarial.iter().enumerate().map(|(c, &q)| if c == label { f32::NEG_INFINITY } else { q });
    let wrong = argmax(without_label);
    let (p_label, label_gap) = (clean[label].exp(), -clean[label].exp_m1());
    let (q_wrong, wrong_gap) = (adversarial[wrong].exp(), -adversarial[wrong].exp_m1());
    let (doubt, not_wrong) = (1e-7 + label_gap, 1e-4 + wrong_gap);
    let loss = b * doubt * divergence - not_wrong.ln() - adversarial[label];

    for (c, (clean, adversarial)) in clean.iter_mut().zip(adversarial).enumerate() {
        let (log_p, log_q) = (*clean, *adversarial);
        let (p, q) = (log_p.exp(), log_q.exp());
        // e_y - p and e_k - q: the factors before them are large where the gaps are small.
        let to_label = if c == label { label_gap } else { -p };
        let to_wrong = if c == wrong { wrong_gap } else { -q };
        *clean = b * (doubt * gradient[c] - divergence * p_label * to_label);
        *adversarial = q - one_hot(c, label)
            + q_wrong / not_wrong * to_wrong
            + b * doubt * (q * pull - attraction(log_p, log_q));
    }
    loss
}

fn one_hot(class: usize, label: usize) -> f32 {
    if class == label { 1.0 } else { 0.0 }
}

/// Unbiased standard deviation of softmax(logits) over the classes, negative where the largest logit is not the label's.
pub fn signed_deviation(logits: &[f32], label: usize) -> f32 {
    let mut log = vec![0.0; logits.len()];
    log_softmax(logits, &mut log);
    // The mean of a softmax is one over the classes.
    let mean = 1.0 / logits.len() as f32;
    let squares: f32 = log.iter().map(|log_p| (log_p.exp() - mean).powi(2)).sum();
    let deviation = (squares / (logits.len() - 1) as f32).sqrt();
    if prediction(logits) as usize == label { deviation } else { -deviation }
}
