//! Attacks the first test images of a run, as `train` leaves one, with PGD-20, and prints what the network says before and after.
//!
//! `cargo run --release --example attack -- runs/example`

use std::path::PathBuf;

use secateur::batch::Batch;
use secateur::engine::{DeviceChoice, WeightSet, open};
use secateur::evaluate::{Protocol, predict};
use secateur::ops::{AscentLoss, ImageSet};
use secateur::philox::{Key, Purpose};
use secateur::progress::Silent;
use secateur::train::trained;

const IMAGES: usize = 8;
const EPSILON: f32 = 8.0 / 255.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).unwrap_or("runs/example".into()));
    let file = trained::weights(&folder, &Silent)?;
    let data = trained::images(&folder, None, file.network.classes)?;

    let mut engine = open(DeviceChoice::Cpu, file.network, IMAGES)?;
    let engine = &mut engine;
    engine.load_weights(&file.weights)?;
    engine.fold_batch_norm(WeightSet::Live)?;
    let set = ImageSet::upload(engine, &data.test.pixels, &data.test.labels)?;
    let samples = Vec::from_iter(0..IMAGES as u32);
    let batch = Batch::alloc(engine, IMAGES)?.gathered(engine, &set, &samples, None)?;

    let pgd = "pgd20".parse::<Protocol>()?.pgd(EPSILON).ok_or("not a sign-step attack")?;
    let key = Key { seed: 0, purpose: Purpose::EvaluationStart, epoch: 0, step: 0 };
    pgd.perturb(engine, AscentLoss::CrossEntropy, key, &batch)?;

    let (clean, adversarial) = (predict(engine, &batch, false)?, predict(engine, &batch, true)?);
    let name = |class: u32| data.class_names.get(class as usize).map_or("no class", String::as_str);
    for (image, label) in data.test.labels.iter().take(IMAGES).enumerate() {
        let (label, before, after) = (name(*label), name(clean[image]), name(adversarial[image]));
        println!("image {image}, {label}: predicted {before}, under attack {after}");
    }
    Ok(())
}
