//! Seconds and memory of one Adv-GRAD-MATCH selection at full size, on factors drawn at random; no network is run.
//!
//! `cargo bench --bench grad_match -- [--samples 50000] [--classes 10] [--width 64] [--mode per-class] [--fraction 0.5]
//! [--batch 128] [--ridge 0] [--tolerance 0] [--terms 2] [--device cpu]`
//!
//! The factors are like those of TRADES (two terms) or of an adversarial cross-entropy (`--terms 1`): softmax probabilities
//! that lean to the label, and nonnegative features around a mean of their class. Prints one line of JSON. Memory is that of
//! the process before the selection, which is little more than the factors, and its high-water mark during it (Linux only).

use secateur::clock::Stopwatch;
use secateur::engine::{DeviceChoice, open};
use secateur::model::ResNet;
use secateur::names::Named;
use secateur::ops::{LastLayerGradients, Term};
use secateur::philox::{Key, Purpose, unit};
use secateur::prune::{AtomMode, Candidates, GradMatch, RidgeUnit};

const SEED: u64 = 20_261_121;

fn option<T: std::str::FromStr>(name: &str, default: T) -> Result<T, String> {
    let mut args = std::env::args();
    match args.find(|arg| arg == name).map(|_| args.next()) {
        None => Ok(default),
        Some(text) => text.and_then(|text| text.parse().ok()).ok_or(format!("{name}: expected a value")),
    }
}

/// A figure of this process's memory, in MiB: `VmRSS:` what it holds, `VmHWM:` the most it held.
fn memory_mib(name: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()? / 1024.0)
}

/// Normal numbers of one stream.
fn normals(stream: u32, len: usize) -> Vec<f32> {
    let key = Key { seed: SEED, purpose: Purpose::Generation, epoch: 0, step: 0 };
    let pair = |u: u32, v: u32| {
        let (radius, angle) = ((-2.0 * (1.0 - unit(u)).ln()).sqrt(), std::f32::consts::TAU * unit(v));
        [radius * angle.cos(), radius * angle.sin()]
    };
    let blocks = (0..len.div_ceil(4) as u32).map(|block| key.block(stream, block));
    let mut values: Vec<f32> =
        blocks.flat_map(|[a, b, c, d]| pair(a, b).into_iter().chain(pair(c, d))).collect();
    values.truncate(len);
    values
}

/// Softmax probabilities of random logits, `lift` on the label's.
fn probabilities(stream: u32, labels: &[u32], classes: usize, lift: f32) -> Vec<f32> {
    let mut values = normals(stream, labels.len() * classes);
    for (row, &label) in values.chunks_exact_mut(classes).zip(labels) {
        row[label as usize] += lift;
        row.iter_mut().for_each(|logit| *logit = logit.exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|value| *value /= sum);
    }
    values
}

/// Features around a mean of the class, none negative.
fn features(stream: u32, labels: &[u32], classes: usize, len: usize) -> Vec<f32> {
    let means = normals(1, classes * len);
    let mut values = normals(stream, labels.len() * len);
    for (row, &label) in values.chunks_exact_mut(len).zip(labels) {
        for (value, mean) in row.iter_mut().zip(&means[label as usize * len..]) {
            *value = (0.5 * *value + mean).max(0.0);
        }
    }
    values
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let samples: usize = option("--samples", 50_000)?;
    let classes: usize = option("--classes", 10)?;
    let mode = option("--mode", "per-class".to_string())?;
    let mode = AtomMode::from_name(&mode).ok_or(format!("--mode {mode}: expected {}", AtomMode::names()))?;
    let (ridge, tolerance) = (option("--ridge", 0.0)?, option("--tolerance", 0.0)?);
    let (batch, ridge_unit) = (option("--batch", 128)?, RidgeUnit::Relative);
    let method = GradMatch { mode, ridge, ridge_unit, tolerance, batch, target_draws: 1, augment: None };
    let fraction: f64 = option("--fraction", 0.5)?;
    let terms: usize = option("--terms", 2)?;
    let device: DeviceChoice = option("--device", "cpu".to_string())?.parse()?;
    let network = ResNet::resnet18(option("--width", 64)?, classes);
    let mut engine = open(device, network, 1)?;
    let engine = &mut engine;

    let labels: Vec<u32> = (0..samples).map(|sample| (sample % classes) as u32).collect();
    let clean = probabilities(2, &labels, classes, 4.0);
    let adversarial = probabilities(3, &labels, classes, 2.0);
    let label = |at: usize| f32::from(u8::from(at % classes == labels[at / classes] as usize));
    let slopes: Vec<Vec<f32>> = if terms == 1 {
        vec![adversarial.iter().enumerate().map(|(at, q)| q - label(at)).collect()]
    } else {
        // TRADES, beta = 6.
        let pairs = || clean.chunks_exact(classes).zip(adversarial.chunks_exact(classes)).enumerate();
        let of_clean = pairs().flat_map(|(sample, (p, q))| {
            let divergence: f32 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
            let slope = move |(class, (p, q)): (usize, (&f32, &f32))| {
                (p - label(sample * classes + class)) + 6.0 * p * ((p / q).ln() - divergence)
            };
            p.iter().zip(q).enumerate().map(slope).collect::<Vec<f32>>()
        });
        let of_adversarial = clean.iter().zip(&adversarial).map(|(p, q)| 6.0 * (q - p));
        vec![of_clean.collect(), of_adversarial.collect()]
    };
    let terms = slopes.iter().enumerate().map(|(term, slopes)| {
        Ok(Term {
            logit_gradient: engine.upload("logit gradients", slopes)?,
            features: engine
                .upload("features", &features(4 + term as u32, &labels, classes, network.features()))?,
        })
    });
    let terms: Vec<Term> = terms.collect::<Result<_, secateur::engine::Error>>()?;
    let gradients = LastLayerGradients { terms, len: samples };

    let positions: Vec<u32> = (0..samples as u32).collect();
    let candidates = Candidates {
        samples: &positions,
        labels: &labels,
        classes,
        held_out: &[],
        budget: (fraction * samples as f64).round() as usize,
        losses: None,
        scores: None,
        key: Key { seed: SEED, purpose: Purpose::Selection, epoch: 0, step: 0 },
    };
    drop((clean, adversarial, slopes));
    // Sets the high-water mark to what is held now; where that fails the mark covers the drawing of the factors too.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let before = memory_mib("VmRSS:");
    let watch = Stopwatch::start();
    let subset = method.choose(engine, &candidates, &gradients, &[], &mut || true)?;
    let (seconds, cpu_seconds) = (watch.wall(), watch.cpu());
    let line = serde_json::json!({
        "device": engine.device(), "samples": samples, "classes": classes, "width": network.width, "mode": mode,
        "terms": gradients.terms.len(), "ridge": ridge, "tolerance": tolerance, "budget": candidates.budget,
        "seconds": seconds, "cpu_seconds": cpu_seconds, "mib_before": before, "peak_mib": memory_mib("VmHWM:"), "chosen": subset.len(),
        "residual": subset.residuals.last(),
        "largest_weight": subset.weights.iter().copied().fold(0.0, f32::max),
    });
    println!("{line}");
    Ok(())
}
