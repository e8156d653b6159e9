//! The margin of a row of logits: by what the label wins.

use super::softmax::argmax;

/// The wrong class with the largest logit, the lowest index among equals.
pub fn best_wrong(logits: &[f32], label: u32) -> usize {
    let others = logits.iter().enumerate();
    argmax(others.map(|(c, &z)| if c == label as usize { f32::NEG_INFINITY } else { z }))
}

/// The label's logit less the largest other one, negative exactly where the prediction (the lowest index among equals) is
/// wrong: a tie that the label loses by its index counts as `-f32::MIN_POSITIVE`. -infinity where a logit is NaN or infinite, NaN
/// where the label is no class.
pub fn margin(logits: &[f32], label: u32) -> f32 {
    let Some(&own) = logits.get(label as usize) else { return f32::NAN };
    if !logits.iter().all(|z| z.is_finite()) {
        return f32::NEG_INFINITY;
    }
    if logits.len() == 1 {
        return f32::INFINITY;
    }
    let other = best_wrong(logits, label);
    let margin = own - logits[other];
    if margin > 0.0 || (margin == 0.0 && label as usize <= other) {
        margin
    } else {
        margin.min(-f32::MIN_POSITIVE)
    }
}
