//! Softmax cross-entropy with label smoothing: loss, prediction and logit gradient of each sample.
//!
//! With `t = (1 - smoothing) * one_hot + smoothing / classes` and `p = softmax(z)`: loss `-sum t log p`, gradient
//! `scale * weight * (p - t)`. Checked by finite differences in `tests/reference_engine.rs`; called by the engine.

use super::softmax::{log_softmax, prediction};
use crate::engine::CrossEntropy;

/// One sample: returns loss and prediction, writes the gradient.
pub fn cross_entropy(
    loss: &CrossEntropy,
    weight: f32,
    logits: &[f32],
    label: usize,
    gradient: &mut [f32],
) -> (f32, u32) {
    let uniform = loss.smoothing / logits.len() as f32;
    // The gradient holds log p first.
    log_softmax(logits, gradient);
    let mut value = 0.0;
    for (c, slot) in gradient.iter_mut().enumerate() {
        let (target, log_p) = (uniform + if c == label { 1.0 - loss.smoothing } else { 0.0 }, *slot);
        value -= target * log_p;
        *slot = loss.scale * weight * (log_p.exp() - target);
    }
    (value, prediction(logits))
}
