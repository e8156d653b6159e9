//! Cross-entropy against an f64 oracle and against finite differences of it, for 10 and 100 classes.

use secateur::cuda::driver::Address;
use secateur::ops::NO_CLASS;
use secateur::ops::cross_entropy::*;

use crate::common::*;

/// Loss of one row of logits.
fn loss(logits: &[f64], label: usize, smoothing: f64) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = logits.iter().map(|z| (z - largest).exp()).sum::<f64>().ln() + largest;
    let share = smoothing / logits.len() as f64;
    let target = |c: usize| share + if c == label { 1.0 - smoothing } else { 0.0 };
    logits.iter().enumerate().map(|(c, z)| -target(c) * (z - log_sum)).sum()
}

struct Case {
    batch: usize,
    classes: usize,
    smoothing: f32,
    weighted: bool,
    /// Deviation of the logits.
    size: f32,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for classes in [10, 100] {
        for batch in [1, 5, 64] {
            for (smoothing, weighted, size) in [(0.0, false, 2.0), (0.4, true, 2.0), (0.1, false, 200.0)] {
                cases.push(Case { batch, classes, smoothing, weighted, size });
            }
        }
    }
    cases
}

#[test]
fn losses_predictions_and_gradients() {
    for Case { batch, classes, smoothing, weighted, size } in cases() {
        let mut random = Random::new(1);
        let mut logits = random.normals(batch * classes, size);
        // Equal largest logits: the lowest class wins.
        let tie = 10.0 * size;
        (logits[3], logits[classes - 1]) = (tie, tie);
        let labels: Vec<u32> = (0..batch).map(|_| random.word() % classes as u32).collect();
        let weights = random.uniforms(batch, 0.0, 2.0);
        let scale = 1.0 / batch as f32;
        let name = format!("cross-entropy {batch} x {classes}, smoothing {smoothing}, logits of size {size}");
        on_every_driver(&name, |driver| {
            let (logits_at, labels_at) = (input(driver, "logits", &logits), input(driver, "labels", &labels));
            let weights_at = input(driver, "weights", &weights);
            let losses = Output::new::<f32>(driver, "losses", batch);
            let predictions = Output::new::<u32>(driver, "predictions", batch);
            let gradient = Output::new::<f32>(driver, "logit gradient", batch * classes);
            let params = CrossEntropyParams {
                logits: logits_at.address(),
                labels: labels_at.address(),
                weights: if weighted { weights_at.address() } else { Address::NULL },
                losses: losses.address(),
                predictions: predictions.address(),
                logit_gradient: gradient.address(),
                batch: batch as u32,
                classes: classes as u32,
                smoothing,
                scale,
            };
            cross_entropy(&**driver, &params).unwrap();

            let (losses, predictions) = (losses.read::<f32>(), predictions.read::<u32>());
            let gradient = gradient.read::<f32>();
            let (mut expected_losses, mut expected_gradient) = (Vec::new(), Vec::new());
            for sample in 0..batch {
                let row: Vec<f64> =
                    logits[sample * classes..][..classes].iter().map(|z| f64::from(*z)).collect();
                let of = |row: &[f64]| loss(row, labels[sample] as usize, f64::from(smoothing));
                expected_losses.push(of(&row));
                let factor = f64::from(scale) * if weighted { f64::from(weights[sample]) } else { 1.0 };
                for c in 0..classes {
                    // Central differences of the oracle: the formula of the gradient is not taken on trust.
                    let step = 1e-4;
                    let moved = |by: f64| {
                        let mut row = row.clone();
                        row[c] += by;
                        of(&row)
                    };
                    expected_gradient.push(factor * (moved(step) - moved(-step)) / (2.0 * step));
                }
                let best = (0..classes).rev().max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
                assert_eq!(predictions[sample] as usize, best, "prediction of sample {sample}, seed {SEED}");
            }
            assert_eq!(predictions[0], 3, "the tie");
            let loss_bound = Bound { absolute: 1e-6 * f64::from(size.max(4.0)), relative: 1e-6, whole: 1e-6 };
            assert_close("losses", &losses, &expected_losses, loss_bound);
            // The logits are f32 numbers up to `size`: a difference of two carries no more than its own rounding.
            let bound = Bound { absolute: 3e-7, relative: 1e-5 * f64::from(size), whole: 1e-5 };
            assert_close("logit gradient", &gradient, &expected_gradient, bound);
            [words(&losses), words(&predictions), words(&gradient)].concat()
        });
    }
}

#[test]
fn broken_inputs_show_in_the_loss() {
    on_every_driver("broken inputs", |driver| {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let logits =
            [[0.0f32, 1.0, nan], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, inf], [2.0, -inf, 1.0]];
        let logits_at = input(driver, "logits", &logits);
        let labels_at = input(driver, "labels", &[0u32, 3, 2, 2, 0]);
        let losses = Output::new::<f32>(driver, "losses", 5);
        let predictions = Output::new::<u32>(driver, "predictions", 5);
        let gradient = Output::new::<f32>(driver, "logit gradient", 15);
        let params = CrossEntropyParams {
            logits: logits_at.address(),
            labels: labels_at.address(),
            weights: Address::NULL,
            losses: losses.address(),
            predictions: predictions.address(),
            logit_gradient: gradient.address(),
            batch: 5,
            classes: 3,
            smoothing: 0.0,
            scale: 1.0,
        };
        cross_entropy(&**driver, &params).unwrap();
        let (losses, predictions) = (losses.read::<f32>(), predictions.read::<u32>());
        assert!(losses[0].is_nan(), "a NaN logit: {losses:?}");
        assert!(losses[1].is_nan(), "a label that is no class: {losses:?}");
        assert!(losses[2].is_finite(), "{losses:?}");
        // A logit that is NaN or infinite predicts nothing: no label is right.
        assert_eq!(predictions, [NO_CLASS, 2, 2, NO_CLASS, NO_CLASS]);
        predictions
    });
}
