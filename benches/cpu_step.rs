//! Times the passes of the CPU engine, one line of JSON each; `benches/peers/cpu_step.py` sets them next to PyTorch.
//!
//! `cargo bench --bench cpu_step -- WIDTH BATCH cpu|cpu:bf16 [RECIPE]` reads commands from standard input, one a line: `step`
//! (train-mode forward, loss, parameter gradients, SGD), `attack` (eval-mode forward, loss, input gradient and sign step) or `whole`
//! (a training step of the recipe, cifar10-pgd-at by default: gather, attack, train passes, SGD).
//! For each it returns the seconds of its parts; the first line has their GFLOP (2 x multiply-adds, convolutions alone) and the
//! rate that no convolution exceeds.

use std::io::BufRead;
use std::time::Instant;

use secateur::engine::{DeviceChoice, GradRequest, Pass, Sgd, SignStep, WeightSet};
use secateur::measure::probes;
use secateur::measure::workload::{Bench, Work};
use secateur::model::Conv;
use secateur::ops::Noise;
use secateur::philox::{Key, Purpose};
use secateur::recipe::Recipe;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo adds `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let (name, [width, images, device]) = match args.as_slice() {
        [width, images, device] => ("cifar10-pgd-at", [width, images, device]),
        [width, images, device, recipe] => (recipe.as_str(), [width, images, device]),
        _ => {
            println!(
                "usage: cpu_step WIDTH BATCH cpu|cpu:bf16 [RECIPE], then lines `step`, `attack` or `whole` on standard input"
            );
            return Ok(());
        }
    };
    let (width, images, device): (usize, usize, DeviceChoice) =
        (width.parse()?, images.parse()?, device.parse()?);
    let overrides = [format!("model.width={width}"), format!("batch={images}")];
    let mut bench = Bench::open(device, false, &Recipe::load(name, &overrides)?, 1)?;
    let batch = bench.first_batch()?;
    let engine = &mut bench.engine;
    let key = Key { seed: 1, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
    engine.run(&batch.perturb(Noise::Uniform { radius: 0.0 }, key))?;
    let sgd = Sgd { learning_rate: 0.01, momentum: 0.9, weight_decay: 5e-4, ..Sgd::ZERO };
    let sign = SignStep { step_size: 2.0 / 255.0, epsilon: 8.0 / 255.0 };
    let convs = engine.network().convs();
    let gflop = 2e-9 * (images * convs.iter().map(Conv::multiply_adds).sum::<usize>()) as f64;
    let device = engine.device().clone();
    let mut peak = 0.0f64;
    if let Some(mut products) = probes::products(engine)? {
        for _ in 0..20 {
            let start = Instant::now();
            products.run()?;
            peak = peak.max(1e-9 * products.amount as f64 / start.elapsed().as_secs_f64());
        }
    }
    println!(
        "{}",
        serde_json::json!({
            "device": device, "width": width, "batch": images, "gflop": gflop, "peak_gflop_per_s": peak
        })
    );
    for line in std::io::stdin().lock().lines() {
        let start = Instant::now();
        let mut last = start;
        let mut lap = || {
            let seconds = last.elapsed().as_secs_f64();
            last = Instant::now();
            seconds
        };
        let line = line?;
        let engine = &mut bench.engine;
        let parts = match line.trim() {
            "step" => {
                engine.forward(Pass::Train { slot: 0 }, &batch.images, &batch.logits)?;
                let forward = lap();
                engine.run(&batch.cross_entropy(1.0 / images as f32))?;
                engine.backward(Pass::Train { slot: 0 }, &batch.logit_gradient, GradRequest::PARAMETERS)?;
                let backward = lap();
                engine.step(&sgd)?;
                serde_json::json!({ "forward": forward, "backward": backward, "sgd": lap() })
            }
            "attack" => {
                engine.fold_batch_norm(WeightSet::Live)?;
                let fold = lap();
                engine.forward(Pass::Eval, &batch.perturbed, &batch.logits)?;
                let forward = lap();
                engine.run(&batch.cross_entropy(1.0 / images as f32))?;
                engine.backward(
                    Pass::Eval,
                    &batch.logit_gradient,
                    GradRequest::step(sign, &batch.images, &batch.perturbed),
                )?;
                serde_json::json!({ "fold": fold, "forward": forward, "backward": lap() })
            }
            "whole" => {
                let seconds = bench.run(&Work::Step, 1)?;
                serde_json::json!({ "whole": seconds })
            }
            other => return Err(format!("'{other}': expected step, attack or whole").into()),
        };
        let seconds = start.elapsed().as_secs_f64();
        println!("{}", serde_json::json!({ "seconds": seconds, "parts": parts }));
    }
    Ok(())
}
