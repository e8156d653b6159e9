//! The reference engine by itself: finite differences, data and attack moves against their documented definitions,
//! ranking against sorting, determinism, and misuse.
//!
//! Every test prints its seed; outputs are NaN before they are written, because the engine's fresh memory is.

use secateur::batch::Batch;
use secateur::engine::{DeviceChoice, Engine, Error, GradRequest, Pass, Sgd, SignStep, WeightSet, open};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ResNet, Weights};
use secateur::ops::{
    Augment, CrossEntropy, GatherImages, ImageSet, Noise, Padding, Perturb, SelectAtLeast, SelectTopK,
};
use secateur::philox::{Key, Purpose, symmetric, unit};

const NETWORK: ResNet = ResNet::resnet18(16, 10);
const SEED: u64 = 41;

fn key(purpose: Purpose) -> Key {
    println!("seed {SEED}");
    Key { seed: SEED, purpose, epoch: 2, step: 1 }
}

/// Uniform on [0, 1).
fn uniform(purpose: Purpose, sample: u32, count: usize) -> Vec<f32> {
    let key = key(purpose);
    let words = (0..count.div_ceil(4) as u32).flat_map(|block| key.block(sample, block));
    words.take(count).map(unit).collect()
}

fn weights() -> Weights {
    let mut weights = Weights::default();
    for (position, parameter) in NETWORK.parameters().iter().enumerate() {
        let fan_in: usize = parameter.shape[1..].iter().product();
        let radius = (3.0 / fan_in as f32).sqrt();
        let values = uniform(Purpose::Initialisation, position as u32, parameter.len()).into_iter();
        let one = parameter.name.ends_with("running_var") || parameter.name.ends_with(".weight");
        let values = match parameter.shape.len() {
            1 if one => values.map(|u| 0.8 + 0.4 * u).collect(),
            1 => values.map(|u| 0.4 * u - 0.2).collect(),
            _ => values.map(|u| radius * (2.0 * u - 1.0)).collect(),
        };
        weights.insert(&parameter.name, &parameter.shape, values);
    }
    weights
}

fn engine(max_batch: usize) -> Engine {
    let mut engine = open(DeviceChoice::Cpu, NETWORK, max_batch).unwrap();
    engine.load_weights(&weights()).unwrap();
    engine
}

/// Random images and their labels; `perturbed` takes input gradients.
fn new_batch(engine: &Engine, count: usize) -> Batch {
    let batch = Batch::alloc(engine, count).unwrap();
    let pixels: Vec<f32> =
        (0..count as u32).flat_map(|n| uniform(Purpose::Generation, n, IMAGE_LEN)).collect();
    let labels: Vec<u32> = (0..count as u32).map(|n| (n * 7 + 3) % 10).collect();
    engine.write(&batch.images, &pixels).unwrap();
    engine.write(&batch.labels, &labels).unwrap();
    batch
}

/// Sum of the losses of a pass; leaves its gradient.
fn loss(engine: &mut Engine, batch: &Batch, pass: Pass) -> f64 {
    if pass == Pass::Eval {
        engine.fold_batch_norm(WeightSet::Live).unwrap();
    }
    engine.forward(pass, &batch.images, &batch.logits).unwrap();
    engine.run(&CrossEntropy { smoothing: 0.1, ..batch.cross_entropy(1.0) }).unwrap();
    engine.read(&batch.losses).unwrap().iter().map(|&loss| f64::from(loss)).sum()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[test]
fn cross_entropy_against_f64_and_its_differences() {
    let (classes, count) = (10, 6);
    let mut engine = engine(count);
    let batch = new_batch(&engine, count);
    let logits: Vec<f32> =
        uniform(Purpose::Order, 0, count * classes).iter().map(|u| 12.0 * u - 6.0).collect();
    let factors: Vec<f32> = uniform(Purpose::Order, 1, count);
    engine.write(&batch.logits, &logits).unwrap();
    let weights = engine.upload("weights", &factors).unwrap();
    let labels = engine.read(&batch.labels).unwrap();
    for smoothing in [0.0f32, 0.3] {
        engine
            .run(&CrossEntropy { smoothing, weights: Some(&weights), ..batch.cross_entropy(0.25) })
            .unwrap();
        let (losses, gradient) =
            (engine.read(&batch.losses).unwrap(), engine.read(&batch.logit_gradient).unwrap());
        let predictions = engine.read(&batch.predictions).unwrap();
        let s = f64::from(smoothing);
        let value = |z: &[f64], label: usize| {
            let total = z.iter().map(|z| z.exp()).sum::<f64>().ln();
            total - (1.0 - s) * z[label] - s / classes as f64 * z.iter().sum::<f64>()
        };
        for n in 0..count {
            let z: Vec<f64> = logits[n * classes..][..classes].iter().map(|&z| f64::from(z)).collect();
            let label = labels[n] as usize;
            assert!((f64::from(losses[n]) - value(&z, label)).abs() < 5e-6, "loss {n}: {}", losses[n]);
            let best = (0..classes).fold(0, |best, c| if z[c] > z[best] { c } else { best });
            assert_eq!(predictions[n] as usize, best);
            for c in 0..classes {
                let moved = |by: f64| {
                    let mut z = z.clone();
                    z[c] += by;
                    value(&z, label)
                };
                let expected = 0.25 * f64::from(factors[n]) * (moved(1e-5) - moved(-1e-5)) / 2e-5;
                let actual = f64::from(gradient[n * classes + c]);
                assert!((actual - expected).abs() < 1e-6, "sample {n}, class {c}: {actual} for {expected}");
            }
        }
    }
}

#[test]
fn equal_logits_predict_the_lowest_class() {
    let mut engine = engine(1);
    let batch = new_batch(&engine, 1);
    engine.write(&batch.logits, &[1.0, 3.0, 3.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]).unwrap();
    engine.run(&batch.cross_entropy(1.0)).unwrap();
    assert_eq!(engine.read(&batch.predictions).unwrap(), [1]);
}

#[test]
fn input_gradient_is_the_slope_of_the_loss() {
    let mut engine = engine(3);
    let batch = new_batch(&engine, 3);
    for pass in [Pass::Eval, Pass::Train { slot: 1 }] {
        let pixels = engine.read(&batch.images).unwrap();
        loss(&mut engine, &batch, pass);
        engine.backward(pass, &batch.logit_gradient, GradRequest::images(&batch.perturbed)).unwrap();
        let gradient = engine.read(&batch.perturbed).unwrap();
        // Along the gradient itself, far enough to move the loss by 0.01: the slope is its squared norm.
        let norm = dot(&gradient, &gradient).sqrt();
        let h = 1e-2 / (norm * norm) as f32;
        let mut at = |h: f32| {
            let moved: Vec<f32> = pixels.iter().zip(&gradient).map(|(x, g)| x + h * g).collect();
            engine.write(&batch.images, &moved).unwrap();
            loss(&mut engine, &batch, pass)
        };
        let slope = (at(h) - at(-h)) / (2.0 * f64::from(h));
        engine.write(&batch.images, &pixels).unwrap();
        println!("{pass:?}: slope {slope:e}, squared norm {:e}", norm * norm);
        assert!((slope / (norm * norm) - 1.0).abs() < 0.02, "{pass:?}: {slope} for {}", norm * norm);
    }
}

#[test]
fn parameter_gradients_are_slopes_of_the_loss() {
    let mut engine = engine(3);
    let batch = new_batch(&engine, 3);
    let pass = Pass::Train { slot: 0 };
    let start = weights();
    loss(&mut engine, &batch, pass);
    engine.backward(pass, &batch.logit_gradient, GradRequest::PARAMETERS).unwrap();
    let gradients = engine.weights(WeightSet::Gradients).unwrap();
    for name in [
        "conv1.weight",
        "layer1.1.bn2.bias",
        "layer2.0.shortcut.0.weight",
        "layer3.0.conv1.weight",
        "layer3.1.bn1.weight",
        "layer4.1.conv2.weight",
        "linear.weight",
        "linear.bias",
    ] {
        let gradient = &gradients.tensors[name].values;
        let norm = dot(gradient, gradient).sqrt();
        let h = 2e-3 / (norm * norm) as f32;
        let mut at = |h: f32| {
            let mut moved = start.clone();
            let tensor = moved.tensors.get_mut(name).unwrap();
            tensor.values.iter_mut().zip(gradient).for_each(|(w, g)| *w += h * g);
            engine.load_weights(&moved).unwrap();
            loss(&mut engine, &batch, pass)
        };
        let slope = (at(h) - at(-h)) / (2.0 * f64::from(h));
        println!("{name}: slope {slope:e}, squared norm {:e}", norm * norm);
        assert!((slope / (norm * norm) - 1.0).abs() < 0.03, "{name}: {slope} for {}", norm * norm);
    }
}

#[test]
fn gather_follows_its_definition() {
    let mut engine = engine(4);
    let bytes: Vec<u8> =
        uniform(Purpose::Generation, 9, 5 * IMAGE_LEN).iter().map(|u| (u * 256.0) as u8).collect();
    let set = ImageSet::upload(&engine, &bytes, &[4, 3, 2, 1, 0]).unwrap();
    let chosen = [3u32, 0, 3, 4];
    let samples = engine.upload("samples", &chosen).unwrap();
    let images = engine.alloc("images", 4 * IMAGE_LEN).unwrap();
    let labels = engine.alloc("labels", 4).unwrap();
    for epoch in 0..20 {
        let augment = (epoch > 0).then_some(Augment { seed: SEED, epoch, padding: Padding::Zero });
        engine
            .run(&GatherImages { set: &set, samples: &samples, augment, images: &images, labels: &labels })
            .unwrap();
        assert_eq!(engine.read(&labels).unwrap(), [1, 4, 1, 0]);
        let actual: Vec<f32> = engine.read(&images).unwrap();
        for (n, &sample) in chosen.iter().enumerate() {
            let words = Key { seed: SEED, purpose: Purpose::Augment, epoch, step: 0 }.block(sample, 0);
            let (row, column, flip) = match augment {
                Some(_) => ((words[0] % 9) as isize, (words[1] % 9) as isize, words[2] & 1 == 1),
                None => (4, 4, false),
            };
            for at in 0..IMAGE_LEN as isize {
                let (h, w, c) = (at / 96, at / 3 % 32, at % 3);
                let (y, x) = (h + row - 4, if flip { 31 - w } else { w } + column - 4);
                let inside = (0..32).contains(&y) && (0..32).contains(&x);
                let expected = if inside {
                    f32::from(bytes[sample as usize * IMAGE_LEN + (c * 1024 + y * 32 + x) as usize]) / 255.0
                } else {
                    0.0
                };
                assert_eq!(
                    actual[n * IMAGE_LEN + at as usize],
                    expected,
                    "epoch {epoch}, sample {sample}, element {at}"
                );
            }
        }
    }
}

#[test]
fn random_starts_depend_on_the_sample_alone() {
    let mut engine = engine(3);
    let mut pixels: Vec<f32> = uniform(Purpose::Generation, 1, IMAGE_LEN).repeat(3);
    // Some of them black, some white.
    for (at, pixel) in pixels.iter_mut().enumerate() {
        *pixel = match at % 16 {
            0 => 0.0,
            1 => 1.0,
            _ => *pixel,
        };
    }
    let images = engine.upload("images", &pixels).unwrap();
    let perturbed = engine.alloc("perturbed", 3 * IMAGE_LEN).unwrap();
    let (radius, key) = (8.0 / 255.0, key(Purpose::AttackStart));
    for noise in [Noise::Uniform { radius }, Noise::Normal { deviation: 0.001 }, Noise::Surface { radius }] {
        let mut draw = |samples: [u32; 3]| {
            let samples = engine.upload("samples", &samples).unwrap();
            engine
                .run(&Perturb { noise, key, samples: &samples, images: &images, perturbed: &perturbed })
                .unwrap();
            engine.read(&perturbed).unwrap()
        };
        let (first, second) = (draw([7, 8, 9]), draw([9, 7, 1]));
        assert_eq!(first[..IMAGE_LEN], second[IMAGE_LEN..2 * IMAGE_LEN]);
        assert_eq!(first[2 * IMAGE_LEN..], second[..IMAGE_LEN]);
        assert_ne!(first[..IMAGE_LEN], first[IMAGE_LEN..2 * IMAGE_LEN]);
        let moved: Vec<f64> = first.iter().zip(&pixels).map(|(a, b)| f64::from(a - b)).collect();
        match noise {
            Noise::Uniform { radius } => {
                for (at, (x, actual)) in pixels.iter().zip(&first).take(IMAGE_LEN).enumerate() {
                    let noise = symmetric(key.block(7, at as u32 / 4)[at % 4], radius);
                    assert_eq!(*actual, (x + noise).clamp(0.0, 1.0), "element {at}");
                }
            }
            Noise::Surface { radius } => {
                let t: Vec<f32> = (0..IMAGE_LEN as u32 / 4)
                    .flat_map(|block| key.block(7, block))
                    .map(|word| symmetric(word, 1.0))
                    .collect();
                let largest = t.iter().fold(0.0f32, |largest, t| largest.max(t.abs()));
                for (at, (x, actual)) in pixels.iter().zip(&first).take(IMAGE_LEN).enumerate() {
                    assert_eq!(*actual, (x + radius * (t[at] / largest)).clamp(0.0, 1.0), "element {at}");
                }
            }
            Noise::Normal { deviation } => {
                // Not clipped: black and white pixels move out of [0, 1]. 9,216 draws: mean within 5 standard errors,
                // deviation within 5 %.
                assert!(first.iter().any(|x| *x < 0.0) && first.iter().any(|x| *x > 1.0), "clipped");
                let count = moved.len() as f64;
                let mean = moved.iter().sum::<f64>() / count;
                let actual = (moved.iter().map(|d| d * d).sum::<f64>() / count).sqrt();
                assert!(mean.abs() < 5.0 * f64::from(deviation) / count.sqrt(), "mean {mean}");
                assert!((actual / f64::from(deviation) - 1.0).abs() < 0.05, "deviation {actual}");
            }
        }
    }
}

#[test]
fn attack_steps_stay_in_the_ball_and_raise_the_loss() {
    let mut engine = engine(4);
    let batch = new_batch(&engine, 4);
    let epsilon = 8.0 / 255.0;
    let clean = engine.read(&batch.images).unwrap();
    let images = engine.upload("clean images", &clean).unwrap();
    let first = loss(&mut engine, &batch, Pass::Eval);
    for _ in 0..5 {
        engine.backward(Pass::Eval, &batch.logit_gradient, GradRequest::images(&batch.perturbed)).unwrap();
        let before = engine.read(&batch.images).unwrap();
        let step = SignStep { step_size: 2.5 / 255.0, epsilon };
        engine
            .backward(Pass::Eval, &batch.logit_gradient, GradRequest::step(step, &images, &batch.images))
            .unwrap();
        let gradient = engine.read(&batch.perturbed).unwrap();
        let after = engine.read(&batch.images).unwrap();
        for at in 0..clean.len() {
            let sign = if gradient[at] > 0.0 {
                1.0
            } else if gradient[at] < 0.0 {
                -1.0
            } else {
                0.0
            };
            let moved = before[at] + step.step_size * sign;
            let expected = moved.max(clean[at] - epsilon).min(clean[at] + epsilon).clamp(0.0, 1.0);
            assert_eq!(after[at], expected, "element {at}");
            assert!((after[at] - clean[at]).abs() <= epsilon + 1e-7 && (0.0..=1.0).contains(&after[at]));
        }
        loss(&mut engine, &batch, Pass::Eval);
    }
    let last = loss(&mut engine, &batch, Pass::Eval);
    assert!(last > first, "loss {first} before, {last} after five steps");
}

#[test]
fn a_zero_gradient_moves_nothing() {
    let mut engine = engine(1);
    let batch = new_batch(&engine, 1);
    loss(&mut engine, &batch, Pass::Eval);
    engine.write(&batch.logit_gradient, &[0.0; 10]).unwrap();
    let before = engine.read(&batch.images).unwrap();
    let images = engine.upload("clean images", &before).unwrap();
    let step = SignStep { step_size: 0.1, epsilon: f32::INFINITY };
    engine
        .backward(Pass::Eval, &batch.logit_gradient, GradRequest::step(step, &images, &batch.images))
        .unwrap();
    assert_eq!(engine.read(&batch.images).unwrap(), before);
}

#[test]
fn ranking_agrees_with_sorting() {
    let mut engine = engine(1);
    for (round, count) in [1usize, 2, 17, 1000, 4099].into_iter().enumerate() {
        // Few distinct values: many ties.
        let values: Vec<f32> =
            uniform(Purpose::Order, round as u32, count).iter().map(|u| (u * 20.0).floor() - 5.0).collect();
        let tensor = engine.upload("values", &values).unwrap();
        let mut order: Vec<u32> = (0..count as u32).collect();
        order.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]).then(a.cmp(&b)));
        for k in [0, 1, count / 3, count - 1, count] {
            let top = engine.alloc::<u32>("top", k).unwrap();
            engine.run(&SelectTopK { values: &tensor, top: &top }).unwrap();
            let mut expected = order[..k].to_vec();
            expected.sort();
            assert_eq!(engine.read(&top).unwrap(), expected, "{k} of {count}");
        }
        for threshold in [-6.0, 0.0, 3.0, 100.0] {
            let positions = engine.alloc::<u32>("positions", count).unwrap();
            let actual =
                engine.run(&SelectAtLeast { values: &tensor, threshold, positions: &positions }).unwrap();
            let expected: Vec<u32> =
                (0..count as u32).filter(|&at| values[at as usize] >= threshold).collect();
            assert_eq!(engine.read(&positions).unwrap()[..actual], expected);
        }
    }
    let values = engine.upload("values", &[1.0, f32::NAN, 2.0]).unwrap();
    let positions = engine.alloc::<u32>("positions", 3).unwrap();
    let errors = [
        engine.run(&SelectTopK { values: &values, top: &positions }),
        engine.run(&SelectAtLeast { values: &values, threshold: 0.0, positions: &positions }).map(drop),
    ];
    for error in errors {
        assert!(matches!(error, Err(Error::NotANumber { tensor: "values", position: 1 })), "{error:?}");
    }
}

/// One attack step and two training steps; everything that came out.
fn everything(device: DeviceChoice) -> (Vec<f32>, Weights) {
    let mut engine = open(device, NETWORK, 5).unwrap();
    engine.load_weights(&weights()).unwrap();
    let batch = new_batch(&engine, 5);
    let images = engine.upload("clean images", &engine.read(&batch.images).unwrap()).unwrap();
    loss(&mut engine, &batch, Pass::Eval);
    let step = SignStep { step_size: 0.01, epsilon: 0.03 };
    engine
        .backward(Pass::Eval, &batch.logit_gradient, GradRequest::step(step, &images, &batch.images))
        .unwrap();
    let sgd =
        Sgd { learning_rate: 0.01, momentum: 0.9, weight_decay: 5e-4, average_decay: Some(0.9), ..Sgd::ZERO };
    for _ in 0..2 {
        loss(&mut engine, &batch, Pass::Train { slot: 0 });
        engine.backward(Pass::Train { slot: 0 }, &batch.logit_gradient, GradRequest::PARAMETERS).unwrap();
        engine.step(&sgd).unwrap();
    }
    (engine.read(&batch.images).unwrap(), engine.weights(WeightSet::Average).unwrap())
}

#[test]
fn bits_do_not_depend_on_the_threads() {
    for device in [DeviceChoice::Cpu, DeviceChoice::CpuBf16] {
        let first = everything(device);
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(
                pool.install(|| everything(device)) == first,
                "{device:?}: {threads} threads gave other bits"
            );
        }
    }
}

#[test]
fn optimizer_state_survives_the_round_trip() {
    let mut engine = engine(2);
    let batch = new_batch(&engine, 2);
    let sgd =
        Sgd { learning_rate: 0.01, momentum: 0.9, weight_decay: 5e-4, average_decay: Some(0.9), ..Sgd::ZERO };
    let step = |engine: &mut Engine| {
        loss(engine, &batch, Pass::Train { slot: 0 });
        engine.backward(Pass::Train { slot: 0 }, &batch.logit_gradient, GradRequest::PARAMETERS).unwrap();
        engine.step(&sgd).unwrap();
    };
    step(&mut engine);
    let (live, state) = (engine.weights(WeightSet::Live).unwrap(), engine.optimizer().unwrap());
    step(&mut engine);
    let expected = (engine.weights(WeightSet::Live).unwrap(), engine.optimizer().unwrap());
    engine.load_weights(&live).unwrap();
    engine.load_optimizer(&state).unwrap();
    step(&mut engine);
    assert!((engine.weights(WeightSet::Live).unwrap(), engine.optimizer().unwrap()) == expected);
}

fn refused(result: secateur::engine::Result<()>, part: &str) {
    match result {
        Err(Error::Invalid(text)) => assert!(text.contains(part), "'{text}' does not say '{part}'"),
        other => panic!("expected Error::Invalid with '{part}', got {other:?}"),
    }
}

#[test]
fn misuse_is_an_error() {
    let mut engine = open(DeviceChoice::Cpu, NETWORK, 2).unwrap();
    let batch = new_batch(&engine, 2);
    refused(engine.forward(Pass::Eval, &batch.images, &batch.logits), "load_weights");
    engine.load_weights(&weights()).unwrap();
    refused(engine.forward(Pass::Eval, &batch.images, &batch.logits), "fold_batch_norm");
    refused(engine.forward(Pass::Train { slot: 2 }, &batch.images, &batch.logits), "slot 2");
    refused(
        engine.backward(Pass::Eval, &batch.logit_gradient, GradRequest::images(&batch.perturbed)),
        "no forward pass",
    );
    let pass = Pass::Train { slot: 0 };
    refused(engine.backward(pass, &batch.logit_gradient, GradRequest::PARAMETERS), "no forward pass");
    let sgd = Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.0, ..Sgd::ZERO };
    refused(engine.step(&sgd), "no parameter gradients");
    refused(engine.fold_batch_norm(WeightSet::Average), "no moving average");
    loss(&mut engine, &batch, pass);
    refused(
        engine.backward(pass, &batch.logit_gradient, GradRequest::ADD_PARAMETERS),
        "no parameter gradients",
    );
    engine.backward(pass, &batch.logit_gradient, GradRequest::PARAMETERS).unwrap();
    engine.step(&sgd).unwrap();
    refused(engine.backward(pass, &batch.logit_gradient, GradRequest::PARAMETERS), "no forward pass");
    refused(engine.forward(Pass::Eval, &batch.images, &batch.logits), "fold_batch_norm");

    let short = batch.images.slice(0..IMAGE_LEN);
    let error = engine.forward(pass, &short, &batch.logits);
    assert!(
        matches!(error, Err(Error::Length { tensor: "batch logits", actual: 20, expected: 10 })),
        "{error:?}"
    );
    let three = engine.alloc::<f32>("three images", 3 * IMAGE_LEN).unwrap();
    refused(engine.forward(pass, &three, &batch.logits), "expected 1 to 2");
    let other = open(DeviceChoice::Cpu, NETWORK, 2).unwrap();
    let foreign = other.alloc::<f32>("foreign", 2 * IMAGE_LEN).unwrap();
    let error = engine.forward(pass, &foreign, &batch.logits);
    assert!(matches!(error, Err(Error::ForeignTensor { tensor: "foreign" })), "{error:?}");
}
