//! The cuda engine on the emulator against the reference engine: whole networks, most of them ResNet-18 at width 16.
//!
//! The reference computes in f32, the kernels in bf16 with f32 accumulation: a layer rounds by about 0.2 %. Logits stay
//! that close. Gradients do not in an ordinary network: where rounding moves a pre-activation across zero, the ReLU's
//! mask flips and the gradient loses a path. With 0.4 % of flips in each of 17 layers the error is sqrt(17 * 0.004), a
//! quarter. So gradients are compared in two networks: a *steady* one, whose BatchNorm biases keep pre-activations
//! away from zero, tightly; and an ordinary one by direction. What is exact in both engines (data, uniform starts) is
//! compared bit for bit. Every test prints what it met.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use secateur::engine::{DeviceChoice, Engine, GradRequest, Pass, Sgd, SignStep, Tensor, WeightSet, open};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ParameterKind, ResNet, Weights};
use secateur::ops::{Augment, CrossEntropy, GatherImages, ImageSet, LossOutputs, Noise, Padding, Perturb};
use secateur::philox::{Key, Purpose, unit};

use crate::common;

const SEED: u64 = 20_261_121;
const NETWORK: ResNet = ResNet::resnet18(16, 10);
const BATCH: usize = 8;
const EPSILON: f32 = 8.0 / 255.0;

type Device = Engine;

fn emulated() -> Device {
    open(common::cuda_engine(), NETWORK, BATCH).unwrap()
}

/// Runs `test` on the device of these tests, and where that is the emulator on it as a Hopper too: the last two stages of
/// this network have channels enough for wgmma.
fn on_each(test: impl Fn(DeviceChoice)) {
    let named = common::cuda_engine();
    test(named);
    if named == DeviceChoice::Emulated {
        test(DeviceChoice::EmulatedHopper);
    }
}

fn reference() -> Device {
    reference_of(NETWORK)
}

fn reference_of(network: ResNet) -> Device {
    open(DeviceChoice::Cpu, network, BATCH).unwrap()
}

/// Uniform numbers on [0, 1).
fn uniforms(stream: u32, len: usize) -> Vec<f32> {
    let key = Key { seed: SEED, purpose: Purpose::Generation, epoch: 1, step: 0 };
    (0..len.div_ceil(4) as u32).flat_map(|block| key.block(stream, block)).map(unit).take(len).collect()
}

/// A data set in which the class can be seen: each has its own coarse pattern under noise.
fn data(count: usize) -> (Vec<u8>, Vec<u32>) {
    let patterns = uniforms(1, 10 * 3 * 16);
    let noise = uniforms(2, count * IMAGE_LEN);
    let labels: Vec<u32> = (0..count as u32).map(|i| i * 7 % 10).collect();
    let pixel = |i: usize| {
        let (image, channel, row, column) = (i / IMAGE_LEN, i / 1024 % 3, i / 32 % 32, i % 32);
        let pattern = patterns[(labels[image] as usize * 3 + channel) * 16 + row / 8 * 4 + column / 8];
        (255.0 * (0.6 * pattern + 0.4 * noise[i])) as u8
    };
    ((0..count * IMAGE_LEN).map(pixel).collect(), labels)
}

/// The first batch as f32 NHWC, and its labels.
pub fn batch() -> (Vec<f32>, Vec<u32>) {
    let (bytes, labels) = data(BATCH);
    let at = |i: usize| (i / IMAGE_LEN * 3 + i % 3) * 1024 + i % IMAGE_LEN / 3;
    ((0..bytes.len()).map(|i| f32::from(bytes[at(i)]) / 255.0).collect(), labels)
}

/// How far the network's pre-activations stay from zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// BatchNorm weights near 1, biases near 0: half of all ReLUs are off.
    Ordinary,
    /// Biases four deviations above zero: nearly all ReLUs are on.
    Steady,
}

impl Kind {
    const BOTH: [Kind; 2] = [Kind::Ordinary, Kind::Steady];
}

/// Initial weights with every BatchNorm tensor moved away from its start, and running statistics that fit the data.
pub fn weights(kind: Kind) -> Weights {
    static WEIGHTS: [OnceLock<Weights>; 2] = [OnceLock::new(), OnceLock::new()];
    WEIGHTS[kind as usize].get_or_init(|| fitted(NETWORK, kind)).clone()
}

fn weights_of(network: ResNet, kind: Kind) -> Weights {
    if network == NETWORK { weights(kind) } else { fitted(network, kind) }
}

fn fitted(network: ResNet, kind: Kind) -> Weights {
    let mut weights = secateur::model::initialise(network, SEED);
    for (stream, parameter) in (100..).zip(network.parameters()) {
        let (low, high) = match (kind, parameter.kind) {
            (Kind::Ordinary, ParameterKind::BnWeight) => (0.6, 1.4),
            (Kind::Ordinary, ParameterKind::BnBias) => (-0.2, 0.2),
            (Kind::Steady, ParameterKind::BnWeight) => (0.4, 0.8),
            (Kind::Steady, ParameterKind::BnBias) => (2.2, 2.6),
            _ => continue,
        };
        let moved: Vec<f32> =
            uniforms(stream, parameter.len()).iter().map(|u| low + (high - low) * u).collect();
        weights.insert(parameter.name.as_str(), &parameter.shape, moved);
    }
    let mut engine = reference_of(network);
    engine.load_weights(&weights).unwrap();
    let (images, _) = batch();
    let images = engine.upload("images", &images).unwrap();
    let logits = engine.alloc("logits", BATCH * network.classes).unwrap();
    for _ in 0..30 {
        engine.forward(Pass::Train { slot: 0 }, &images, &logits).unwrap();
    }
    engine.weights(WeightSet::Live).unwrap()
}

/// Tensors of one batch on one engine.
struct Bench {
    engine: Device,
    images: Tensor<f32>,
    labels: Tensor<u32>,
    logits: Tensor<f32>,
    losses: Tensor<f32>,
    predictions: Tensor<u32>,
    logit_gradient: Tensor<f32>,
    gradient: Tensor<f32>,
}

impl Bench {
    fn new(engine: Device) -> Self {
        let (images, labels) = batch();
        let classes = engine.network().classes;
        Self {
            images: engine.upload("images", &images).unwrap(),
            labels: engine.upload("labels", &labels).unwrap(),
            logits: engine.alloc("logits", BATCH * classes).unwrap(),
            losses: engine.alloc("losses", BATCH).unwrap(),
            predictions: engine.alloc("predictions", BATCH).unwrap(),
            logit_gradient: engine.alloc("logit gradient", BATCH * classes).unwrap(),
            gradient: engine.alloc("gradient", BATCH * IMAGE_LEN).unwrap(),
            engine,
        }
    }
    /// With weights loaded and folded.
    fn ready(engine: Device, weights: &Weights) -> Self {
        let mut bench = Self::new(engine);
        bench.engine.load_weights(weights).unwrap();
        bench.engine.fold_batch_norm(WeightSet::Live).unwrap();
        bench
    }
    fn forward(&mut self, pass: Pass, images: &Tensor<f32>) {
        self.engine.forward(pass, images, &self.logits).unwrap();
    }
    /// Loss and logit gradient of the last forward pass.
    fn loss(&mut self) {
        let outputs = LossOutputs {
            losses: &self.losses,
            predictions: &self.predictions,
            logit_gradient: &self.logit_gradient,
        };
        self.engine
            .run(&CrossEntropy {
                smoothing: 0.1,
                scale: 1.0 / BATCH as f32,
                logits: &self.logits,
                labels: &self.labels,
                weights: None,
                outputs,
            })
            .unwrap();
    }
    /// The logit gradient that the reference would use, so that a comparison starts from the same numbers.
    fn take_logit_gradient(&mut self, from: &Bench) {
        let values = from.engine.read(&from.logit_gradient).unwrap();
        self.engine.write(&self.logit_gradient, &values).unwrap();
    }
    fn input_gradient(&mut self, pass: Pass) -> Vec<f32> {
        self.engine.backward(pass, &self.logit_gradient, GradRequest::images(&self.gradient)).unwrap();
        self.engine.read(&self.gradient).unwrap()
    }
    fn read_logits(&self) -> Vec<f32> {
        self.engine.read(&self.logits).unwrap()
    }
}

/// How two tensors differ.
#[derive(Debug)]
struct Difference {
    /// Norm of the difference over the norm of the reference.
    relative: f64,
    cosine: f64,
    /// Largest difference of an element over the root mean square of the reference.
    worst: f64,
}

fn difference(actual: &[f32], expected: &[f32]) -> Difference {
    assert_eq!(actual.len(), expected.len());
    let (mut error, mut product, mut actual_norm, mut norm, mut worst) = (0.0, 0.0, 0.0, 0.0, 0.0f64);
    for (actual, expected) in actual.iter().zip(expected) {
        let (actual, expected) = (f64::from(*actual), f64::from(*expected));
        assert!(actual.is_finite() && expected.is_finite(), "{actual} and {expected}, seed {SEED}");
        error += (actual - expected) * (actual - expected);
        product += actual * expected;
        actual_norm += actual * actual;
        norm += expected * expected;
        worst = worst.max((actual - expected).abs());
    }
    let tiny = f64::MIN_POSITIVE;
    Difference {
        relative: (error / norm.max(tiny)).sqrt(),
        cosine: product / (actual_norm * norm).sqrt().max(tiny),
        worst: worst / (norm / expected.len() as f64).sqrt().max(tiny),
    }
}

/// What is compared in a test, all of it before any of it fails.
#[derive(Default)]
pub struct Comparison {
    broken: Vec<String>,
}

impl Comparison {
    fn check(&mut self, holds: bool, line: String) {
        println!("{line}");
        if !holds {
            self.broken.push(line);
        }
    }
    /// Bounds the error of the whole tensor, and of each element over the tensor's root mean square.
    fn near(&mut self, what: &str, actual: &[f32], expected: &[f32], relative: f64, worst: f64) {
        let found = difference(actual, expected);
        let holds = found.relative <= relative && found.worst <= worst;
        self.check(holds, format!("{what}: {found:?}, bounds: relative {relative}, worst {worst}"));
    }
    pub fn direction(&mut self, what: &str, actual: &[f32], expected: &[f32], cosine: f64) {
        let found = difference(actual, expected);
        self.check(found.cosine >= cosine, format!("{what}: {found:?}, bound: cosine {cosine}"));
    }
    fn at_least(&mut self, what: &str, actual: f64, bound: f64) {
        self.check(actual >= bound, format!("{what}: {actual:.4}, bound {bound}"));
    }
    fn at_most(&mut self, what: &str, actual: f64, bound: f64) {
        self.check(actual <= bound, format!("{what}: {actual:.4}, bound {bound}"));
    }
    pub fn finish(self) {
        assert!(self.broken.is_empty(), "seed {SEED}:\n{}", self.broken.join("\n"));
    }
}

/// Share of the elements whose signs agree, of those whose size is above a tenth of the root mean square.
fn sign_agreement(actual: &[f32], expected: &[f32]) -> f64 {
    let square = expected.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / expected.len() as f64;
    let large: Vec<_> =
        actual.iter().zip(expected).filter(|(_, w)| f64::from(w.abs()) > 0.1 * square.sqrt()).collect();
    assert!(large.len() > expected.len() / 2, "most elements are compared");
    large.iter().filter(|(actual, expected)| actual.signum() == expected.signum()).count() as f64
        / large.len() as f64
}

/// Both engines, ready for the same batch.
fn pair(device: DeviceChoice, network: ResNet, kind: Kind) -> (Bench, Bench) {
    let weights = weights_of(network, kind);
    let emulated = open(device, network, BATCH).unwrap();
    (Bench::ready(emulated, &weights), Bench::ready(reference_of(network), &weights))
}

#[test]
fn evaluation_pass_forward_and_back() {
    on_each(|device| evaluation_pass(device, NETWORK, &Kind::BOTH));
}

fn evaluation_pass(device: DeviceChoice, network: ResNet, kinds: &[Kind]) {
    let mut comparison = Comparison::default();
    for &kind in kinds {
        let (mut actual, mut expected) = pair(device, network, kind);
        for bench in [&mut actual, &mut expected] {
            bench.forward(Pass::Eval, &bench.images.clone());
            bench.loss();
        }
        let name = |what| format!("{device:?}, {kind:?} {network}, evaluation, {what}");
        comparison.near(&name("logits"), &actual.read_logits(), &expected.read_logits(), 0.015, 0.04);
        let losses = [&actual, &expected].map(|bench| bench.engine.read(&bench.losses).unwrap());
        comparison.near(&name("losses"), &losses[0], &losses[1], 0.005, 0.02);

        actual.take_logit_gradient(&expected);
        let [actual, expected] = [&mut actual, &mut expected].map(|bench| bench.input_gradient(Pass::Eval));
        match kind {
            Kind::Ordinary => comparison.direction(&name("input gradient"), &actual, &expected, 0.93),
            Kind::Steady => comparison.near(&name("input gradient"), &actual, &expected, 0.025, 0.5),
        }
        let bound = if kind == Kind::Ordinary { 0.92 } else { 0.995 };
        comparison.at_least(&name("signs that agree"), sign_agreement(&actual, &expected), bound);
    }
    comparison.finish();
}

#[test]
fn train_pass_forward_and_back() {
    on_each(|device| train_pass(device, NETWORK, &Kind::BOTH));
}

fn train_pass(device: DeviceChoice, network: ResNet, kinds: &[Kind]) {
    let mut comparison = Comparison::default();
    let pass = Pass::Train { slot: 1 };
    for &kind in kinds {
        let (mut actual, mut expected) = pair(device, network, kind);
        for bench in [&mut actual, &mut expected] {
            bench.forward(pass, &bench.images.clone());
            bench.loss();
        }
        let name = |what: &str| format!("{device:?}, {kind:?} {network}, training, {what}");
        comparison.near(&name("logits"), &actual.read_logits(), &expected.read_logits(), 0.03, 0.12);

        actual.take_logit_gradient(&expected);
        let gradients = [&mut actual, &mut expected].map(|bench| bench.input_gradient(pass));
        match kind {
            Kind::Ordinary => {
                comparison.direction(&name("input gradient"), &gradients[0], &gradients[1], 0.89)
            }
            Kind::Steady => comparison.near(&name("input gradient"), &gradients[0], &gradients[1], 0.03, 0.5),
        }

        let [actual_gradients, expected_gradients] = [&mut actual, &mut expected].map(|bench| {
            bench.engine.backward(pass, &bench.logit_gradient, GradRequest::PARAMETERS).unwrap();
            bench.engine.weights(WeightSet::Gradients).unwrap().tensors
        });
        assert_eq!(
            actual_gradients.keys().collect::<Vec<_>>(),
            expected_gradients.keys().collect::<Vec<_>>()
        );
        let trainable = network.parameters().iter().filter(|parameter| parameter.kind.trainable()).count();
        assert_eq!(actual_gradients.len(), trainable);
        for (tensor, expected) in &expected_gradients {
            let actual = &actual_gradients[tensor];
            assert_eq!(actual.shape, expected.shape, "{tensor}");
            // Where nearly all ReLUs are on, the next BatchNorm takes away what a bias adds: its gradient is the small
            // rest of sums that cancel.
            let cancels = kind == Kind::Steady && tensor.ends_with(".bias");
            let cosine = match kind {
                Kind::Ordinary => 0.82,
                Kind::Steady if cancels => 0.94,
                Kind::Steady => 0.985,
            };
            comparison.direction(&name(tensor), &actual.values, &expected.values, cosine);
        }

        let [actual, expected] =
            [&actual, &expected].map(|bench| bench.engine.weights(WeightSet::Live).unwrap().tensors);
        for parameter in network.parameters().iter().filter(|parameter| !parameter.kind.trainable()) {
            let [actual, expected] = [&actual, &expected].map(|tensors| &tensors[&parameter.name].values);
            comparison.near(&name(&parameter.name), actual, expected, 0.01, 0.03);
        }
    }
    comparison.finish();
}

#[test]
fn data_and_random_starts_have_the_same_bits() {
    println!("seed {SEED}");
    let (set, set_labels) = data(20);
    let results = [emulated(), reference()].map(|mut engine| {
        let set = ImageSet::upload(&engine, &set, &set_labels).unwrap();
        let samples = engine.upload("samples", &[3u32, 19, 0, 3, 7, 11, 2, 5]).unwrap();
        let images = engine.alloc("images", BATCH * IMAGE_LEN).unwrap();
        let labels = engine.alloc("labels", BATCH).unwrap();
        let mut bits: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        let augment = |padding| Some(Augment { seed: SEED, epoch: 4, padding });
        for augment in [None, augment(Padding::Zero), augment(Padding::Reflect)] {
            engine
                .run(&GatherImages {
                    set: &set,
                    samples: &samples,
                    augment,
                    images: &images,
                    labels: &labels,
                })
                .unwrap();
            let gathered: Vec<f32> = engine.read(&images).unwrap();
            bits.insert(format!("images, {augment:?}"), gathered.iter().map(|v| v.to_bits()).collect());
            bits.insert(format!("labels, {augment:?}"), engine.read(&labels).unwrap());
        }
        let perturbed = engine.alloc("perturbed", BATCH * IMAGE_LEN).unwrap();
        let key = Key { seed: SEED, purpose: Purpose::AttackStart, epoch: 2, step: 1 };
        engine
            .run(&Perturb {
                noise: Noise::Uniform { radius: EPSILON },
                key,
                samples: &samples,
                images: &images,
                perturbed: &perturbed,
            })
            .unwrap();
        let started: Vec<f32> = engine.read(&perturbed).unwrap();
        bits.insert("uniform start".into(), started.iter().map(|v| v.to_bits()).collect());
        engine
            .run(&Perturb {
                noise: Noise::Normal { deviation: 0.001 },
                key,
                samples: &samples,
                images: &images,
                perturbed: &perturbed,
            })
            .unwrap();
        let normal: Vec<f32> = engine.read(&perturbed).unwrap();
        (bits, normal)
    });
    let [(actual, actual_normal), (expected, expected_normal)] = results;
    for (name, expected) in &expected {
        let differs = actual[name].iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{name}: the engines differ at this element, seed {SEED}");
    }
    // Logarithm, sine and cosine may differ in their last places; the images are near 1 at most.
    let worst = actual_normal.iter().zip(&expected_normal).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 2e-7, "normal start: {worst}, seed {SEED}");
}

/// PGD from a uniform start; checks the ball after every step and returns the last images.
fn attack(
    bench: &mut Bench,
    steps: usize,
    key: Key,
    samples: &Tensor<u32>,
    perturbed: &Tensor<f32>,
) -> Vec<f32> {
    let step = SignStep { step_size: 2.0 / 255.0, epsilon: EPSILON };
    let clean: Vec<f32> = bench.engine.read(&bench.images).unwrap();
    bench
        .engine
        .run(&Perturb {
            noise: Noise::Uniform { radius: EPSILON },
            key,
            samples,
            images: &bench.images,
            perturbed,
        })
        .unwrap();
    let mut moved = Vec::new();
    for _ in 0..steps {
        bench.forward(Pass::Eval, perturbed);
        bench.loss();
        bench
            .engine
            .backward(Pass::Eval, &bench.logit_gradient, GradRequest::step(step, &bench.images, perturbed))
            .unwrap();
        moved = bench.engine.read(perturbed).unwrap();
        for (i, (moved, clean)) in moved.iter().zip(&clean).enumerate() {
            assert!((0.0..=1.0).contains(moved), "element {i} is {moved}, seed {SEED}");
            assert!((moved - clean).abs() <= EPSILON + 1e-7, "element {i} left the ball, seed {SEED}");
        }
    }
    moved
}

/// What a short run leaves: the mean loss of every step, and both sets of weights.
struct Run {
    losses: Vec<f32>,
    weights: [Weights; 2],
}

/// Steps of PGD adversarial training with augmentation, momentum, weight decay and a moving average.
fn train(engine: Device, start: &Weights, learning_rate: f32, steps: u32) -> Run {
    let (set, set_labels) = data(40);
    let mut bench = Bench::ready(engine, start);
    let set = ImageSet::upload(&bench.engine, &set, &set_labels).unwrap();
    let perturbed = bench.engine.alloc("perturbed", BATCH * IMAGE_LEN).unwrap();
    let mut losses = Vec::new();
    for step in 0..steps {
        let ids: Vec<u32> = (0..BATCH as u32).map(|i| (step * BATCH as u32 + i) % 40).collect();
        let samples = bench.engine.upload("samples", &ids).unwrap();
        let augment = Some(Augment { seed: SEED, epoch: step / 5, padding: Padding::Reflect });
        bench
            .engine
            .run(&GatherImages {
                set: &set,
                samples: &samples,
                augment,
                images: &bench.images,
                labels: &bench.labels,
            })
            .unwrap();
        bench.engine.fold_batch_norm(WeightSet::Live).unwrap();
        let key = Key { seed: SEED, purpose: Purpose::AttackStart, epoch: 0, step };
        attack(&mut bench, 2, key, &samples, &perturbed);
        let pass = Pass::Train { slot: 0 };
        bench.forward(pass, &perturbed);
        bench.loss();
        bench.engine.backward(pass, &bench.logit_gradient, GradRequest::PARAMETERS).unwrap();
        let sgd =
            Sgd { learning_rate, momentum: 0.9, weight_decay: 5e-4, average_decay: Some(0.9), ..Sgd::ZERO };
        bench.engine.step(&sgd).unwrap();
        let sample_losses: Vec<f32> = bench.engine.read(&bench.losses).unwrap();
        losses.push(sample_losses.iter().sum::<f32>() / BATCH as f32);
    }
    let weights = [WeightSet::Live, WeightSet::Average].map(|set| bench.engine.weights(set).unwrap());
    Run { losses, weights }
}

/// How far apart two runs are over how far the second went: trainable parameters, then running statistics.
fn divergence(network: ResNet, actual: &Weights, expected: &Weights, start: &Weights) -> [f64; 2] {
    [true, false].map(|trainable| {
        let (mut apart, mut path) = (0.0, 0.0);
        for parameter in network.parameters().iter().filter(|p| p.kind.trainable() == trainable) {
            let [actual, expected, start] =
                [actual, expected, start].map(|weights| &weights.tensors[&parameter.name].values);
            for ((actual, expected), start) in actual.iter().zip(expected).zip(start) {
                apart += f64::from(actual - expected).powi(2);
                path += f64::from(expected - start).powi(2);
            }
        }
        (apart / path).sqrt()
    })
}

#[test]
fn twenty_training_steps_stay_together() {
    let (mut comparison, expected) = training_steps(common::cuda_engine(), NETWORK, 20);
    comparison.at_least("share of the loss that was learned away", learned(&expected), 0.1);
    comparison.finish();
}

/// Steps of a steady network on the device and on the reference: compares each loss and the weights after the last, and returns the
/// reference's.
fn training_steps(device: DeviceChoice, network: ResNet, steps: u32) -> (Comparison, Run) {
    let start = weights_of(network, Kind::Steady);
    let [actual, expected] = [open(device, network, BATCH).unwrap(), reference_of(network)]
        .map(|engine| train(engine, &start, 0.0005, steps));
    println!("{device:?}, {network}: {:.3?}\nreference: {:.3?}", actual.losses, expected.losses);
    let mut comparison = Comparison::default();
    for (step, (actual, expected)) in actual.losses.iter().zip(&expected.losses).enumerate() {
        comparison.at_most(
            &format!("loss of step {step}, relative"),
            (actual / expected - 1.0).abs().into(),
            0.03,
        );
    }
    for (set, name) in ["live", "average"].iter().enumerate() {
        let [parameters, statistics] =
            divergence(network, &actual.weights[set], &expected.weights[set], &start);
        comparison.at_most(&format!("{name} parameters, distance over path"), parameters, 0.1);
        comparison.at_most(&format!("{name} statistics, distance over path"), statistics, 0.1);
    }
    (comparison, expected)
}

/// Of the steady weights; the gradients of single tensors are not compared, as their bounds hold for 18 layers: bf16 leaves
/// 0.90 to 0.98 in cosine of those in the third stage of six blocks. The step that they make is.
#[test]
fn resnet34_trains_a_step() {
    on_each(|device| {
        let network = ResNet::resnet34(16, 10);
        evaluation_pass(device, network, &[Kind::Steady]);
        training_steps(device, network, 1).0.finish();
    });
}

#[test]
fn width_32_trains_a_step() {
    on_each(|device| {
        let network = ResNet::resnet18(32, 10);
        evaluation_pass(device, network, &[Kind::Steady]);
        train_pass(device, network, &[Kind::Steady]);
        training_steps(device, network, 1).0.finish();
    });
}

/// An ordinary network of this size is chaotic on batches of eight: a flipped sign moves a pixel by a whole step, and
/// after a few steps the weights of two runs have little in common. What both learn is compared, five steps at a time. Eight runs
/// of the reference itself, from weights nudged at random by up to 2^-9 of each, were up to 0.010, 0.025, 0.093 and 0.195 from
/// the run without, and sixteen up to 0.0128 in the first step, whose attack has moved by then: bounds are two to three times
/// these distances. The emulated engine gives the same bits every time, so there
/// no distance is more than a tenth.
#[test]
fn twenty_training_steps_learn_alike() {
    let start = weights(Kind::Ordinary);
    let [actual, expected] = [emulated(), reference()].map(|engine| train(engine, &start, 0.01, 20));
    println!("emulated:  {:.3?}\nreference: {:.3?}", actual.losses, expected.losses);
    let mut comparison = Comparison::default();
    let first = (actual.losses[0] / expected.losses[0] - 1.0).abs();
    comparison.at_most("loss of the first step, relative", first.into(), 0.03);
    let fives = actual.losses.chunks(5).zip(expected.losses.chunks(5));
    let most = if common::cuda_engine() == DeviceChoice::Emulated { 0.1f64 } else { 1.0 };
    for (number, ((actual, expected), bound)) in
        fives.zip([0.03, 0.08, 0.2, 0.4].map(|of| most.min(of))).enumerate()
    {
        let apart = (actual.iter().sum::<f32>() / expected.iter().sum::<f32>() - 1.0).abs();
        comparison.at_most(&format!("loss of five steps, number {number}, relative"), apart.into(), bound);
    }
    comparison.at_least("share of the loss that the emulated engine learned away", learned(&actual), 0.1);
    comparison.at_least("share of the loss that the reference learned away", learned(&expected), 0.1);
    comparison.finish();
}

/// How much the loss of the last five steps is below that of the first five, as a share of it.
fn learned(run: &Run) -> f64 {
    let [first, last] = [0..5, 15..20].map(|steps| run.losses[steps].iter().sum::<f32>());
    (1.0 - last / first).into()
}

#[test]
fn an_attack_step_is_the_sign_of_the_input_gradient() {
    let mut bench = Bench::ready(emulated(), &weights(Kind::Ordinary));
    let (clean, _) = batch();
    let step = SignStep { step_size: 2.0 / 255.0, epsilon: EPSILON };
    for pass in [Pass::Eval, Pass::Train { slot: 0 }] {
        let perturbed = bench.engine.upload("perturbed", &clean).unwrap();
        bench.forward(pass, &perturbed);
        bench.loss();
        let gradient = bench.input_gradient(pass);
        bench
            .engine
            .backward(pass, &bench.logit_gradient, GradRequest::step(step, &bench.images, &perturbed))
            .unwrap();
        let moved: Vec<f32> = bench.engine.read(&perturbed).unwrap();
        for (i, ((moved, clean), gradient)) in moved.iter().zip(&clean).zip(&gradient).enumerate() {
            let sign = if *gradient == 0.0 { 0.0 } else { gradient.signum() };
            let target = clean + step.step_size * sign;
            let expected = target.clamp(clean - EPSILON, clean + EPSILON).clamp(0.0, 1.0);
            assert!(
                (moved - expected).abs() <= 1.2e-7,
                "{pass:?}, element {i}: {moved}, {expected}, seed {SEED}"
            );
        }
        bench.engine.fold_batch_norm(WeightSet::Live).unwrap();
        // The next forward pass sees the moved images, not those packed before.
        bench.forward(Pass::Eval, &perturbed);
        let after = bench.read_logits();
        let copy = bench.engine.upload("copy", &moved).unwrap();
        bench.forward(Pass::Eval, &copy);
        assert_eq!(after, bench.read_logits(), "{pass:?}, seed {SEED}");
    }
}

#[test]
fn gradients_accumulate_and_slots_do_not_mix() {
    let mut bench = Bench::ready(emulated(), &weights(Kind::Ordinary));
    let (images, _) = batch();
    let other: Vec<f32> = images.iter().map(|v| 1.0 - v).collect();
    let other = bench.engine.upload("other images", &other).unwrap();
    let slots = [Pass::Train { slot: 0 }, Pass::Train { slot: 1 }];

    bench.forward(slots[0], &bench.images.clone());
    bench.loss();
    bench.engine.backward(slots[0], &bench.logit_gradient, GradRequest::PARAMETERS).unwrap();
    let once = bench.engine.weights(WeightSet::Gradients).unwrap();
    bench.engine.backward(slots[0], &bench.logit_gradient, GradRequest::ADD_PARAMETERS).unwrap();
    let twice = bench.engine.weights(WeightSet::Gradients).unwrap();
    for (name, once) in &once.tensors {
        let doubled: Vec<f32> = once.values.iter().map(|v| v + v).collect();
        assert_eq!(twice.tensors[name].values, doubled, "{name}: accumulated, seed {SEED}");
    }

    bench.forward(slots[1], &other);
    bench.engine.backward(slots[0], &bench.logit_gradient, GradRequest::PARAMETERS).unwrap();
    assert_eq!(
        bench.engine.weights(WeightSet::Gradients).unwrap(),
        once,
        "slot 0 after a pass in slot 1, seed {SEED}"
    );
    bench.engine.backward(slots[1], &bench.logit_gradient, GradRequest::PARAMETERS).unwrap();
    assert_ne!(bench.engine.weights(WeightSet::Gradients).unwrap(), once, "slot 1 has its own images");
}

#[test]
fn a_part_of_the_batch_gives_the_same_bits() {
    on_each(part_of_the_batch);
}

fn part_of_the_batch(device: DeviceChoice) {
    let mut bench = Bench::ready(open(device, NETWORK, BATCH).unwrap(), &weights(Kind::Ordinary));
    bench.forward(Pass::Eval, &bench.images.clone());
    bench.loss();
    let (whole, gradient) = (bench.read_logits(), bench.input_gradient(Pass::Eval));
    for range in [0..1, 1..4, 5..8] {
        let images = bench.images.rows(range.clone(), IMAGE_LEN);
        let logits = bench.logits.rows(range.clone(), NETWORK.classes);
        let logit_gradient = bench.logit_gradient.rows(range.clone(), NETWORK.classes);
        let part = bench.gradient.rows(range.clone(), IMAGE_LEN);
        bench.engine.forward(Pass::Eval, &images, &logits).unwrap();
        bench.engine.backward(Pass::Eval, &logit_gradient, GradRequest::images(&part)).unwrap();
        let actual: Vec<f32> = bench.engine.read(&logits).unwrap();
        assert_eq!(actual, whole[range.start * 10..range.end * 10], "logits of {range:?}, seed {SEED}");
        let actual: Vec<f32> = bench.engine.read(&part).unwrap();
        assert_eq!(
            actual,
            gradient[range.start * IMAGE_LEN..range.end * IMAGE_LEN],
            "{range:?}, seed {SEED}"
        );
    }
}

/// What an engine makes of one batch, as lists of numbers.
fn everything(choice: DeviceChoice, kind: Kind) -> Vec<(String, Vec<f32>)> {
    let start = weights(kind);
    let mut bench = Bench::ready(open(choice, NETWORK, BATCH).unwrap(), &start);
    bench.forward(Pass::Eval, &bench.images.clone());
    bench.loss();
    let mut found = vec![("evaluation, logits".into(), bench.read_logits())];
    found.push(("evaluation, input gradient".into(), bench.input_gradient(Pass::Eval)));
    let pass = Pass::Train { slot: 0 };
    bench.forward(pass, &bench.images.clone());
    let moved = bench.engine.weights(WeightSet::Live).unwrap();
    for parameter in NETWORK.parameters().iter().filter(|p| p.kind == ParameterKind::BnRunningMean) {
        let [start, moved] = [&start, &moved].map(|weights| &weights.tensors[&parameter.name].values);
        let by = moved.iter().zip(start).map(|(moved, start)| moved - start).collect();
        found.push((format!("training, how {} moved", parameter.name), by));
    }
    // Behind these statistics every activation of a steady network lies where bf16 numbers are far apart, and a number rounded
    // the other way is as far from what it was as a rounded one from its f32: the last layers of all three are equally far apart.
    if kind == Kind::Ordinary {
        bench.loss();
        found.push(("training, logits".into(), bench.read_logits()));
        found.push(("training, input gradient".into(), bench.input_gradient(pass)));
        bench.engine.backward(pass, &bench.logit_gradient, GradRequest::PARAMETERS).unwrap();
        let gradients = bench.engine.weights(WeightSet::Gradients).unwrap().tensors;
        let all = gradients.into_values().flat_map(|tensor| tensor.values).collect();
        found.push(("parameter gradients".into(), all));
    }
    found
}

/// The CPU in bf16 rounds where the kernels round: the two are nearer to each other than either is to f32.
#[test]
fn the_cpu_in_bf16_is_nearer_to_the_kernels_than_either_is_to_f32() {
    let mut comparison = Comparison::default();
    for kind in Kind::BOTH {
        let [kernels, bf16, f32] = [common::cuda_engine(), DeviceChoice::CpuBf16, DeviceChoice::Cpu]
            .map(|choice| everything(choice, kind));
        for (((what, kernels), (_, bf16)), (_, f32)) in kernels.iter().zip(&bf16).zip(&f32) {
            let together = difference(bf16, kernels).relative;
            let apart = difference(kernels, f32).relative.min(difference(bf16, f32).relative);
            comparison.check(
                together < apart,
                format!("{kind:?} network, {what}: {together:.6} from each other, {apart:.6} from f32"),
            );
        }
    }
    comparison.finish();
}
