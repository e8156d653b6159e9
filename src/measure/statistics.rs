//! Robust statistics of timings: one slow sample among many changes none of them much.

use crate::philox::{Key, Purpose};

/// Quartile range of a normal distribution over its standard deviation.
const QUARTILE_RANGE: f64 = 1.349;
/// Standard error of the median of a normal distribution over that of the mean, sqrt(pi / 2).
const MEDIAN_ERROR: f64 = 1.2533;

/// What samples say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub median: f64,
    pub quartiles: [f64; 2],
    /// Quartile range over 1.349, the standard deviation where the distribution is normal, as a share of the median.
    pub noise: f64,
    /// Standard error of the median as a share of it: 1.2533 noise / sqrt(samples).
    pub error: f64,
}

/// The quantile `q` of sorted values, linear between neighbours.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, share) = (at as usize, at.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + share * (sorted[high] - sorted[low])
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The summary of positive values; `None` of none.
pub fn summary(values: &[f64]) -> Option<Summary> {
    if values.is_empty() {
        return None;
    }
    let sorted = sorted(values);
    let [first, median, third] = [0.25, 0.5, 0.75].map(|q| quantile(&sorted, q));
    let noise = (third - first) / QUARTILE_RANGE / median;
    let error = MEDIAN_ERROR * noise / (values.len() as f64).sqrt();
    Some(Summary { median, quartiles: [first, third], noise, error })
}

/// The 99 % interval of median(b) / median(a) by the percentile bootstrap (Efron and Tibshirani, 1993, chapter 13): both sets
/// are drawn anew 4,000 times, with replacement, by Philox, so that the same samples give the same interval. It takes the
/// samples for independent, which those of a machine whose load drifts are not.
pub fn ratio_interval(a: &[f64], b: &[f64]) -> [f64; 2] {
    const DRAWS: u32 = 4_000;
    let median_of_draw = |values: &[f64], stream: u32, draw: u32| {
        let key = Key { seed: 0, purpose: Purpose::Generation, epoch: stream, step: 0 };
        let words = (0..values.len().div_ceil(4)).flat_map(|block| key.block(draw, block as u32));
        let drawn: Vec<f64> = words
            .take(values.len())
            .map(|word| values[((u64::from(word) * values.len() as u64) >> 32) as usize])
            .collect();
        quantile(&sorted(&drawn), 0.5)
    };
    let ratios: Vec<f64> =
        (0..DRAWS).map(|draw| median_of_draw(b, 1, draw) / median_of_draw(a, 0, draw)).collect();
    let ratios = sorted(&ratios);
    [quantile(&ratios, 0.005), quantile(&ratios, 0.995)]
}

/// Values below which [`middle`] has no interval.
pub const LEAST_FOR_MIDDLE: usize = 8;

/// What lies in the middle of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Middle {
    /// Median of the means of all pairs of values, each with itself as well (Hodges and Lehmann, 1963).
    pub estimate: f64,
    /// Holds the centre that the values are spread about with a probability of 99 % at least.
    pub interval: Option<[f64; 2]>,
}

/// The middle of values spread evenly about a centre, whatever their distribution; `None` of none. The interval is that of
/// Wilcoxon's signed-rank statistic, from its exact distribution: n (n + 1) / 2 means are sorted.
pub fn middle(values: &[f64]) -> Option<Middle> {
    let pairs = values.iter().enumerate().flat_map(|(i, a)| values[i..].iter().map(move |b| (a + b) / 2.0));
    let means = sorted(&pairs.collect::<Vec<f64>>());
    let last = means.len().checked_sub(1)?;
    let interval = signed_rank_quantile(values.len(), 0.005).map(|at| [means[at], means[last - at]]);
    Some(Middle { estimate: quantile(&means, 0.5), interval })
}

/// The largest k for which the signed-rank statistic of `n` values, the sum of the ranks 1 to n each with probability 1/2, is at
/// most k with a probability of at most `share`.
fn signed_rank_quantile(n: usize, share: f64) -> Option<usize> {
    let mut probability = vec![0.0; n * (n + 1) / 2 + 1];
    probability[0] = 1.0;
    for rank in 1..=n {
        for sum in (0..probability.len()).rev() {
            let without = if sum >= rank { probability[sum - rank] } else { 0.0 };
            probability[sum] = (probability[sum] + without) / 2.0;
        }
    }
    let below = probability.iter().scan(0.0, |sum, probability| {
        *sum += probability;
        Some(*sum)
    });
    below.take_while(|&below| below <= share).count().checked_sub(1)
}
