//! The losses of paired logits, the divergence and the confidence score (`kernels/ops/`) against f64 formulas.
//!
//! Samples are of seven kinds (`Pairs::draw`): ordinary ones, logits of +-50, ties, rows that are all equal or hardly differ.

use secateur::cuda::driver::Address;
use secateur::ops::PairedForm;
use secateur::ops::bullet_train_score::{BulletTrainScoreParams, bullet_train_score};
use secateur::ops::divergence::{DivergenceParams, divergence};
use secateur::ops::paired_loss::{PairedLossParams, paired_loss};

use crate::common::pairs::{self, Pairs, check};
use crate::common::{self, Bound, Output, Random, assert_close, input, on_every_driver, words};

const SCALE: f32 = 0.125;
/// Class counts of the data sets, the smallest, the largest and those beside a full warp, with batches that leave warps idle.
const SHAPES: [(usize, usize); 6] = [(10, 21), (100, 14), (2, 7), (33, 7), (128, 7), (10, 1)];

fn draw(classes: usize, rows: usize) -> Pairs {
    let mut random = Random::new((classes * 1000 + rows) as u32);
    Pairs::draw(classes, rows, |low, high| random.uniform(low, high))
}

#[test]
fn the_divergence_and_its_gradient() {
    on_every_driver("divergence", |driver| {
        let mut seen = Vec::new();
        for (classes, batch) in SHAPES {
            let pairs = draw(classes, batch);
            let target = input(driver, "target", &pairs.clean);
            let logits = input(driver, "logits", &pairs.adversarial);
            let losses = Output::new::<f32>(driver, "losses", batch);
            let predictions = Output::new::<u32>(driver, "predictions", batch);
            let gradient = Output::new::<f32>(driver, "gradient", batch * classes);
            let params = DivergenceParams {
                target_logits: target.address(),
                logits: logits.address(),
                losses: losses.address(),
                predictions: predictions.address(),
                logit_gradient: gradient.address(),
                batch: batch as u32,
                classes: classes as u32,
                scale: SCALE,
                padding: 0,
            };
            divergence(&**driver, &params).unwrap();

            let expected: Vec<f64> =
                pairs.rows().map(|(z, moved, _)| pairs::divergence(&z, &moved)).collect();
            let expected_gradient: Vec<f64> =
                pairs.rows().flat_map(|(z, moved, _)| pairs::divergence_gradient(&z, &moved)).collect();
            let expected_gradient: Vec<f64> =
                expected_gradient.iter().map(|g| f64::from(SCALE) * g).collect();
            let (losses, gradient) = (losses.read::<f32>(), gradient.read::<f32>());
            check(&format!("losses, {classes} classes"), 1, &losses, &expected);
            check(&format!("gradient, {classes} classes"), classes, &gradient, &expected_gradient);
            assert_eq!(predictions.read::<u32>(), pairs.predictions(), "{classes} classes");
            seen.extend(words(&losses).into_iter().chain(words(&gradient)));
        }
        seen
    });
}

#[test]
fn paired_losses_and_both_gradients() {
    let trades = |smoothing| PairedForm::Trades { smoothing };
    for (form, b) in [(trades(0.0), 6.0), (trades(0.1), 6.0), (PairedForm::Mart, 5.0)] {
        on_every_driver(&format!("{form:?}"), |driver| {
            let mut seen = Vec::new();
            for (classes, batch) in SHAPES {
                for weighted in [false, true] {
                    let pairs = draw(classes, batch);
                    let clean = input(driver, "clean logits", &pairs.clean);
                    let adversarial = input(driver, "adversarial logits", &pairs.adversarial);
                    let labels = input(driver, "labels", &pairs.labels);
                    let weights = input(driver, "weights", &pairs.weights);
                    let losses = Output::new::<f32>(driver, "losses", batch);
                    let predictions = Output::new::<u32>(driver, "predictions", batch);
                    let clean_gradient = Output::new::<f32>(driver, "clean gradient", batch * classes);
                    let gradient = Output::new::<f32>(driver, "adversarial gradient", batch * classes);
                    let params = PairedLossParams {
                        clean_logits: clean.address(),
                        adversarial_logits: adversarial.address(),
                        labels: labels.address(),
                        weights: if weighted { weights.address() } else { Address::NULL },
                        losses: losses.address(),
                        predictions: predictions.address(),
                        clean_gradient: clean_gradient.address(),
                        adversarial_gradient: gradient.address(),
                        batch: batch as u32,
                        classes: classes as u32,
                        divergence: b,
                        scale: SCALE,
                        smoothing: f32::NAN,
                        padding: 0,
                    };
                    paired_loss(&**driver, form, &params).unwrap();

                    let b = f64::from(b);
                    let expected: Vec<f64> = pairs
                        .rows()
                        .map(|(z, moved, y)| pairs::paired_loss(form, b, &z, &moved, y))
                        .collect();
                    let (mut expected_clean, mut expected_adversarial) = (Vec::new(), Vec::new());
                    for ((z, moved, y), weight) in pairs.rows().zip(&pairs.weights) {
                        let factor = f64::from(SCALE) * if weighted { f64::from(*weight) } else { 1.0 };
                        let (clean, adversarial) = pairs::paired_gradients(form, b, &z, &moved, y);
                        expected_clean.extend(clean.iter().map(|g| factor * g));
                        expected_adversarial.extend(adversarial.iter().map(|g| factor * g));
                    }
                    let what = |name| format!("{form:?}: {name}, {classes} classes, batch {batch}");
                    let (losses, clean) = (losses.read::<f32>(), clean_gradient.read::<f32>());
                    let adversarial = gradient.read::<f32>();
                    check(&what("losses"), 1, &losses, &expected);
                    check(&what("clean gradient"), classes, &clean, &expected_clean);
                    check(&what("adversarial gradient"), classes, &adversarial, &expected_adversarial);
                    assert_eq!(predictions.read::<u32>(), pairs.predictions(), "{}", what("predictions"));
                    seen.extend([words(&losses), words(&clean), words(&adversarial)].concat());
                }
            }
            seen
        });
    }
}

#[test]
fn the_bullet_train_score() {
    on_every_driver("signed deviation", |driver| {
        let mut seen = Vec::new();
        for (classes, batch) in SHAPES {
            let pairs = draw(classes, batch);
            // Every other label is the prediction, so that both signs occur; equal logits are class 0's.
            let labels: Vec<u32> = pairs
                .rows()
                .enumerate()
                .map(|(row, (z, _, y))| if row % 2 == 0 { pairs::argmax(&z, None) as u32 } else { y as u32 })
                .collect();
            let logits = input(driver, "logits", &pairs.clean);
            let labels_of = input(driver, "labels", &labels);
            let scores = Output::new::<f32>(driver, "scores", batch);
            let params = BulletTrainScoreParams {
                logits: logits.address(),
                labels: labels_of.address(),
                scores: scores.address(),
                batch: batch as u32,
                classes: classes as u32,
            };
            bullet_train_score(&**driver, &params).unwrap();
            let expected: Vec<f64> = pairs
                .rows()
                .zip(&labels)
                .map(|((z, _, _), y)| pairs::bullet_train_score(&z, *y as usize))
                .collect();
            let scores = scores.read::<f32>();
            let bound = Bound { absolute: 1e-7, relative: 1e-6, whole: 1e-6 };
            assert_close(&format!("scores, {classes} classes"), &scores, &expected, bound);
            seen.extend(words(&scores));
        }
        seen
    });
}

#[test]
fn a_bad_label_gives_a_loss_that_is_not_a_number() {
    on_every_driver("bad label", |driver| {
        let mut seen = Vec::new();
        for form in [PairedForm::Trades { smoothing: 0.1 }, PairedForm::Mart] {
            let logits = input(driver, "logits", &[0.5f32, 1.5, -0.5]);
            let labels = input(driver, "labels", &[u32::MAX]);
            let losses = Output::holding(driver, "losses", &[0.0f32]);
            let predictions = Output::new::<u32>(driver, "predictions", 1);
            let gradients =
                [Output::new::<f32>(driver, "clean", 3), Output::new::<f32>(driver, "adversarial", 3)];
            let params = PairedLossParams {
                clean_logits: logits.address(),
                adversarial_logits: logits.address(),
                labels: labels.address(),
                weights: Address::NULL,
                losses: losses.address(),
                predictions: predictions.address(),
                clean_gradient: gradients[0].address(),
                adversarial_gradient: gradients[1].address(),
                batch: 1,
                classes: 3,
                divergence: 1.0,
                scale: 1.0,
                smoothing: f32::NAN,
                padding: 0,
            };
            paired_loss(&**driver, form, &params).unwrap();
            assert!(losses.read::<f32>()[0].is_nan(), "{form:?}");
            seen.extend(predictions.read::<u32>());
        }
        seen
    });
}

#[test]
fn class_counts_without_a_kernel_are_refused() {
    let (_, driver) = common::drivers().swap_remove(0);
    let mut params: PairedLossParams = bytemuck::Zeroable::zeroed();
    for classes in [0, 1, 129] {
        (params.batch, params.classes) = (1, classes);
        let error = paired_loss(&*driver, PairedForm::Mart, &params).unwrap_err().to_string();
        assert!(error.contains("mart_loss") && error.contains(&classes.to_string()), "{error}");
    }
}
