//! Margin losses and the ranking of wrong classes against an f64 oracle and finite differences of it.

use secateur::cuda::driver::Address;
use secateur::ops::NO_CLASS;
use secateur::ops::margin_loss::*;
use secateur::ops::target_class::*;

use crate::common::*;

/// Classes by falling logit, the highest index first among equals.
fn ranking(row: &[f64]) -> Vec<usize> {
    let mut classes: Vec<usize> = (0..row.len()).collect();
    classes.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(b.cmp(&a)));
    classes
}

fn best_wrong(row: &[f64], label: usize) -> f64 {
    let wrong = row.iter().enumerate().filter(|(c, _)| *c != label).map(|(_, z)| *z);
    wrong.fold(f64::NEG_INFINITY, f64::max) - row[label]
}

fn targeted_dlr(row: &[f64], label: usize, target: usize) -> f64 {
    let ranked = ranking(row);
    let span = row[ranked[0]] - 0.5 * (row[ranked[2]] + row[ranked[3]]) + 1e-12;
    -(row[label] - row[target]) / span
}

#[test]
fn losses_predictions_gradients_and_ranks() {
    for (classes, batch, size) in [(4, 5, 2.0), (10, 64, 2.0), (10, 1, 200.0), (100, 7, 5.0), (128, 3, 5.0)] {
        let mut random = Random::new(1);
        let logits = random.normals(batch * classes, size);
        let labels: Vec<u32> = (0..batch).map(|_| random.word() % classes as u32).collect();
        let targets: Vec<u32> = labels
            .iter()
            .map(|label| (label + 1 + random.word() % (classes as u32 - 1)) % classes as u32)
            .collect();
        let rows: Vec<Vec<f64>> =
            logits.chunks_exact(classes).map(|row| row.iter().map(|z| f64::from(*z)).collect()).collect();
        let ranks = [1, 2, classes - 1];
        on_every_driver(&format!("margins {batch} x {classes}, logits of size {size}"), |driver| {
            let (logits_at, labels_at) = (input(driver, "logits", &logits), input(driver, "labels", &labels));
            let targets_at = input(driver, "targets", &targets);
            let mut bits = Vec::new();
            for targeted in [false, true] {
                let losses = Output::new::<f32>(driver, "losses", batch);
                let predictions = Output::new::<u32>(driver, "predictions", batch);
                let gradient = Output::new::<f32>(driver, "logit gradient", batch * classes);
                let params = MarginParams {
                    logits: logits_at.address(),
                    labels: labels_at.address(),
                    targets: if targeted { targets_at.address() } else { Address::NULL },
                    losses: losses.address(),
                    predictions: predictions.address(),
                    logit_gradient: gradient.address(),
                    batch: batch as u32,
                    classes: classes as u32,
                };
                margin_loss(&**driver, &params).unwrap();
                let (losses, predictions) = (losses.read::<f32>(), predictions.read::<u32>());
                let gradient = gradient.read::<f32>();
                let (mut expected, mut expected_gradient) = (Vec::new(), Vec::new());
                for (n, row) in rows.iter().enumerate() {
                    let of = |row: &[f64]| match targeted {
                        false => best_wrong(row, labels[n] as usize),
                        true => targeted_dlr(row, labels[n] as usize, targets[n] as usize),
                    };
                    expected.push(of(row));
                    for c in 0..classes {
                        let step = 1e-6 * f64::from(size);
                        let moved = |by: f64| {
                            let mut row = row.clone();
                            row[c] += by;
                            of(&row)
                        };
                        expected_gradient.push((moved(step) - moved(-step)) / (2.0 * step));
                    }
                    assert_eq!(predictions[n] as usize, ranking(row)[0], "prediction {n}, seed {SEED}");
                }
                let bound = Bound { absolute: 1e-6 * f64::from(size), relative: 2e-5, whole: 1e-5 };
                assert_close("losses", &losses, &expected, bound);
                let bound = Bound { absolute: 1e-5, relative: 1e-4, whole: 1e-5 };
                assert_close("logit gradient", &gradient, &expected_gradient, bound);
                bits.extend([words(&losses), words(&predictions), words(&gradient)].concat());
            }
            for rank in ranks {
                let wrong = Output::new::<u32>(driver, "wrong classes", batch);
                let params = TargetClassParams {
                    logits: logits_at.address(),
                    labels: labels_at.address(),
                    targets: wrong.address(),
                    batch: batch as u32,
                    classes: classes as u32,
                    rank: rank as u32,
                    padding: 0,
                };
                target_class(&**driver, &params).unwrap();
                let actual = wrong.read::<u32>();
                for (n, row) in rows.iter().enumerate() {
                    let mut expected = ranking(row).into_iter().filter(|c| *c != labels[n] as usize);
                    assert_eq!(
                        actual[n] as usize,
                        expected.nth(rank - 1).unwrap(),
                        "sample {n}, rank {rank}, seed {SEED}"
                    );
                }
                bits.extend(actual);
            }
            bits
        });
    }
}

#[test]
fn broken_inputs_show() {
    on_every_driver("broken inputs", |driver| {
        // A NaN logit, a label and a target that are no class, a whole row, and infinite logits.
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let whole = [0.0, 1.0, 2.0, 3.0];
        let logits =
            [[0.0f32, 1.0, nan, 2.0], whole, whole, whole, [0.0, inf, 2.0, 3.0], [-inf, 1.0, 2.0, 3.0]];
        let logits_at = input(driver, "logits", &logits);
        let labels_at = input(driver, "labels", &[1u32, 9, 3, 3, 1, 3]);
        let targets_at = input(driver, "targets", &[0u32, 0, u32::MAX, 1, 0, 0]);
        let losses = Output::new::<f32>(driver, "losses", 6);
        let predictions = Output::new::<u32>(driver, "predictions", 6);
        let gradient = Output::new::<f32>(driver, "logit gradient", 24);
        let mut params = MarginParams {
            logits: logits_at.address(),
            labels: labels_at.address(),
            targets: targets_at.address(),
            losses: losses.address(),
            predictions: predictions.address(),
            logit_gradient: gradient.address(),
            batch: 6,
            classes: 4,
        };
        margin_loss(&**driver, &params).unwrap();
        let nans = |values: Vec<f32>| values.iter().map(|value| value.is_nan()).collect::<Vec<_>>();
        assert_eq!(nans(losses.read()), [true, true, true, false, true, true]);
        params.targets = Address::NULL;
        margin_loss(&**driver, &params).unwrap();
        assert_eq!(nans(losses.read()), [true, true, false, false, true, true]);
        assert_eq!(predictions.read::<u32>(), [NO_CLASS, 3, 3, 3, NO_CLASS, NO_CLASS]);
        let wrong = Output::new::<u32>(driver, "wrong classes", 6);
        let of = |rank| TargetClassParams {
            logits: logits_at.address(),
            labels: labels_at.address(),
            targets: wrong.address(),
            batch: 6,
            classes: 4,
            rank,
            padding: 0,
        };
        target_class(&**driver, &of(1)).unwrap();
        assert_eq!(wrong.read::<u32>(), [NO_CLASS, 3, 2, 2, NO_CLASS, NO_CLASS]);
        for rank in [0, 4] {
            assert!(target_class(&**driver, &of(rank)).is_err());
        }
        params.classes = 3;
        params.targets = targets_at.address();
        let error = margin_loss(&**driver, &params).unwrap_err().to_string();
        assert!(error.contains("actual 3"), "{error}");
        wrong.read()
    });
}
