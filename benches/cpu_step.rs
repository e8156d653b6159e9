//! Times the passes of the CPU engine, one line of JSON each; `benches/peers/cpu_step.py` sets them beside PyTorch.
//!
//! `cargo bench --bench cpu_step -- WIDTH BATCH cpu|cpu:bf16` reads commands from standard input, one a line: `step` (train-mode
//! forward, loss, parameter gradients, SGD) or `attack` (eval-mode forward, loss, input gradient and sign step).
//! For each it answers with the seconds of its parts and their GFLOP (2 x multiply-adds, convolutions alone).

use std::io::BufRead;
use std::time::Instant;

use secateur::engine::{DeviceChoice, GradRequest, Pass, Sgd, SignStep, WeightSet};
use secateur::measure::workload::Bench;
use secateur::model::Conv;
use secateur::ops::Noise;
use secateur::philox::{Key, Purpose};
use secateur::recipe::Recipe;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo adds `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [width, images, device] = args.as_slice() else {
        println!("usage: cpu_step WIDTH BATCH cpu|cpu:bf16, then lines `step` or `attack` on standard input");
        return Ok(());
    };
    let (width, images, device): (usize, usize, DeviceChoice) =
        (width.parse()?, images.parse()?, device.parse()?);
    let overrides = [format!("model.width={width}"), format!("batch={images}")];
    let mut bench = Bench::open(device, false, &Recipe::load("cifar10-pgd-at", &overrides)?, 1)?;
    let batch = bench.first_batch()?;
    let engine = &mut bench.engine;
    let key = Key { seed: 1, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
    engine.run(&batch.perturb(Noise::Uniform { radius: 0.0 }, key))?;
    let sgd = Sgd { learning_rate: 0.01, momentum: 0.9, weight_decay: 5e-4, ..Sgd::ZERO };
    let sign = SignStep { step_size: 2.0 / 255.0, epsilon: 8.0 / 255.0 };
    let convs = engine.network().convs();
    let gflop = 2e-9 * (images * convs.iter().map(Conv::multiply_adds).sum::<usize>()) as f64;
    let device = engine.device();
    println!("{}", serde_json::json!({ "device": device, "width": width, "batch": images, "gflop": gflop }));
    for line in std::io::stdin().lock().lines() {
        let start = Instant::now();
        let mut last = start;
        let mut lap = || {
            let seconds = last.elapsed().as_secs_f64();
            last = Instant::now();
            seconds
        };
        let parts = match line?.trim() {
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
            other => return Err(format!("'{other}': expected step or attack").into()),
        };
        let seconds = start.elapsed().as_secs_f64();
        println!("{}", serde_json::json!({ "seconds": seconds, "parts": parts }));
    }
    Ok(())
}
