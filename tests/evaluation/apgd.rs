//! APGD step by step against an f64 re-implementation of the published algorithm (scripts/make-apgd-fixtures.py), margin
//! losses against PyTorch's autograd, on the reference engine and on the cuda engine; and APGD on a trained network.

use safetensors::SafeTensors;
use secateur::attack::{Apgd, Found, Search, apgd_phases};
use secateur::batch::Batch;
use secateur::data::generated::{self, Part};
use secateur::engine::{DeviceChoice, Engine, GradRequest, Pass, Tensor, WeightSet, open};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ResNet, initialise};
use secateur::ops::{
    ApgdPhase, ApgdPoint, ApgdState, ApgdStep, ImageSet, LossOutputs, Margin, MarginLoss, Noise, TargetClass,
};
use secateur::philox::{Key, Purpose, unit};

use crate::common;

const SEED: u64 = 20_261_121;
const EPSILON: f32 = 8.0 / 255.0;
const ITERATIONS: usize = 100;

// What scripts/make-apgd-fixtures.py says.
const IMAGES: usize = 6;
const HIDDEN: usize = 24;
const CLASSES: usize = 10;
const STRENGTH: f32 = 0.05;
const LEADS: [f64; IMAGES] = [1.0, 3.0, 5.0, 7.0, 9.0, 0.0];
const STRIDE: usize = 97;

fn uniform(purpose: Purpose, sample: u32, count: usize) -> Vec<f32> {
    let key = Key { seed: SEED, purpose, epoch: 0, step: 0 };
    let words = (0..count.div_ceil(4) as u32).flat_map(|block| key.block(sample, block));
    words.take(count).map(|word| 2.0 * unit(word) - 1.0).collect()
}

struct Fixture(Vec<u8>);

impl Fixture {
    fn load() -> Self {
        // Not the folder of the build: this also runs on machines that have the repository elsewhere.
        let path = "tests/fixtures/apgd.safetensors";
        Self(std::fs::read(path).unwrap())
    }

    fn get(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|_| panic!("{name}: not in the fixture"));
        tensor.data().chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    fn words(&self, name: &str) -> Vec<u32> {
        self.get(name).into_iter().map(|value| value as u32).collect()
    }
}

fn engines(classes: usize) -> Vec<Engine> {
    let network = ResNet::resnet18(16, classes);
    [DeviceChoice::Cpu, common::cuda_engine()].map(|choice| open(choice, network, 1).unwrap()).into()
}

/// `z = B sin(A (x - 1/2)) + lead`, in f64.
struct Toy {
    a: Vec<f64>,
    b: Vec<f64>,
    labels: Vec<u32>,
}

impl Toy {
    fn new(labels: Vec<u32>) -> Self {
        let exact = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
        let a = uniform(Purpose::Initialisation, 0, HIDDEN * IMAGE_LEN).into_iter().map(|u| STRENGTH * u);
        Self {
            a: exact(a.collect()),
            b: exact(uniform(Purpose::Initialisation, 1, CLASSES * HIDDEN)),
            labels,
        }
    }

    fn inner(&self, image: &[f32]) -> Vec<f64> {
        let row = |row: &[f64]| row.iter().zip(image).map(|(a, x)| a * (f64::from(*x) - 0.5)).sum();
        self.a.chunks_exact(IMAGE_LEN).map(row).collect()
    }

    fn logits(&self, n: usize, image: &[f32]) -> Vec<f32> {
        let inner = self.inner(image);
        let rows = self.b.chunks_exact(HIDDEN).enumerate().map(|(c, row)| {
            let lead = if c == self.labels[n] as usize { LEADS[n] } else { 0.0 };
            row.iter().zip(&inner).map(|(b, u)| b * u.sin()).sum::<f64>() + lead
        });
        rows.map(|z| z as f32).collect()
    }

    /// From the gradient of the logits to that of the image.
    fn backward(&self, image: &[f32], of_logits: &[f32]) -> Vec<f32> {
        let mut gradient = vec![0.0; IMAGE_LEN];
        for (h, u) in self.inner(image).into_iter().enumerate() {
            let of_hidden: f64 = (0..CLASSES).map(|c| self.b[c * HIDDEN + h] * f64::from(of_logits[c])).sum();
            for (slot, a) in gradient.iter_mut().zip(&self.a[h * IMAGE_LEN..]) {
                *slot += a * of_hidden * u.cos();
            }
        }
        gradient.into_iter().map(|g| g as f32).collect()
    }
}

#[test]
fn every_step_is_that_of_the_published_algorithm() {
    println!("seed {SEED}");
    let fixture = Fixture::load();
    let toy = Toy::new(fixture.words("labels"));
    let images: Vec<f32> = (0..IMAGES as u32)
        .flat_map(|n| uniform(Purpose::Generation, n, IMAGE_LEN))
        .map(|u| 0.5 + 0.5 * u)
        .collect();
    for mut engine in engines(CLASSES) {
        for loss in ["ce", "dlr"] {
            let what = format!("{loss} on {}", engine.device().kind);
            follow(&mut engine, &what, loss, &fixture, &toy, &images);
        }
    }
}

/// Attacks the toy network with the engine's operations and compares every call with the fixture.
fn follow(engine: &mut Engine, what: &str, loss: &str, fixture: &Fixture, toy: &Toy, images: &[f32]) {
    let batch = Batch::alloc(engine, IMAGES).unwrap();
    let state = ApgdState::alloc(engine, IMAGES).unwrap();
    engine.write(&batch.samples, &(0..IMAGES as u32).collect::<Vec<_>>()).unwrap();
    engine.write(&batch.labels, &toy.labels).unwrap();
    engine.write(&batch.images, images).unwrap();
    let targets = engine.upload("targets", &fixture.words("targets")).unwrap();
    let key = Key { seed: SEED, purpose: Purpose::ApgdStart, epoch: 0, step: 0 };
    engine.run(&batch.perturb(Noise::Surface { radius: EPSILON }, key)).unwrap();

    let expected = |name: &str| fixture.get(&format!("{loss}.{name}"));
    let row = |values: &[f32], call: usize| values[call * IMAGES..][..IMAGES].to_vec();
    let (losses, sizes) = (expected("losses"), expected("step_size"));
    let (best, last) = (expected("best_loss"), expected("last_loss"));
    let (increases, broken, points) = (expected("increases"), expected("broken"), expected("points"));
    let point = ApgdPoint {
        images: &batch.images,
        labels: &batch.labels,
        losses: &batch.losses,
        predictions: &batch.predictions,
        perturbed: &batch.perturbed,
    };
    let (mut off, mut seen, mut halvings, mut returns) = (0, 0, 0, 0);
    for (call, phase) in apgd_phases(ITERATIONS).into_iter().enumerate() {
        let actual = engine.read(&batch.perturbed).unwrap();
        let logits: Vec<f32> =
            (0..IMAGES).flat_map(|n| toy.logits(n, &actual[n * IMAGE_LEN..][..IMAGE_LEN])).collect();
        engine.write(&batch.logits, &logits).unwrap();
        match loss {
            "ce" => {
                engine.run(&batch.cross_entropy(1.0)).unwrap();
            }
            _ => {
                let margin = Margin::TargetedDlr { targets: &targets };
                engine
                    .run(&MarginLoss {
                        margin,
                        logits: &batch.logits,
                        labels: &batch.labels,
                        outputs: batch.outputs(),
                    })
                    .unwrap();
            }
        }
        // The decisions are compared on the fixture's losses: near a plateau ours differ from them by more than two
        // neighbours do.
        for (n, (actual, expected)) in
            engine.read(&batch.losses).unwrap().iter().zip(row(&losses, call)).enumerate()
        {
            let bound = 1e-3 * expected.abs().max(1.0);
            assert!(
                (actual - expected).abs() <= bound,
                "{what}, call {call}, image {n}: loss {actual}, {expected}"
            );
        }
        engine.write(&batch.losses, &row(&losses, call)).unwrap();
        let of_logits = engine.read(&batch.logit_gradient).unwrap();
        let gradient: Vec<f32> = (0..IMAGES)
            .flat_map(|n| {
                toy.backward(&actual[n * IMAGE_LEN..][..IMAGE_LEN], &of_logits[n * CLASSES..][..CLASSES])
            })
            .collect();
        engine.write(&state.gradient, &gradient).unwrap();
        engine.run(&ApgdStep { epsilon: EPSILON, phase, point, state: &state }).unwrap();

        let flags = engine.read(&state.broken).unwrap();
        assert_eq!(
            flags,
            row(&broken, call).iter().map(|b| *b as u32).collect::<Vec<_>>(),
            "{what}, call {call}: broken"
        );
        if phase == ApgdPhase::Last {
            break;
        }
        // Powers of two times 2 epsilon: exact.
        assert_eq!(
            engine.read(&state.step_size).unwrap(),
            row(&sizes, call),
            "{what}, call {call}: step sizes"
        );
        let risen: Vec<f32> = engine.read(&state.increases).unwrap().into_iter().map(|n| n as f32).collect();
        assert_eq!(risen, row(&increases, call), "{what}, call {call}: increases");
        for (name, tensor, expected) in [("best", &state.best_loss, &best), ("last", &state.last_loss, &last)]
        {
            assert_eq!(
                engine.read(tensor).unwrap(),
                row(expected, call),
                "{what}, call {call}: {name} losses"
            );
        }
        // A gradient within rounding of zero takes the other sign in f32: a few pixels stand one step elsewhere.
        let moved = engine.read(&batch.perturbed).unwrap();
        let per_image = IMAGE_LEN.div_ceil(STRIDE);
        for n in 0..IMAGES {
            let sampled = moved[n * IMAGE_LEN..][..IMAGE_LEN].iter().step_by(STRIDE);
            let expected = &points[(call * IMAGES + n) * per_image..][..per_image];
            off +=
                sampled.zip(expected).filter(|(actual, expected)| (*actual - *expected).abs() > 1e-6).count();
            seen += per_image;
        }
        if call > 0 {
            let (now, then) = (row(&sizes, call), row(&sizes, call - 1));
            let halved = now.iter().zip(&then).filter(|(now, then)| now < then).count();
            halvings += halved;
            returns += usize::from(halved > 0);
        }
    }
    println!("{what}: {off} of {seen} sampled pixels differ, {halvings} halvings at {returns} checkpoints");
    assert!(off * 1000 <= seen, "{what}: {off} of {seen} sampled pixels differ");
    // Or the fixture shows nothing of the rule.
    let spread: std::collections::BTreeSet<u32> =
        row(&sizes, ITERATIONS - 1).iter().map(|s| s.to_bits()).collect();
    assert!(returns >= 6 && spread.len() >= 2, "{what}: {halvings} halvings at {returns} checkpoints");
    let fooled = row(&broken, ITERATIONS).iter().filter(|b| **b == 1.0).count();
    assert!((1..IMAGES).contains(&fooled), "{what}: {fooled} fooled");
    // What is handed out is wrong in the eyes of the network.
    let actual = engine.read(&batch.perturbed).unwrap();
    for n in 0..IMAGES {
        let image = &actual[n * IMAGE_LEN..][..IMAGE_LEN];
        let logits = toy.logits(n, image);
        let best = (0..CLASSES).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        let wrong = best != toy.labels[n] as usize;
        assert_eq!(wrong, row(&broken, ITERATIONS)[n] == 1.0, "{what}: image {n} as it is handed out");
        let far = image.iter().zip(&images[n * IMAGE_LEN..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(
            far <= EPSILON + 6e-8 && image.iter().all(|x| (0.0..=1.0).contains(x)),
            "{what}: image {n}, {far}"
        );
    }
}

#[test]
fn margin_losses_agree_with_autograd() {
    let fixture = Fixture::load();
    for classes in [4, 10, 100] {
        let of = |name: &str| format!("margin.{classes}.{name}");
        let labels = fixture.words(&of("labels"));
        let rows = labels.len();
        for mut engine in engines(classes) {
            let kind = engine.device().kind;
            let logits = engine.upload("logits", &fixture.get(&of("logits"))).unwrap();
            let labels = engine.upload("labels", &labels).unwrap();
            let targets = engine.upload("targets", &fixture.words(&of("targets"))).unwrap();
            let outputs = |engine: &Engine| -> (Tensor<f32>, Tensor<u32>, Tensor<f32>) {
                let gradient = engine.upload("gradient", &vec![f32::NAN; rows * classes]).unwrap();
                (
                    engine.upload("losses", &vec![f32::NAN; rows]).unwrap(),
                    engine.alloc("predictions", rows).unwrap(),
                    gradient,
                )
            };
            for (name, margin) in [
                ("best_wrong", Margin::BestWrong),
                ("targeted_dlr", Margin::TargetedDlr { targets: &targets }),
            ] {
                let (losses, predictions, gradient) = outputs(&engine);
                let outputs =
                    LossOutputs { losses: &losses, predictions: &predictions, logit_gradient: &gradient };
                engine.run(&MarginLoss { margin, logits: &logits, labels: &labels, outputs }).unwrap();
                let close = |what: &str, actual: Vec<f32>| {
                    let expected = fixture.get(&of(&format!("{name}.{what}")));
                    let scale = expected
                        .iter()
                        .fold(1.0f32, |most, w| most.max(if w.abs() < 1e6 { w.abs() } else { 0.0 }));
                    for (i, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
                        let bound = 3e-6 * expected.abs().max(scale);
                        assert!(
                            (actual - expected).abs() <= bound,
                            "{kind}, {classes} classes, {name}.{what}[{i}]: {actual}, {expected}"
                        );
                    }
                };
                close("losses", engine.read(&losses).unwrap());
                close("gradient", engine.read(&gradient).unwrap());
            }
            let wrong = fixture.words(&of("wrong"));
            let found = engine.alloc("wrong classes", rows).unwrap();
            for rank in 1..classes {
                engine.run(&TargetClass { rank, logits: &logits, labels: &labels, targets: &found }).unwrap();
                let expected: Vec<u32> = (0..rows).map(|n| wrong[n * (classes - 1) + rank - 1]).collect();
                assert_eq!(engine.read(&found).unwrap(), expected, "{kind}, {classes} classes, rank {rank}");
            }
            for rank in [0, classes] {
                let error = engine
                    .run(&TargetClass { rank, logits: &logits, labels: &labels, targets: &found })
                    .unwrap_err()
                    .to_string();
                assert!(error.contains(&format!("rank {rank}")), "{error}");
            }
        }
    }
}

#[test]
fn losses_say_how_many_classes_they_need() {
    for (classes, part) in [(3, "needs 4 classes at least, the network has 3"), (2, "needs 4 classes")] {
        for mut engine in engines(classes) {
            let targets = engine.upload("targets", &[1u32]).unwrap();
            let logits = engine.upload("logits", &vec![0.0; classes]).unwrap();
            let batch = Batch::alloc(&engine, 1).unwrap();
            engine.write(&batch.labels, &[0]).unwrap();
            let margin = Margin::TargetedDlr { targets: &targets };
            let error = engine
                .run(&MarginLoss { margin, logits: &logits, labels: &batch.labels, outputs: batch.outputs() })
                .unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            engine
                .run(&MarginLoss {
                    margin: Margin::BestWrong,
                    logits: &logits,
                    labels: &batch.labels,
                    outputs: batch.outputs(),
                })
                .unwrap();
        }
    }
}

const TESTED: usize = 16;

/// An untrained network with BatchNorm statistics that fit, and images that it predicts right: the labels are its own words.
fn network_and_images() -> (Engine, Batch) {
    let network = ResNet::resnet18(16, 10);
    let mut engine = open(DeviceChoice::Cpu, network, TESTED).unwrap();
    engine.load_weights(&initialise(network, SEED)).unwrap();
    let images = generated::images(Part::Test, TESTED);
    let set = ImageSet::upload(&engine, &images.pixels, &images.labels).unwrap();
    let batch = Batch::alloc(&engine, TESTED).unwrap();
    engine.write(&batch.samples, &(0..TESTED as u32).collect::<Vec<_>>()).unwrap();
    engine.run(&batch.gather(&set, None)).unwrap();
    for _ in 0..30 {
        engine.forward(Pass::Train { slot: 0 }, &batch.images, &batch.logits).unwrap();
    }
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    right(&mut engine, &batch, &batch.images);
    let words = engine.read(&batch.predictions).unwrap();
    engine.write(&batch.labels, &words).unwrap();
    (engine, batch)
}

fn right(engine: &mut Engine, batch: &Batch, images: &Tensor<f32>) -> Vec<bool> {
    engine.forward(Pass::Eval, images, &batch.logits).unwrap();
    engine.run(&batch.cross_entropy(1.0)).unwrap();
    let (predictions, labels) =
        (engine.read(&batch.predictions).unwrap(), engine.read(&batch.labels).unwrap());
    predictions.iter().zip(&labels).map(|(prediction, label)| prediction == label).collect()
}

fn search(engine: &mut Engine, attack: &mut Apgd, batch: &Batch) -> Found {
    let key = Key { seed: SEED, purpose: Purpose::EvaluationStart, epoch: 1, step: 0 };
    attack.search(engine, key, batch).unwrap()
}

#[test]
fn what_is_found_fools_the_network_and_does_not_depend_on_the_batch() {
    println!("seed {SEED}");
    let (mut engine, batch) = network_and_images();
    let engine = &mut engine;
    let count = batch.len();
    // A ball in which some images are robust.
    let epsilon = 0.5 / 255.0;
    let images = engine.read(&batch.images).unwrap();
    for (name, make) in [("ce", Apgd::cross_entropy as fn(f32) -> Apgd), ("t", Apgd::targeted)] {
        let mut attack = make(epsilon).with_iterations(7);
        let found = search(engine, &mut attack, &batch);
        let fooled = found.broken.iter().filter(|broken| **broken).count();
        println!("apgd-{name}: {fooled} of {count} fooled, {:?}", found.cost);
        assert!((1..count).contains(&fooled), "apgd-{name}: {fooled} of {count}: this shows nothing");
        let perturbed = engine.read(&batch.perturbed).unwrap();
        for (i, (x, moved)) in images.iter().zip(&perturbed).enumerate() {
            let far = (x - moved).abs();
            assert!(
                far <= epsilon + 1.2e-7 && (0.0..=1.0).contains(moved),
                "apgd-{name}: element {i} moved {far}"
            );
        }
        let right = right(engine, &batch, &batch.perturbed);
        let wrong: Vec<bool> = right.iter().map(|right| !right).collect();
        assert_eq!(wrong, found.broken, "apgd-{name}");
        match name {
            "ce" => {
                assert_eq!((found.cost.forwards, found.cost.backwards), (8 * count as u64, 7 * count as u64));
            }
            _ => {
                let runs = found.cost.backwards / 7;
                assert_eq!((found.cost.backwards % 7, found.cost.forwards), (0, 8 * runs + count as u64));
                let survivors = (count - fooled) as u64;
                assert!(runs >= 9 * survivors + fooled as u64 && runs < 9 * count as u64, "{runs} runs");
            }
        }
        // Three and two at a time, by an attack that has seen others before.
        for size in [3, 2] {
            for part in batch.parts(size) {
                let alone = search(engine, &mut attack, &part);
                let start = engine.read(&part.samples).unwrap()[0];
                let at = engine.read(&batch.samples).unwrap().iter().position(|s| *s == start).unwrap();
                assert_eq!(alone.broken, found.broken[at..at + part.len()], "apgd-{name}, {size} at a time");
                let (actual, range) =
                    (engine.read(&part.perturbed).unwrap(), at * IMAGE_LEN..(at + part.len()) * IMAGE_LEN);
                assert!(actual == perturbed[range], "apgd-{name}, {size} at a time: the images differ");
            }
        }
    }
}

#[test]
fn what_the_network_says_of_an_image_has_the_same_bits_in_every_batch() {
    println!("seed {SEED}");
    let (mut engine, batch) = network_and_images();
    let engine = &mut engine;
    let gradient = engine.alloc("gradient", TESTED * IMAGE_LEN).unwrap();
    let mut said = |range: std::ops::Range<usize>| {
        let part = batch.rows(range.clone());
        engine.forward(Pass::Eval, &part.images, &part.logits).unwrap();
        engine
            .run(&MarginLoss {
                margin: Margin::BestWrong,
                logits: &part.logits,
                labels: &part.labels,
                outputs: part.outputs(),
            })
            .unwrap();
        let gradient = gradient.rows(range, IMAGE_LEN);
        engine.backward(Pass::Eval, &part.logit_gradient, GradRequest::images(&gradient)).unwrap();
        (engine.read(&part.logits).unwrap(), engine.read(&gradient).unwrap())
    };
    let (logits, gradients) = said(0..TESTED);
    for size in [1, 2, 3, 5, 12] {
        for start in (0..TESTED).step_by(size) {
            let end = TESTED.min(start + size);
            let (z, g) = said(start..end);
            assert!(z == logits[start * 10..end * 10], "logits of images {start}..{end}");
            assert!(g == gradients[start * IMAGE_LEN..end * IMAGE_LEN], "gradients of images {start}..{end}");
        }
    }
}
