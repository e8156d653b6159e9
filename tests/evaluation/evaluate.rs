//! Attacks and protocols on the reference engine: the ball, the counts, the restarts.
//!
//! The network is an untrained one: its gradients point somewhere, and the labels are mostly its own predictions.

use secateur::attack::Pgd;
use secateur::batch::Batch;
use secateur::data::generated::{self, Part};
use secateur::engine::{DeviceChoice, Engine, Pass, SignStep, WeightSet, open};
use secateur::evaluate::sanity::alarms;
use secateur::evaluate::{Outcome, Protocol, Subject, evaluate};
use secateur::model::{ResNet, Weights, initialise};
use secateur::ops::{AscentLoss, ImageSet, Noise};
use secateur::philox::{Key, Purpose};

const SEED: u64 = 20261121;
const EPSILON: f32 = 8.0 / 255.0;
const TESTED: usize = 60;

/// Radius of the protocols: small enough that some images are robust in a network that knows nothing.
const RADIUS: f32 = 0.3 / 255.0;

/// An untrained network with BatchNorm statistics that fit, and images labelled as it predicts them, but for every fourth.
fn prepared() -> (Engine, ImageSet) {
    let network = ResNet::resnet18(16, 10);
    let mut engine = open(DeviceChoice::Cpu, network, TESTED).unwrap();
    engine.load_weights(&initialise(network, SEED)).unwrap();
    let test = generated::images(Part::Test, TESTED);
    let mut set = ImageSet::upload(&engine, &test.pixels, &test.labels).unwrap();
    let batch = gathered(&mut engine, &set, TESTED);
    for _ in 0..30 {
        engine.forward(Pass::Train { slot: 0 }, &batch.images, &batch.logits).unwrap();
    }
    // The classes have the same mean logit, so that the predictions differ.
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    evaluated(&mut engine, &batch, false);
    let logits = engine.read(&batch.logits).unwrap();
    let mean = |class: usize| logits.iter().skip(class).step_by(10).sum::<f32>() / TESTED as f32;
    let mut weights = engine.weights(WeightSet::Live).unwrap();
    for (class, bias) in weights.tensors.get_mut("linear.bias").unwrap().values.iter_mut().enumerate() {
        *bias -= mean(class);
    }
    engine.load_weights(&weights).unwrap();
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    let (_, mut labels) = evaluated(&mut engine, &batch, false);
    for label in labels.iter_mut().step_by(4) {
        *label = (*label + 1) % 10;
    }
    set.labels = engine.upload("labels", &labels).unwrap();
    (engine, set)
}

fn gathered(engine: &mut Engine, set: &ImageSet, count: usize) -> Batch {
    let batch = Batch::alloc(engine, count).unwrap();
    let samples: Vec<u32> = (0..count as u32).collect();
    engine.write(&batch.samples, &samples).unwrap();
    engine.run(&batch.gather(set, None)).unwrap();
    batch
}

/// Losses and predictions of the images in eval mode.
fn evaluated(engine: &mut Engine, batch: &Batch, perturbed: bool) -> (Vec<f32>, Vec<u32>) {
    let images = if perturbed { &batch.perturbed } else { &batch.images };
    engine.forward(Pass::Eval, images, &batch.logits).unwrap();
    engine.run(&batch.cross_entropy(1.0)).unwrap();
    (engine.read(&batch.losses).unwrap(), engine.read(&batch.predictions).unwrap())
}

fn run(engine: &mut Engine, set: &ImageSet, samples: &[u32], protocol: &str, batch: usize) -> Outcome {
    let scratch = Batch::alloc(engine, batch).unwrap();
    let subject = Subject { set, samples, weights: WeightSet::Live, epsilon: RADIUS, seed: SEED };
    let protocol: Protocol = protocol.parse().unwrap();
    evaluate(engine, subject, &protocol, &scratch, &mut |_, _| true).unwrap().unwrap()
}

#[test]
fn attacks_stay_in_the_ball_and_in_the_image_range_and_raise_the_loss() {
    println!("seed {SEED}");
    let (mut engine, set) = prepared();
    let engine = &mut engine;
    let batch = gathered(engine, &set, TESTED);
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    let (clean, _) = evaluated(engine, &batch, false);
    let images = engine.read(&batch.images).unwrap();
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;

    let starts = [None, Some(Noise::Uniform { radius: EPSILON }), Some(Noise::Normal { deviation: 0.001 })];
    for (case, start) in starts.into_iter().enumerate() {
        // 7/255 overshoots the ball in every second step.
        for step_size in [2.0 / 255.0, 7.0 / 255.0] {
            let step = SignStep { step_size, epsilon: EPSILON };
            let pgd = Pgd { start, step, steps: 5, pass: Pass::Eval };
            let key = Key { seed: SEED, purpose: Purpose::AttackStart, epoch: 1, step: 0 };
            engine.write(&batch.perturbed, &vec![f32::NAN; images.len()]).unwrap();
            pgd.perturb(engine, AscentLoss::CrossEntropy, key, &batch).unwrap();
            let perturbed = engine.read(&batch.perturbed).unwrap();
            let mut moved = 0;
            for (position, (x, x_adv)) in images.iter().zip(&perturbed).enumerate() {
                assert!((0.0..=1.0).contains(x_adv), "case {case}, position {position}: {x_adv}");
                // One rounding of x + epsilon, whose magnitude is at most 2.
                let distance = (x_adv - x).abs();
                assert!(distance <= EPSILON + 2.4e-7, "case {case}, position {position}: {distance}");
                moved += usize::from(distance > 0.0);
            }
            assert!(moved * 10 > images.len() * 9, "case {case}: only {moved} of {} moved", images.len());
            let (losses, _) = evaluated(engine, &batch, true);
            let (before, after) = (mean(&clean), mean(&losses));
            assert!(after > before + 0.05, "case {case}: loss {before} to {after}");
        }
    }
}

#[test]
fn no_start_and_no_steps_is_the_clean_image() {
    let (mut engine, set) = prepared();
    let engine = &mut engine;
    let batch = gathered(engine, &set, 7);
    let step = SignStep { step_size: 0.01, epsilon: EPSILON };
    let pgd = Pgd { start: None, step, steps: 0, pass: Pass::Eval };
    let key = Key { seed: SEED, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
    pgd.perturb(engine, AscentLoss::CrossEntropy, key, &batch).unwrap();
    assert_eq!(engine.read(&batch.perturbed).unwrap(), engine.read(&batch.images).unwrap());
}

#[test]
fn only_an_attack_in_train_mode_moves_the_running_statistics() {
    let (mut engine, set) = prepared();
    let engine = &mut engine;
    let batch = gathered(engine, &set, 16);
    let key = Key { seed: SEED, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
    let step = SignStep { step_size: 2.0 / 255.0, epsilon: EPSILON };
    for pass in [Pass::Eval, Pass::Train { slot: 0 }] {
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        let before = engine.weights(WeightSet::Live).unwrap();
        let start = Some(Noise::Uniform { radius: EPSILON });
        let pgd = Pgd { start, step, steps: 2, pass };
        pgd.perturb(engine, AscentLoss::CrossEntropy, key, &batch).unwrap();
        let after = engine.weights(WeightSet::Live).unwrap();
        let changed: Vec<&String> = before
            .tensors
            .iter()
            .filter(|(name, tensor)| after.tensors[*name] != **tensor)
            .map(|(name, _)| name)
            .collect();
        match pass {
            Pass::Eval => assert!(changed.is_empty(), "{changed:?}"),
            _ => {
                assert_eq!(changed.len(), 40, "{changed:?}");
                assert!(changed.iter().all(|name| name.contains("running")), "{changed:?}");
            }
        }
    }
}

#[test]
fn counts_are_those_of_a_plain_recomputation() {
    let (mut engine, set) = prepared();
    let engine = &mut engine;
    let samples: Vec<u32> = (0..TESTED as u32).collect();
    // 17 does not divide 60: the last batch is smaller.
    let outcome = run(engine, &set, &samples, "clean", 17);
    let batch = gathered(engine, &set, TESTED);
    let (_, predictions) = evaluated(engine, &batch, false);
    let labels = engine.read(&batch.labels).unwrap();
    let expected: Vec<bool> = predictions.iter().zip(&labels).map(|(a, b)| a == b).collect();
    assert_eq!(outcome.robust, expected);
    let right = expected.iter().filter(|&&right| right).count();
    assert_eq!(outcome.correct(), right);
    assert_eq!(outcome.accuracy(), right as f64 / TESTED as f64);
    // Some right and some wrong, and more than one class predicted, or this test shows nothing.
    let classes: std::collections::BTreeSet<u32> = predictions.into_iter().collect();
    assert!((3..=57).contains(&right) && classes.len() > 1, "{right} of {TESTED} right, classes {classes:?}");
}

#[test]
fn restarts_take_the_worst_case_and_images_do_not_depend_on_each_other() {
    let (mut engine, set) = prepared();
    let engine = &mut engine;
    let samples: Vec<u32> = (0..TESTED as u32).collect();
    let clean = run(engine, &set, &samples, "clean", 30);
    let one = run(engine, &set, &samples, "pgd2", 30);
    let three = run(engine, &set, &samples, "pgd2x3", 30);
    assert!(three.correct() <= one.correct() && one.correct() < clean.correct());
    for (image, (three, one)) in three.robust.iter().zip(&one.robust).enumerate() {
        assert!(!three | one, "image {image} is robust to three starts but not the first of them");
    }
    // Alone, in another order, in another batch size: the same results.
    let some: Vec<u32> = samples.iter().rev().step_by(4).copied().collect();
    let alone = run(engine, &set, &some, "pgd2x3", 4);
    let expected: Vec<bool> = some.iter().map(|&sample| three.robust[sample as usize]).collect();
    assert_eq!(alone.robust, expected);
}

#[test]
fn an_evaluation_can_be_stopped() {
    let (mut engine, set) = prepared();
    let engine = &mut engine;
    let scratch = Batch::alloc(engine, 10).unwrap();
    let samples: Vec<u32> = (0..TESTED as u32).collect();
    let subject =
        Subject { set: &set, samples: &samples, weights: WeightSet::Live, epsilon: EPSILON, seed: 0 };
    let mut heard = Vec::new();
    let stopped = evaluate(engine, subject, &Protocol::Clean, &scratch, &mut |done, total| {
        heard.push((done, total));
        done < 20
    });
    assert_eq!(stopped.unwrap(), None);
    assert_eq!(heard, [(10, 60), (20, 60)]);
}

#[test]
fn other_ascents_and_single_steps_count_their_passes() {
    let (mut engine, set) = prepared();
    let engine = &mut engine;
    let samples: Vec<u32> = (0..TESTED as u32).collect();
    let clean = run(engine, &set, &samples, "clean", 30);
    let fgsm = run(engine, &set, &samples, "fgsm", 30);
    assert_eq!((fgsm.cost.forwards, fgsm.cost.backwards), (2 * TESTED as u64, TESTED as u64));
    assert!(fgsm.correct() < clean.correct());
    let right: Vec<u32> =
        samples.iter().copied().filter(|&sample| clean.robust[sample as usize]).take(6).collect();
    let cw = run(engine, &set, &right, "cw", 4);
    let images = right.len() as u64;
    assert_eq!((cw.cost.forwards, cw.cost.backwards), (101 * images, 100 * images));
    assert!(images == 6 && cw.correct() < 6, "{} of {images} robust to cw", cw.correct());
    let two = run(engine, &set, &samples, "pgd2x2", 30);
    let one = run(engine, &set, &samples, "pgd2", 30);
    assert_eq!(one.cost.backwards, 2 * TESTED as u64);
    assert_eq!(two.cost.backwards, 2 * (TESTED + one.correct()) as u64);
}

/// Networks whose logits are not finite: NaN everywhere, and one class infinitely low.
fn broken_networks() -> Vec<(&'static str, Weights)> {
    let network = ResNet::resnet18(16, 10);
    let sound = initialise(network, SEED);
    let mut nan = sound.clone();
    nan.insert("linear.bias", &[10], vec![f32::NAN; 10]);
    let mut infinite = sound.clone();
    let mut bias = vec![0.0; 10];
    (bias[3], bias[7]) = (1e3, f32::NEG_INFINITY);
    infinite.insert("linear.bias", &[10], bias);
    vec![("NaN", nan), ("infinite", infinite)]
}

#[test]
fn logits_that_are_not_finite_are_wrong_under_every_protocol() {
    let all = ["clean", "fgsm", "pgd10", "pgd2x3", "cw", "apgd-ce", "apgd-t", "fab-t", "square", "aa"];
    for (device, protocols) in [(DeviceChoice::Cpu, &all[..]), (DeviceChoice::Emulated, &all[..2])] {
        for (what, weights) in broken_networks() {
            let mut engine = open(device, ResNet::resnet18(16, 10), 2).unwrap();
            let engine = &mut engine;
            engine.load_weights(&weights).unwrap();
            let test = generated::images(Part::Test, 2);
            // The class that was the prediction of such logits, and that of the largest one.
            let set = ImageSet::upload(engine, &test.pixels, &[0, 3]).unwrap();
            for protocol in protocols {
                let outcome = run(engine, &set, &[0, 1], protocol, 2);
                assert_eq!(outcome.robust, [false, false], "{device:?}, {what}, {protocol}");
                assert_eq!(outcome.non_finite, 2, "{device:?}, {what}, {protocol}");
                let said = alarms(&[(&protocol.parse().unwrap(), &outcome)]);
                assert!(said[0].contains("2 of 2 images have a logit that is NaN or infinite"), "{said:?}");
            }
        }
    }
}

#[test]
fn a_saturated_softmax_raises_the_alarm_of_every_gradient_protocol() {
    let (mut engine, set) = prepared();
    let engine = &mut engine;
    let samples: Vec<u32> = (0..TESTED as u32).collect();
    let names = ["fgsm", "pgd20", "cw", "apgd-ce"];
    let protocols = names.map(|name| name.parse::<Protocol>().unwrap());
    for protocol in &protocols {
        let outcome = run(engine, &set, &samples[..8], &protocol.to_string(), 8);
        assert_eq!((outcome.non_finite, outcome.zero_gradients), (0, 0), "{protocol}: sound");
    }
    let mut weights = engine.weights(WeightSet::Live).unwrap();
    for name in ["linear.weight", "linear.bias"] {
        weights.tensors.get_mut(name).unwrap().values.iter_mut().for_each(|value| *value *= 1e5);
    }
    engine.load_weights(&weights).unwrap();
    let clean = run(engine, &set, &samples, "clean", 30);
    let outcomes =
        protocols.clone().map(|protocol| run(engine, &set, &samples[..20], &protocol.to_string(), 20));
    let first = clean.robust[..20].iter().filter(|right| **right).count();
    for (protocol, outcome) in protocols.iter().zip(&outcomes) {
        let said = alarms(&[(protocol, outcome)]).join("; ");
        match protocol {
            // Margins keep their slope.
            Protocol::Cw => {
                assert!(outcome.zero_gradients == 0 && outcome.correct() + 4 < first, "{first}: {outcome:?}")
            }
            _ => {
                assert!(outcome.zero_gradients * 2 > first, "{protocol}: {outcome:?}");
                assert!(said.contains("images have no gradient at all"), "{protocol}: {said}");
            }
        }
    }
    let said = alarms(&[(&protocols[1], &outcomes[1]), (&protocols[2], &outcomes[2])]).join("; ");
    assert!(said.contains("the softmax may be saturated"), "{said}");
}
