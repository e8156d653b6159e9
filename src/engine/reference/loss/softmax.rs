//! Log softmax and prediction of a row of logits; every loss starts with them.

use crate::engine::NO_CLASS;

/// Writes log softmax of `logits`; returns the class with the largest one, the lowest index among equals.
///
/// Log probabilities of finite logits are finite, however far these lie apart.
pub fn log_softmax(logits: &[f32], log: &mut [f32]) -> usize {
    let best = argmax(logits.iter().copied());
    // The largest exponential is one: left out of the sum and added by ln_1p, the digits of the others survive.
    let others = logits.iter().enumerate().filter(|&(c, _)| c != best);
    let log_total = others.map(|(_, z)| (z - logits[best]).exp()).sum::<f32>().ln_1p();
    for (log, z) in log.iter_mut().zip(logits) {
        *log = z - logits[best] - log_total;
    }
    best
}

/// The class that a row of logits predicts: [`NO_CLASS`] where one of them is NaN or infinite.
pub fn prediction(logits: &[f32]) -> u32 {
    match logits.iter().all(|z| z.is_finite()) {
        true => argmax(logits.iter().copied()) as u32,
        false => NO_CLASS,
    }
}

/// Position of the largest value, the first among equals.
pub fn argmax(values: impl Iterator<Item = f32>) -> usize {
    let (mut best, mut top) = (0, f32::NEG_INFINITY);
    for (position, value) in values.enumerate() {
        if value > top {
            (best, top) = (position, value);
        }
    }
    best
}
