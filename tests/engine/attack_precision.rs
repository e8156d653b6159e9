//! Attacks whose products are rounded to fp8: that rounding happens where it is asked for and nowhere else, and how little it
//! changes. The rounding itself is tested beside it, in src/engine/reference/fp8.rs.

use secateur::attack::{CrossEntropyAscent, Pgd};
use secateur::batch::Batch;
use secateur::engine::{DeviceChoice, Engine, Noise, Precision, SignStep, WeightSet, open};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ResNet18, initialise};
use secateur::philox::{Key, Purpose};
use secateur::recipe::{BatchNorm, Recipe};

use crate::common::{self, SEED, cuda_engine};

const NETWORK: ResNet18 = ResNet18 { width: 16, classes: 10 };
const BATCH: usize = 6;

/// An engine with weights that are folded, and a batch of random images and labels.
fn opened(device: DeviceChoice) -> (Box<dyn Engine>, Batch) {
    println!("seed {SEED}");
    let mut engine = open(device, NETWORK, BATCH).unwrap();
    engine.load_weights(&initialise(NETWORK, SEED)).unwrap();
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    let batch = Batch::alloc(engine.as_ref(), BATCH).unwrap();
    let mut random = common::Random::new(1);
    engine.write(&batch.samples, &(0..BATCH as u32).collect::<Vec<_>>()).unwrap();
    engine.write(&batch.images, &random.uniforms(BATCH * IMAGE_LEN, 0.0, 1.0)).unwrap();
    engine.write(&batch.labels, &(0..BATCH).map(|_| random.word() % 10).collect::<Vec<_>>()).unwrap();
    (engine, batch)
}

/// The images after `steps` steps from one random start.
fn attacked(engine: &mut dyn Engine, batch: &Batch, precision: Precision, steps: usize) -> Vec<f32> {
    let pgd = Pgd {
        start: Some(Noise::Uniform { radius: 8.0 / 255.0 }),
        step: SignStep { step_size: 2.0 / 255.0, epsilon: 8.0 / 255.0 },
        steps,
        batch_norm: BatchNorm::Eval,
        precision,
    };
    let key = Key { seed: SEED, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
    pgd.perturb(engine, &mut CrossEntropyAscent, key, batch).unwrap();
    engine.read(&batch.perturbed).unwrap()
}

/// Share of the pixels that are the same.
fn agreement(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64
}

#[test]
fn fp8_flips_few_signs_and_fewer_on_the_way_back_alone() {
    let (mut engine, batch) = opened(DeviceChoice::Cpu);
    let engine = engine.as_mut();
    let exact = attacked(engine, &batch, Precision::Device, 1);
    let both = agreement(&attacked(engine, &batch, Precision::E4m3, 1), &exact);
    let gradients = agreement(&attacked(engine, &batch, Precision::E4m3Gradients, 1), &exact);
    println!("pixels that move alike: {both} with e4m3, {gradients} with e4m3 gradients");
    assert!(0.85 < both && both < gradients && gradients < 1.0);
    assert!(attacked(engine, &batch, Precision::Device, 1) == exact, "rounding ends with the attack");
}

#[test]
fn other_passes_are_not_rounded() {
    let (mut engine, batch) = opened(DeviceChoice::Cpu);
    let engine = engine.as_mut();
    let logits = |engine: &mut dyn Engine| {
        engine.forward(secateur::engine::Pass::Eval, &batch.images, &batch.logits).unwrap();
        engine.read(&batch.logits).unwrap()
    };
    let before = logits(engine);
    attacked(engine, &batch, Precision::E4m3, 2);
    assert!(logits(engine) == before);
    // New weights are rounded anew.
    engine.load_weights(&initialise(NETWORK, SEED + 1)).unwrap();
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    let met = attacked(engine, &batch, Precision::E4m3, 2);
    let (mut other, fresh) = opened(DeviceChoice::Cpu);
    other.load_weights(&initialise(NETWORK, SEED + 1)).unwrap();
    other.fold_batch_norm(WeightSet::Live).unwrap();
    assert!(met == attacked(other.as_mut(), &fresh, Precision::E4m3, 2));
}

#[test]
fn an_image_does_not_depend_on_those_beside_it() {
    let (mut engine, batch) = opened(DeviceChoice::Cpu);
    let engine = engine.as_mut();
    for precision in [Precision::E4m3, Precision::E4m3Gradients] {
        let whole = attacked(engine, &batch, precision, 3);
        for (rows, part) in [(0..2, 0..2 * IMAGE_LEN), (2..6, 2 * IMAGE_LEN..6 * IMAGE_LEN)] {
            assert!(attacked(engine, &batch.rows(rows), precision, 3) == whole[part], "{precision}");
        }
    }
}

#[test]
fn what_cannot_round_says_so() {
    let (mut engine, batch) = opened(cuda_engine());
    let pgd = Pgd {
        start: None,
        step: SignStep { step_size: 0.01, epsilon: 0.03 },
        steps: 1,
        batch_norm: BatchNorm::Eval,
        precision: Precision::E4m3,
    };
    let key = Key { seed: SEED, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
    let error = pgd.perturb(engine.as_mut(), &mut CrossEntropyAscent, key, &batch).unwrap_err().to_string();
    assert!(error.contains("attack.precision = \"e4m3\"") && error.contains("--device cpu"), "{error}");

    let set = ["attack.precision=e4m3", "attack.batch_norm=train"].map(String::from);
    let error = Recipe::load("quick", &set).unwrap_err().to_string();
    assert!(error.contains("attack.precision = \"e4m3\", expected \"device\""), "{error}");
}
