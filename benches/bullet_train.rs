//! Does the time of BulletTrain's attack follow its steps? Prints the measured time over the expected one.
//!
//! `cargo bench --bench bullet_train -- [--device cpu] [--images 1000] [--width 16]`
//!
//! Labels are chosen from the network's own predictions, so that each mix has the outliers it names, and the reference
//! accuracy so that the rest divides as named. A step costs what it costs in a plain attack of 10 steps on all images; the
//! expected time is steps times that, and BulletTrain's own forward passes (one on all images for the scores, one on
//! the attacked ones for the reference accuracy). Seconds are CPU seconds but on a GPU, as other jobs would disturb the
//! clock.

use secateur::accelerate::BulletTrain;
use secateur::attack::{Adversary, Pgd};
use secateur::clock::Stopwatch;
use secateur::engine::{DeviceChoice, Engine, Pass, WeightSet};
use secateur::measure::workload::Bench;
use secateur::ops::AscentLoss;
use secateur::philox::{Key, Purpose};
use secateur::recipe::Recipe;

const SEED: u64 = 1;
/// Outliers among all images, and robust samples among the others.
const MIXES: [(f64, f64); 4] = [(0.0, 0.0), (0.25, 0.5), (0.5, 0.3), (0.3, 0.9)];
const ROUNDS: usize = 3;

/// The least seconds of some runs of `work`, which leaves the device idle.
fn seconds(engine: &mut Engine, mut work: impl FnMut(&mut Engine)) -> f64 {
    let host = engine.device().kind != "cuda";
    let mut least = f64::INFINITY;
    for _ in 0..ROUNDS {
        engine.synchronize().expect("the device answers");
        let stopwatch = Stopwatch::start();
        work(engine);
        engine.synchronize().expect("the device answers");
        least = least.min(if host { stopwatch.cpu() } else { stopwatch.wall() });
    }
    least
}

fn option(name: &str) -> Option<String> {
    let mut args = std::env::args();
    args.find(|arg| arg == name).and_then(|_| args.next())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device: DeviceChoice = option("--device").as_deref().unwrap_or("cpu").parse()?;
    let images: usize = option("--images").as_deref().unwrap_or("1000").parse()?;
    let width: usize = option("--width").as_deref().unwrap_or("16").parse()?;

    let overrides = [format!("model.width={width}"), format!("batch={images}"), format!("seed={SEED}")];
    let recipe = Recipe::load("cifar10-pgd-at-bullet", &overrides)?;
    let mut bench = Bench::open(device, false, &recipe, 1)?;
    let batch = bench.first_batch()?;
    let engine = &mut bench.engine;
    engine.fold_batch_norm(WeightSet::Live)?;
    let clean = |engine: &mut Engine| {
        for part in batch.parts(engine.micro_batch()) {
            engine.forward(Pass::Eval, &part.images, &part.logits).expect("a forward pass");
            engine.run(&part.cross_entropy(1.0)).expect("a cross-entropy");
        }
    };
    clean(engine);
    let predictions = engine.read(&batch.predictions)?;

    let full = Pgd::from_config(&recipe.attack);
    let key = Key { seed: SEED, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
    let ascent = AscentLoss::CrossEntropy;
    let forward = seconds(engine, clean) / images as f64;
    let plain = seconds(engine, |engine| full.perturb(engine, ascent, key, &batch).expect("an attack"));
    let step = plain / (images * full.steps) as f64;
    println!(
        "{} images, width {width}, {}: plain attack of {} steps {plain:.2} s; a step {:.3} ms an image, a forward {:.3} ms",
        images,
        engine.device().name,
        full.steps,
        1e3 * step,
        1e3 * forward
    );
    for (outliers, robust) in MIXES {
        let wrong = (outliers * images as f64).round() as usize;
        let labels: Vec<u32> = predictions
            .iter()
            .enumerate()
            .map(|(place, &class)| if place < wrong { (class + 1) % 10 } else { class })
            .collect();
        engine.write(&batch.labels, &labels)?;
        // The quantile 1 - a of all scores leaves the share a above it.
        let accuracy = ((1.0 - outliers) * robust) as f32;
        let mut work = Default::default();
        let mut bullet = BulletTrain::new(recipe.full_attack(), &recipe.accelerate);
        let actual = seconds(engine, |engine| {
            bullet.set_accuracy(accuracy);
            work = bullet.perturb(engine, ascent, key, &batch).expect("an attack");
        });
        let attacked = (work.boundary + work.robust) as f64;
        let expected = step * work.steps as f64 + forward * (images as f64 + attacked);
        println!(
            "outliers {:4}, boundary {:4}, robust {:4}: {:.2} steps an image, {actual:.2} s, {:.2} of the plain attack; over \
             expected {expected:.2} s: {:.3}",
            work.outliers,
            work.boundary,
            work.robust,
            work.steps as f64 / images as f64,
            actual / plain,
            actual / expected
        );
    }
    Ok(())
}
