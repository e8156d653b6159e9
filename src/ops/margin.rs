//! The margin of a row of logits: by what the label wins.

/// The label's logit less the largest other one, negative exactly where the prediction (the lowest index among equals) is
/// wrong: a tie that the label loses by its index counts as `-f32::MIN_POSITIVE`. -infinity where a logit is NaN or infinite, NaN
/// where the label is no class.
pub fn margin(logits: &[f32], label: u32) -> f32 {
    let Some(&own) = logits.get(label as usize) else { return f32::NAN };
    if !logits.iter().all(|z| z.is_finite()) {
        return f32::NEG_INFINITY;
    }
    let largest = |others: &[f32]| others.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (before, after) = (largest(&logits[..label as usize]), largest(&logits[label as usize + 1..]));
    let margin = own - before.max(after);
    if before >= own || after > own { margin.min(-f32::MIN_POSITIVE) } else { margin }
}
