//! The reference engine against PyTorch: logits, input gradients, parameter gradients, statistics, SGD steps.
//!
//! The fixture was computed in f64 by `scripts/make-fixtures.py`, which also says how weights and images are drawn.
//! Every comparison bounds each element and the whole tensor.

use safetensors::SafeTensors;
use secateur::engine::{DeviceChoice, Engine, GradRequest, Pass, Sgd, Tensor, WeightSet, open};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ResNet, Weights};
use secateur::ops::{CrossEntropy, LossOutputs};
use secateur::philox::{Key, Purpose, unit};

pub const SEED: u64 = 116;
pub const NETWORK: ResNet = ResNet::resnet18(16, 10);
pub const BATCH: usize = 4;
const STRIDE: usize = 7;
const SMOOTHING: f32 = 0.1;

fn uniform(seed: u64, purpose: Purpose, sample: usize, count: usize) -> Vec<f32> {
    let key = Key { seed, purpose, epoch: 0, step: 0 };
    let words = (0..count.div_ceil(4)).flat_map(|block| key.block(sample as u32, block as u32));
    words.take(count).map(|word| 2.0 * unit(word) - 1.0).collect()
}

pub fn weights(seed: u64) -> Weights {
    let mut weights = Weights::default();
    for (position, parameter) in NETWORK.parameters().iter().enumerate() {
        let fan_in: usize = parameter.shape[1..].iter().product();
        let radius = (3.0 / fan_in as f64).sqrt() as f32;
        let value = |u: f32| match parameter.shape.len() {
            1 if parameter.name.ends_with("running_var") => 1.0 + 0.5 * u,
            1 if parameter.name.ends_with(".weight") => 1.0 + 0.25 * u,
            1 => 0.25 * u,
            _ => radius * u,
        };
        let values = uniform(seed, Purpose::Initialisation, position, parameter.len());
        weights.insert(&parameter.name, &parameter.shape, values.into_iter().map(value).collect());
    }
    weights
}

/// Images from number `first` on.
pub fn images(seed: u64, first: usize) -> Vec<f32> {
    let images = (first..first + BATCH).flat_map(|n| uniform(seed, Purpose::Generation, n, IMAGE_LEN));
    images.map(|u| 0.5 + 0.5 * u).collect()
}

pub fn labels() -> Vec<u32> {
    (0..BATCH as u32).map(|n| (3 * n + 1) % 10).collect()
}

/// An engine with the fixture's weights, images and labels.
struct Setup {
    engine: Engine,
    images: Tensor<f32>,
    labels: Tensor<u32>,
    logits: Tensor<f32>,
    losses: Tensor<f32>,
    predictions: Tensor<u32>,
    logit_gradient: Tensor<f32>,
}

impl Setup {
    fn new() -> Self {
        println!("seed {SEED}");
        let mut engine = open(DeviceChoice::Cpu, NETWORK, BATCH).unwrap();
        engine.load_weights(&weights(SEED)).unwrap();
        Self {
            images: engine.upload("images", &images(SEED, 0)).unwrap(),
            labels: engine.upload("labels", &labels()).unwrap(),
            logits: engine.alloc("logits", BATCH * 10).unwrap(),
            losses: engine.alloc("losses", BATCH).unwrap(),
            predictions: engine.alloc("predictions", BATCH).unwrap(),
            logit_gradient: engine.alloc("logit gradient", BATCH * 10).unwrap(),
            engine,
        }
    }

    /// Forward pass and the gradient of the mean loss.
    fn forward(&mut self, pass: Pass, smoothing: f32) {
        let outputs = LossOutputs {
            losses: &self.losses,
            predictions: &self.predictions,
            logit_gradient: &self.logit_gradient,
        };
        self.engine.forward(pass, &self.images, &self.logits).unwrap();
        self.engine
            .run(&CrossEntropy {
                smoothing,
                scale: 1.0 / BATCH as f32,
                logits: &self.logits,
                labels: &self.labels,
                weights: None,
                outputs,
            })
            .unwrap();
    }

    fn input_gradient(&mut self, pass: Pass) -> Vec<f32> {
        let gradient = self.engine.alloc("input gradient", self.images.len()).unwrap();
        self.engine.backward(pass, &self.logit_gradient, GradRequest::images(&gradient)).unwrap();
        self.engine.read(&gradient).unwrap()
    }
}

pub struct Fixture {
    bytes: Vec<u8>,
    /// Of the elements that it holds of a large tensor.
    stride: usize,
}

/// Bounds: of one element, relative to the tensor's root mean square; of the whole tensor, in the 2-norm.
pub struct Bound {
    pub element: f64,
    pub whole: f64,
}

impl Fixture {
    pub fn load(name: &str, stride: usize) -> Self {
        Self { bytes: std::fs::read(format!("tests/fixtures/{name}.safetensors")).unwrap(), stride }
    }

    fn get(&self, name: &str) -> Option<Vec<f32>> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).ok()?;
        Some(tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
    }

    pub fn check(&self, name: &str, actual: &[f32], bound: &Bound) {
        let expected = self.get(name).unwrap_or_else(|| panic!("{name}: not in the fixture"));
        let square = |values: &[f32]| values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        let sampled: Vec<f32> = match self.get(&format!("{name}.norm")) {
            Some(norm) => {
                let (norm, expected) = (square(actual).sqrt(), f64::from(norm[0]));
                assert!(
                    (norm / expected - 1.0).abs() <= bound.whole,
                    "{name}: norm {norm}, PyTorch {expected}"
                );
                actual.iter().copied().step_by(self.stride).collect()
            }
            None => actual.to_vec(),
        };
        assert_eq!(sampled.len(), expected.len(), "{name}: number of elements");
        let scale = (square(&expected) / expected.len() as f64).sqrt();
        let errors: Vec<f64> =
            sampled.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).collect();
        let (at, worst) = errors
            .iter()
            .enumerate()
            .fold((0, 0.0), |best, (at, &e)| if e > best.1 || e.is_nan() { (at, e) } else { best });
        let whole = (errors.iter().map(|e| e * e).sum::<f64>() / square(&expected)).sqrt();
        println!("{name}: worst element {:.2e} of the rms, whole {whole:.2e}", worst / scale);
        assert!(
            worst <= bound.element * scale,
            "{name}[{at}]: {} for {} (rms {scale:e})",
            sampled[at],
            expected[at]
        );
        assert!(whole <= bound.whole, "{name}: relative error {whole:e}");
    }
}

/// Values of one pass: rounding errors of f32 alone.
const PASS: Bound = Bound { element: 2e-4, whole: 2e-5 };
/// After three steps of training: no worse, because the steps are small.
const STEPS: Bound = Bound { element: 2e-4, whole: 2e-5 };

#[test]
fn eval_pass_agrees() {
    let fixture = Fixture::load("resnet18-width16", STRIDE);
    let mut setup = Setup::new();
    setup.engine.fold_batch_norm(WeightSet::Live).unwrap();
    for (tag, smoothing) in [("eval", 0.0), ("eval-smoothed", SMOOTHING)] {
        setup.forward(Pass::Eval, smoothing);
        fixture.check(&format!("{tag}.logits"), &setup.engine.read(&setup.logits).unwrap(), &PASS);
        fixture.check(&format!("{tag}.losses"), &setup.engine.read(&setup.losses).unwrap(), &PASS);
        let gradient = setup.input_gradient(Pass::Eval);
        fixture.check(&format!("{tag}.input_gradient"), &gradient, &PASS);
    }
}

#[test]
fn train_pass_agrees() {
    let fixture = Fixture::load("resnet18-width16", STRIDE);
    for slot in [0, 1] {
        let mut setup = Setup::new();
        let pass = Pass::Train { slot };
        setup.forward(pass, SMOOTHING);
        fixture.check("train.logits", &setup.engine.read(&setup.logits).unwrap(), &PASS);
        fixture.check("train.input_gradient", &setup.input_gradient(pass), &PASS);
        setup.engine.backward(pass, &setup.logit_gradient, GradRequest::PARAMETERS).unwrap();
        let gradients = setup.engine.weights(WeightSet::Gradients).unwrap();
        let state = setup.engine.weights(WeightSet::Live).unwrap();
        for parameter in NETWORK.parameters() {
            let name = &parameter.name;
            if parameter.kind.trainable() {
                fixture.check(&format!("train.gradient.{name}"), &gradients.tensors[name].values, &PASS);
            } else {
                fixture.check(&format!("train.statistics.{name}"), &state.tensors[name].values, &PASS);
            }
        }
    }
}

#[test]
fn accumulated_gradients_are_sums() {
    let fixture = Fixture::load("resnet18-width16", STRIDE);
    let mut setup = Setup::new();
    for (slot, accumulate) in [(0, false), (1, true)] {
        setup.forward(Pass::Train { slot }, SMOOTHING);
        setup
            .engine
            .backward(
                Pass::Train { slot },
                &setup.logit_gradient,
                if accumulate { GradRequest::ADD_PARAMETERS } else { GradRequest::PARAMETERS },
            )
            .unwrap();
    }
    // The batch statistics do not depend on the running ones: twice the same gradient.
    for (name, tensor) in setup.engine.weights(WeightSet::Gradients).unwrap().tensors {
        let half: Vec<f32> = tensor.values.iter().map(|value| 0.5 * value).collect();
        fixture.check(&format!("train.gradient.{name}"), &half, &PASS);
    }
}

#[test]
fn three_steps_agree() {
    let fixture = Fixture::load("resnet18-width16", STRIDE);
    let mut setup = Setup::new();
    let sgd = Sgd {
        learning_rate: 0.02,
        momentum: 0.9,
        weight_decay: 5e-4,
        average_decay: Some(0.75),
        ..Sgd::ZERO
    };
    for _ in 0..3 {
        setup.forward(Pass::Train { slot: 0 }, SMOOTHING);
        setup
            .engine
            .backward(Pass::Train { slot: 0 }, &setup.logit_gradient, GradRequest::PARAMETERS)
            .unwrap();
        setup.engine.step(&sgd).unwrap();
    }
    let state = setup.engine.optimizer().unwrap();
    let live = setup.engine.weights(WeightSet::Live).unwrap();
    let average = setup.engine.weights(WeightSet::Average).unwrap();
    assert_eq!(state.average.as_ref(), Some(&average));
    for (tag, weights) in [("live", &live), ("average", &average), ("momentum", &state.momentum)] {
        for (name, tensor) in &weights.tensors {
            fixture.check(&format!("steps.{tag}.{name}"), &tensor.values, &STEPS);
        }
    }
}
