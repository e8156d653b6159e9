//! Losses on differences of logits, one sample a call, and the ranking of classes behind the targeted one.
//!
//! Formulas are those of [`Margin`](crate::engine::Margin). Checked against PyTorch's autograd by `tests/apgd.rs`; called by the
//! engine.

use std::cmp::Ordering;

use super::softmax::{argmax, prediction};
use crate::engine::NO_CLASS;

/// `max over wrong z - z_y`: returns loss and prediction, writes the gradient.
pub fn best_wrong(logits: &[f32], label: usize, gradient: &mut [f32]) -> (f32, u32) {
    let without_label =
        logits.iter().enumerate().map(|(c, &z)| if c == label { f32::NEG_INFINITY } else { z });
    let wrong = argmax(without_label);
    gradient.fill(0.0);
    gradient[wrong] += 1.0;
    gradient[label] -= 1.0;
    (or_nan(logits, logits[wrong] - logits[label]), prediction(logits))
}

/// The targeted DLR loss: returns loss and prediction, writes the gradient.
pub fn targeted_dlr(logits: &[f32], label: usize, target: usize, gradient: &mut [f32]) -> (f32, u32) {
    let ranked = ranking(logits);
    let (first, third, fourth) = (ranked[0], ranked[2], ranked[3]);
    let span = logits[first] - 0.5 * (logits[third] + logits[fourth]) + 1e-12;
    let loss = -(logits[label] - logits[target]) / span;
    for (c, slot) in gradient.iter_mut().enumerate() {
        let is = |class: usize| if c == class { 1.0 } else { 0.0 };
        let stretches = is(first) - 0.5 * is(third) - 0.5 * is(fourth);
        *slot = (is(target) - is(label) - loss * stretches) / span;
    }
    (or_nan(logits, loss), prediction(logits))
}

/// The wrong class at `rank`, counted from 1; [`NO_CLASS`] where a logit is NaN or infinite.
pub fn wrong_class(rank: usize, logits: &[f32], label: usize) -> u32 {
    if prediction(logits) == NO_CLASS {
        return NO_CLASS;
    }
    let mut wrong = ranking(logits).into_iter().filter(|&class| class != label);
    wrong.nth(rank - 1).map_or(NO_CLASS, |class| class as u32)
}

/// Classes by falling logit, the highest index first among equals.
fn ranking(logits: &[f32]) -> Vec<usize> {
    let mut classes: Vec<usize> = (0..logits.len()).rev().collect();
    classes.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap_or(Ordering::Equal));
    classes
}

fn or_nan(logits: &[f32], loss: f32) -> f32 {
    if prediction(logits) == NO_CLASS { f32::NAN } else { loss }
}
