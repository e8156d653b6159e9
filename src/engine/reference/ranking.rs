//! Ranking of per-sample values: the k largest, and all above a threshold.
//!
//! Equal values (as `==`, so 0.0 and -0.0 too) are ranked by position, lowest first. Checked against sorting by
//! `tests/reference_engine.rs`; called by the engine.

use std::cmp::Ordering;

/// Position of the first NaN.
pub fn first_nan(values: &[f32]) -> Option<usize> {
    values.iter().position(|value| value.is_nan())
}

/// Positions of the `k` largest values, ascending; no value is NaN and `k` is at most their number.
pub fn top_k(values: &[f32], k: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    let by_rank = |a: &u32, b: &u32| {
        let (x, y) = (values[*a as usize], values[*b as usize]);
        y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.cmp(b))
    };
    if 0 < k && k < order.len() {
        order.select_nth_unstable_by(k - 1, by_rank);
    }
    order.truncate(k);
    order.sort_unstable();
    order
}

/// Positions of all values `>= threshold`, ascending.
pub fn at_least(values: &[f32], threshold: f32) -> impl Iterator<Item = u32> {
    values.iter().enumerate().filter(move |(_, value)| **value >= threshold).map(|(at, _)| at as u32)
}
