//! Times the passes of the reference engine, one line of JSON each; `benches/peers/cpu_step.py` sets them beside PyTorch.
//!
//! `cargo bench --bench cpu_step -- WIDTH BATCH` reads commands from standard input, one a line: `step` (train-mode
//! forward, loss, parameter gradients, SGD) or `attack` (eval-mode forward, loss, input gradient and sign step).
//! For each it answers with the seconds of its parts and their GFLOP (2 x multiply-adds, convolutions alone).

use std::io::BufRead;
use std::time::Instant;

use secateur::engine::{CrossEntropy, DeviceChoice, LossOutputs, Pass, Sgd, SignStep, WeightSet, open};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{Conv, ResNet18, Weights};
use secateur::philox::{Key, Purpose, unit};

fn uniform(purpose: Purpose, sample: usize, count: usize) -> Vec<f32> {
    let key = Key { seed: 1, purpose, epoch: 0, step: 0 };
    let words = (0..count.div_ceil(4)).flat_map(|block| key.block(sample as u32, block as u32));
    words.take(count).map(unit).collect()
}

/// Random convolutions; BatchNorm as it starts out.
fn weights(network: ResNet18) -> Weights {
    let mut weights = Weights::default();
    for (position, parameter) in network.parameters().iter().enumerate() {
        let values = match parameter.shape.len() {
            1 if parameter.name.ends_with("running_var") || parameter.name.ends_with(".weight") => {
                vec![1.0; parameter.len()]
            }
            1 => vec![0.0; parameter.len()],
            _ => {
                let bound = (3.0 / parameter.shape[1..].iter().product::<usize>() as f32).sqrt();
                let values = uniform(Purpose::Initialisation, position, parameter.len());
                values.into_iter().map(|u| bound * (2.0 * u - 1.0)).collect()
            }
        };
        weights.insert(&parameter.name, &parameter.shape, values);
    }
    weights
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo adds `--bench`.
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let &[width, batch] = numbers.as_slice() else {
        println!("usage: cpu_step WIDTH BATCH, then lines `step` or `attack` on standard input");
        return Ok(());
    };
    let network = ResNet18 { width, classes: 10 };
    let mut engine = open(DeviceChoice::Cpu, network, batch)?;
    engine.load_weights(&weights(network))?;
    let pixels: Vec<f32> = (0..batch).flat_map(|n| uniform(Purpose::Generation, n, IMAGE_LEN)).collect();
    let labels: Vec<u32> = (0..batch as u32).map(|n| n % 10).collect();
    let images = engine.upload("images", &pixels)?;
    let perturbed = engine.upload("perturbed images", &pixels)?;
    let labels = engine.upload("labels", &labels)?;
    let logits = engine.alloc::<f32>("logits", batch * 10)?;
    let (losses, predictions) = (engine.alloc("losses", batch)?, engine.alloc("predictions", batch)?);
    let logit_gradient = engine.alloc::<f32>("logit gradient", batch * 10)?;
    let outputs = LossOutputs { losses: &losses, predictions: &predictions, logit_gradient: &logit_gradient };
    let loss = CrossEntropy { smoothing: 0.0, scale: 1.0 / batch as f32 };
    let sgd = Sgd { learning_rate: 0.01, momentum: 0.9, weight_decay: 5e-4, average_decay: None };
    let sign = SignStep { step_size: 2.0 / 255.0, epsilon: 8.0 / 255.0 };
    let gflop = 2e-9 * (batch * network.convs().iter().map(Conv::multiply_adds).sum::<usize>()) as f64;
    let device = engine.device();
    println!("{}", serde_json::json!({ "device": device, "width": width, "batch": batch, "gflop": gflop }));
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
                engine.forward(Pass::Train { slot: 0 }, &images, &logits)?;
                let forward = lap();
                engine.cross_entropy(&loss, &logits, &labels, None, outputs)?;
                engine.parameter_gradient(Pass::Train { slot: 0 }, &logit_gradient, false)?;
                let backward = lap();
                engine.sgd_step(&sgd)?;
                serde_json::json!({ "forward": forward, "backward": backward, "sgd": lap() })
            }
            "attack" => {
                engine.fold_batch_norm(WeightSet::Live)?;
                let fold = lap();
                engine.forward(Pass::Eval, &perturbed, &logits)?;
                let forward = lap();
                engine.cross_entropy(&loss, &logits, &labels, None, outputs)?;
                engine.attack_step(Pass::Eval, &logit_gradient, &sign, &images, &perturbed)?;
                serde_json::json!({ "fold": fold, "forward": forward, "backward": lap() })
            }
            other => return Err(format!("'{other}': expected step or attack").into()),
        };
        let seconds = start.elapsed().as_secs_f64();
        println!("{}", serde_json::json!({ "seconds": seconds, "parts": parts }));
    }
    Ok(())
}
