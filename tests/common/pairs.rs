//! Losses of paired logits in f64, written as their formulas stand in the literature: the oracle of kernels and engines.
//!
//! Nothing is shifted or rearranged for small numbers here but softmax itself: f64 has digits to spare.

use secateur::ops::PairedForm;

use super::{Bound, assert_close};

/// Log probabilities of one row.
pub fn log_softmax(z: &[f64]) -> Vec<f64> {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_total = z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
    z.iter().map(|z| z - top - log_total).collect()
}

/// The first class among those with the largest logit, `without` left out.
pub fn argmax(z: &[f64], without: Option<usize>) -> usize {
    let classes = (0..z.len()).filter(|c| Some(*c) != without);
    classes.reduce(|best, c| if z[c] > z[best] { c } else { best }).unwrap()
}

fn exp(log: &[f64]) -> Vec<f64> {
    log.iter().map(|l| l.exp()).collect()
}

fn one_hot(c: usize, label: usize) -> f64 {
    if c == label { 1.0 } else { 0.0 }
}

/// The smoothed label.
fn target(smoothing: f32, classes: usize, y: usize) -> Vec<f64> {
    let smoothing = f64::from(smoothing);
    (0..classes).map(|c| (1.0 - smoothing) * one_hot(c, y) + smoothing / classes as f64).collect()
}

/// KL(p||q).
pub fn divergence(target: &[f64], z: &[f64]) -> f64 {
    let (log_p, log_q) = (log_softmax(target), log_softmax(z));
    log_p.iter().zip(&log_q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// Its gradient with respect to `z`.
pub fn divergence_gradient(target: &[f64], z: &[f64]) -> Vec<f64> {
    exp(&log_softmax(z)).iter().zip(exp(&log_softmax(target))).map(|(q, p)| q - p).collect()
}

/// The loss of a clean row `z` and an adversarial row `moved`.
pub fn paired_loss(form: PairedForm, b: f64, z: &[f64], moved: &[f64], y: usize) -> f64 {
    let (log_p, log_q) = (log_softmax(z), log_softmax(moved));
    match form {
        PairedForm::Trades { smoothing } => {
            let t = target(smoothing, z.len(), y);
            b * divergence(z, moved) - t.iter().zip(&log_p).map(|(t, log_p)| t * log_p).sum::<f64>()
        }
        PairedForm::Mart => {
            let (p, q) = (exp(&log_p), exp(&log_q));
            let wrong = argmax(moved, Some(y));
            let floored: f64 = (0..z.len()).map(|c| p[c] * (log_p[c] - (q[c] + 1e-12).ln())).sum();
            -log_q[y] - (1.0001 - q[wrong] + 1e-12).ln() + b * (1.0000001 - p[y]) * floored
        }
    }
}

/// Its gradients with respect to `z` and to `moved`.
pub fn paired_gradients(
    form: PairedForm,
    b: f64,
    z: &[f64],
    moved: &[f64],
    y: usize,
) -> (Vec<f64>, Vec<f64>) {
    let (log_p, log_q) = (log_softmax(z), log_softmax(moved));
    let (p, q) = (exp(&log_p), exp(&log_q));
    let classes = 0..z.len();
    match form {
        PairedForm::Trades { smoothing } => {
            let (kl, t) = (divergence(z, moved), target(smoothing, z.len(), y));
            classes.map(|c| (p[c] - t[c] + b * p[c] * (log_p[c] - log_q[c] - kl), b * (q[c] - p[c]))).unzip()
        }
        PairedForm::Mart => {
            let log_floored: Vec<f64> = q.iter().map(|q| (q + 1e-12).ln()).collect();
            let kl: f64 = classes.clone().map(|c| p[c] * (log_p[c] - log_floored[c])).sum();
            let r: Vec<f64> = classes.clone().map(|c| p[c] * q[c] / (q[c] + 1e-12)).collect();
            let sum: f64 = r.iter().sum();
            let (k, w) = (argmax(moved, Some(y)), 1.0000001 - p[y]);
            let odds = q[k] / (1.0001 - q[k] + 1e-12);
            classes
                .map(|c| {
                    let clean =
                        w * p[c] * (log_p[c] - log_floored[c] - kl) - kl * p[y] * (one_hot(c, y) - p[c]);
                    let adversarial =
                        q[c] - one_hot(c, y) + odds * (one_hot(c, k) - q[c]) + b * w * (q[c] * sum - r[c]);
                    (b * clean, adversarial)
                })
                .unzip()
        }
    }
}

/// Unbiased standard deviation of softmax(z), negative where the largest logit is not the label's.
pub fn bullet_train_score(z: &[f64], y: usize) -> f64 {
    let p = exp(&log_softmax(z));
    let mean = p.iter().sum::<f64>() / p.len() as f64;
    let variance = p.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / (p.len() - 1) as f64;
    if argmax(z, None) == y { variance.sqrt() } else { -variance.sqrt() }
}

/// Clean and adversarial logits with their labels, row by row.
pub struct Pairs {
    pub classes: usize,
    pub clean: Vec<f32>,
    pub adversarial: Vec<f32>,
    pub labels: Vec<u32>,
    pub weights: Vec<f32>,
}

impl Pairs {
    /// `rows` samples of seven kinds in turn: small logits, large ones, rows that hardly differ, a sure one that was turned,
    /// logits around +-50, ties, and all logits equal. `uniform(low, high)` draws.
    pub fn draw(classes: usize, rows: usize, mut uniform: impl FnMut(f32, f32) -> f32) -> Self {
        let (mut clean, mut adversarial, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..rows {
            let y = (uniform(0.0, classes as f32) as usize).min(classes - 1);
            let mut draw =
                |radius: f32| -> Vec<f32> { (0..classes).map(|_| uniform(-radius, radius)).collect() };
            let (z, moved) = match row % 7 {
                0 => (draw(1.0), draw(1.0)),
                1 => (draw(10.0), draw(10.0)),
                2 => {
                    let z = draw(5.0);
                    let near = z.iter().zip(draw(0.1)).map(|(z, d)| z + d).collect();
                    (z, near)
                }
                3 => {
                    let (mut z, mut moved) = (draw(2.0), draw(2.0));
                    z[y] += 20.0;
                    moved[(y + 1) % classes] += 20.0;
                    (z, moved)
                }
                4 => {
                    let sides = |values: Vec<f32>| values.iter().map(|v| 50.0 * v.signum() + v).collect();
                    (sides(draw(1.0)), sides(draw(1.0)))
                }
                5 => (
                    draw(3.0).iter().map(|v| v.round()).collect(),
                    draw(3.0).iter().map(|v| v.round()).collect(),
                ),
                _ => (vec![0.25; classes], vec![-3.0; classes]),
            };
            clean.extend(z);
            adversarial.extend(moved);
            labels.push(y as u32);
        }
        let weights = (0..rows).map(|_| uniform(0.0, 2.0)).collect();
        Self { classes, clean, adversarial, labels, weights }
    }

    /// Whether the logits of a sample are those of +-50: the log probabilities of both rows differ by a hundred there, and
    /// the error of an f32 gradient is a hundred times as large.
    pub fn extreme(row: usize) -> bool {
        row % 7 == 4
    }

    /// Clean row, adversarial row and label of each sample, in f64.
    pub fn rows(&self) -> impl Iterator<Item = (Vec<f64>, Vec<f64>, usize)> + '_ {
        let wide = |row: &[f32]| row.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let rows =
            self.clean.chunks(self.classes).zip(self.adversarial.chunks(self.classes)).zip(&self.labels);
        rows.map(move |((clean, adversarial), y)| (wide(clean), wide(adversarial), *y as usize))
    }

    /// Prediction of each adversarial row.
    pub fn predictions(&self) -> Vec<u32> {
        self.rows().map(|(_, moved, _)| argmax(&moved, None) as u32).collect()
    }
}

/// Log probabilities near -20 have an error of 1e-6, the factors on them are up to 1.5.
const F32: Bound = Bound { absolute: 3e-6, relative: 2e-6, whole: 1e-6 };
/// Logits of +-50: log probabilities near -100 have an error of 4e-6, and gradients are differences of those.
const EXTREME: Bound = Bound { absolute: 6e-6, relative: 2e-6, whole: 1e-6 };

/// Compares samples with ordinary and with extreme logits apart, each with its own bound.
pub fn check(what: &str, row_len: usize, actual: &[f32], expected: &[f64]) {
    for (extreme, bound) in [(false, F32), (true, EXTREME)] {
        let of_kind = |i: &usize| Pairs::extreme(i / row_len) == extreme;
        let places: Vec<usize> = (0..actual.len()).filter(of_kind).collect();
        let actual: Vec<f32> = places.iter().map(|i| actual[*i]).collect();
        let expected: Vec<f64> = places.iter().map(|i| expected[*i]).collect();
        let what = format!("{what}{}", if extreme { ", extreme logits" } else { "" });
        assert_close(&what, &actual, &expected, bound);
    }
}
