//! The head of an attack in one kernel: against an f64 oracle, and bit by bit against the three kernels that it stands for, at
//! widths 16, 32 and 64, 10 and 100 classes, for every loss.

use std::rc::Rc;

use half::bf16;
use secateur::cuda::driver::{Address, Driver};
use secateur::cuda::launch::head::*;
use secateur::model::layers::WIDTHS;
use secateur::ops::AscentLoss;
use secateur::ops::cross_entropy::*;
use secateur::ops::divergence::*;
use secateur::ops::margin_loss::*;

use crate::common::*;

/// A batch of heads; `batch` x 16 x `features` activations.
struct Case {
    batch: usize,
    features: usize,
    classes: usize,
    activation: Vec<bf16>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    labels: Vec<u32>,
    target_logits: Vec<f32>,
}

const LOSSES: [AscentLoss; 3] = [AscentLoss::CrossEntropy, AscentLoss::Divergence, AscentLoss::Margin];

impl Case {
    fn new(batch: usize, features: usize, classes: usize) -> Self {
        let mut random = Random::new(1);
        let activation = random.bf16s(batch * 16 * features, 1.0);
        Self {
            batch,
            features,
            classes,
            activation: activation.into_iter().map(|v| v.max(bf16::ZERO)).collect(),
            weight: random.normals(classes * features, 0.1),
            bias: random.normals(classes, 0.5),
            labels: (0..batch).map(|_| random.word() % classes as u32).collect(),
            target_logits: random.normals(batch * classes, 1.0),
        }
    }

    /// The gradient of the last activation in f64.
    fn oracle(&self, ascended: AscentLoss) -> Vec<f64> {
        let Self { features, classes, .. } = *self;
        let image = 16 * features;
        let of_image = |n: usize| {
            let activation: Vec<f64> =
                self.activation[n * image..][..image].iter().map(|v| f64::from(*v)).collect();
            let mean = |f: usize| (0..16).map(|pixel| activation[pixel * features + f]).sum::<f64>() / 16.0;
            let pooled: Vec<f64> = (0..features).map(mean).collect();
            let weight = |c: usize, f: usize| f64::from(self.weight[c * features + f]);
            let logit = |c: usize| {
                (0..features).map(|f| pooled[f] * weight(c, f)).sum::<f64>() + f64::from(self.bias[c])
            };
            let logits: Vec<f64> = (0..classes).map(logit).collect();
            let label = self.labels[n] as usize;
            let one_hot = |c: usize, expected: usize| f64::from(u8::from(c == expected));
            let slope: Vec<f64> = match ascended {
                AscentLoss::CrossEntropy => {
                    let q = softmax(&logits);
                    (0..classes).map(|c| q[c] - one_hot(c, label)).collect()
                }
                AscentLoss::Divergence => {
                    let target = &self.target_logits[n * classes..][..classes];
                    let target: Vec<f64> = target.iter().map(|z| f64::from(*z)).collect();
                    softmax(&logits).iter().zip(softmax(&target)).map(|(q, p)| q - p).collect()
                }
                AscentLoss::Margin => {
                    let wrong = (0..classes).filter(|c| *c != label);
                    let wrong = wrong.max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
                    (0..classes).map(|c| one_hot(c, wrong) - one_hot(c, label)).collect()
                }
            };
            let feature_gradient: Vec<f64> = (0..features)
                .map(|f| (0..classes).map(|c| slope[c] * weight(c, f)).sum::<f64>() / 16.0)
                .collect();
            let masked =
                move |i: usize| if activation[i] > 0.0 { feature_gradient[i % features] } else { 0.0 };
            (0..image).map(masked).collect::<Vec<_>>()
        };
        (0..self.batch).flat_map(of_image).collect()
    }
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|z| (z - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// The gradient by one kernel; `in_place` writes it over the activation.
fn ascent(driver: &Rc<dyn Driver>, case: &Case, ascended: AscentLoss, in_place: bool) -> Vec<bf16> {
    let (weight, bias) = (input(driver, "weight", &case.weight), input(driver, "bias", &case.bias));
    let labels = input(driver, "labels", &case.labels);
    let target_logits = input(driver, "target logits", &case.target_logits);
    let activation = Output::holding(driver, "activation", &case.activation);
    let gradient = Output::new::<bf16>(driver, "gradient", case.activation.len());
    let divergence = ascended == AscentLoss::Divergence;
    let params = HeadAscentParams {
        activation: activation.address(),
        weight: weight.address(),
        bias: bias.address(),
        labels: if divergence { Address::NULL } else { labels.address() },
        target_logits: if divergence { target_logits.address() } else { Address::NULL },
        gradient: if in_place { activation.address() } else { gradient.address() },
        features: case.features as u32,
        classes: case.classes as u32,
    };
    head_ascent(&**driver, ascended, case.batch, &params).unwrap();
    if in_place { activation.read() } else { gradient.read() }
}

/// The gradient by the head's forward pass, the loss and the head's backward pass.
fn composed(driver: &Rc<dyn Driver>, case: &Case, ascended: AscentLoss) -> Vec<bf16> {
    let (batch, features, classes) = (case.batch as u32, case.features as u32, case.classes as u32);
    let (weight, bias) = (input(driver, "weight", &case.weight), input(driver, "bias", &case.bias));
    let labels = input(driver, "labels", &case.labels);
    let target_logits = input(driver, "target logits", &case.target_logits);
    let activation = input(driver, "activation", &case.activation);
    let pooled = Output::new::<f32>(driver, "pooled", case.batch * case.features);
    let room = || Output::new::<f32>(driver, "room", case.batch * case.classes);
    let (logits, slopes, losses, predictions) = (room(), room(), room(), room());
    let params = HeadForwardParams {
        activation: activation.address(),
        weight: weight.address(),
        bias: bias.address(),
        pooled: pooled.address(),
        logits: logits.address(),
        features,
        classes,
    };
    head_forward(&**driver, case.batch, &params).unwrap();
    let (logits, labels) = (logits.address(), labels.address());
    let (losses, predictions, logit_gradient) = (losses.address(), predictions.address(), slopes.address());
    match ascended {
        AscentLoss::CrossEntropy => {
            let (weights, smoothing, scale) = (Address::NULL, 0.0, 1.0);
            let params = CrossEntropyParams {
                logits,
                labels,
                weights,
                losses,
                predictions,
                logit_gradient,
                batch,
                classes,
                smoothing,
                scale,
            };
            cross_entropy(&**driver, &params).unwrap();
        }
        AscentLoss::Divergence => {
            let (target_logits, scale, padding) = (target_logits.address(), 1.0, 0);
            let params = DivergenceParams {
                target_logits,
                logits,
                losses,
                predictions,
                logit_gradient,
                batch,
                classes,
                scale,
                padding,
            };
            divergence(&**driver, &params).unwrap();
        }
        AscentLoss::Margin => {
            let targets = Address::NULL;
            let params =
                MarginParams { logits, labels, targets, losses, predictions, logit_gradient, batch, classes };
            margin_loss(&**driver, &params).unwrap();
        }
    }
    let mut mask = vec![0u8; case.activation.len() / 8];
    for (i, value) in case.activation.iter().enumerate() {
        mask[i / 8] |= u8::from(*value > bf16::ZERO) << (i % 8);
    }
    let mask = input(driver, "mask", &mask);
    let gradient = Output::new::<bf16>(driver, "gradient", case.activation.len());
    let params = HeadBackwardParams {
        logit_gradient,
        weight: weight.address(),
        mask: mask.address(),
        gradient: gradient.address(),
        features,
        classes,
    };
    head_input_gradient(&**driver, case.batch, &params).unwrap();
    gradient.read()
}

#[test]
fn every_loss_at_every_shape() {
    for width in WIDTHS {
        for classes in [10, 100] {
            let case = Case::new(7, 8 * width, classes);
            for ascended in LOSSES {
                let expected = case.oracle(ascended);
                let name = format!("{ascended:?}, {} features to {classes} classes", case.features);
                on_every_driver(&name, |driver| {
                    let actual = ascent(driver, &case, ascended, false);
                    assert_close(&name, &actual, &expected, ROUNDED_TO_BF16);
                    let zeros = |values: &[bf16]| values.iter().filter(|v| **v == bf16::ZERO).count();
                    assert!(zeros(&actual) > actual.len() / 3, "{name}: the mask shows");
                    assert_eq!(actual, composed(driver, &case, ascended), "{name}: the three kernels");
                    assert_eq!(actual, ascent(driver, &case, ascended, true), "{name}: in place");
                    words(&actual)
                });
            }
        }
    }
}

#[test]
fn one_image_and_the_most_classes() {
    for classes in [2, 128] {
        let case = Case::new(1, 128, classes);
        for ascended in LOSSES {
            let name = format!("{ascended:?}, one image, {classes} classes");
            on_every_driver(&name, |driver| {
                let actual = ascent(driver, &case, ascended, false);
                assert_close(&name, &actual, &case.oracle(ascended), ROUNDED_TO_BF16);
                words(&actual)
            });
        }
    }
}

#[test]
fn what_is_broken_shows() {
    on_every_driver("broken activations", |driver| {
        let mut case = Case::new(2, 128, 10);
        case.activation[5] = bf16::NAN;
        let actual = ascent(driver, &case, AscentLoss::CrossEntropy, false);
        let (first, second) = actual.split_at(16 * 128);
        // A NaN passes its own mask and reaches every logit of its image, and no other image.
        assert!(first[5].is_nan() && second.iter().all(|v| v.is_finite()));
        let passed = |(a, v): (&bf16, &bf16)| v.is_nan() == (a.is_nan() || *a > bf16::ZERO);
        assert!(case.activation.iter().zip(first).all(passed));
        vec![0]
    });
    for (_, driver) in drivers() {
        let params = HeadAscentParams {
            activation: Address::NULL,
            weight: Address::NULL,
            bias: Address::NULL,
            labels: Address::NULL,
            target_logits: Address::NULL,
            gradient: Address::NULL,
            features: 513,
            classes: 10,
        };
        let refused = |ascended, params| head_ascent(&*driver, ascended, 1, &params).unwrap_err().to_string();
        assert!(refused(AscentLoss::Margin, params).contains("actual 513"));
        let params = HeadAscentParams { features: 512, classes: 1, ..params };
        assert!(refused(AscentLoss::Margin, params).contains("actual 1"));
        let params = HeadAscentParams { classes: 129, ..params };
        assert!(refused(AscentLoss::CrossEntropy, params).contains("actual 129"));
    }
}
