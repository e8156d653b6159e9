//! Times the passes of the CPU engine, one line of JSON each; `benches/peers/cpu_step.py` sets them next to PyTorch.
//!
//! `cargo bench --bench cpu_step -- WIDTH BATCH cpu|cpu:bf16 [RECIPE]` reads commands from standard input, one a line: `step`
//! (train-mode forward, loss, parameter gradients, SGD), `attack` (eval-mode forward, loss, input gradient and sign step) or `whole`
//! (a training step of the recipe, cifar10-pgd-at by default: gather, attack, train passes, SGD).
//! For each it returns the seconds of its parts and the most bytes of the heap during it, an image, above those of an opened engine
//! with its weights and images; the first line has their GFLOP (2 x multiply-adds, convolutions alone) and the
//! rate that no convolution exceeds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::BufRead;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use secateur::engine::{DeviceChoice, GradRequest, Pass, Sgd, SignStep, WeightSet};
use secateur::measure::probes;
use secateur::measure::workload::{Bench, Work};
use secateur::model::Conv;
use secateur::ops::Noise;
use secateur::philox::{Key, Purpose};
use secateur::recipe::Recipe;

/// The system's allocator, and what it has given.
struct Counted;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static HEAP: Counted = Counted;

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

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
    let opened = HELD.load(Ordering::Relaxed);
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
        PEAK.store(HELD.load(Ordering::Relaxed), Ordering::Relaxed);
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
        let bytes = PEAK.load(Ordering::Relaxed).saturating_sub(opened) / images;
        println!(
            "{}",
            serde_json::json!({ "seconds": seconds, "parts": parts, "peak_bytes_per_image": bytes })
        );
    }
    Ok(())
}
