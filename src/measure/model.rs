//! The roofline prediction: the least seconds that a device needs for a training step, from what the step launches.
//!
//! Each launch takes the larger of its FLOPs over the device's rate and its bytes over the device's bandwidth, both
//! those that `cuda/launch` declares with it; launches follow each other without gaps, and what one leaves in a cache
//! is read from memory by the next. So a measured time above the prediction is the kernels' loss, and one below it is a
//! cache's gain.

use serde::Serialize;

use super::table::{self, number, percent, time};
use crate::engine::{Launch, Record};
use crate::model::{Conv, ResNet};

/// Samples of an epoch of CIFAR.
const EPOCH: f64 = 50_000.0;

/// What a device reaches: operations and bytes a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roof {
    pub flops: f64,
    pub bytes: f64,
}

impl Roof {
    /// Of an H200: bf16 products of random data, and device copies, both measured.
    pub const H200: Self = Self { flops: 790e12, bytes: 4.3e12 };
    /// Of an H100 SXM: the fastest public bf16 GEMM, and the bandwidth of its data sheet.
    pub const H100: Self = Self { flops: 764e12, bytes: 3.35e12 };

    /// Seconds for the operations, and for the bytes.
    fn seconds(&self, launch: &Launch) -> [f64; 2] {
        [launch.flops as f64 / self.flops, launch.bytes as f64 / self.bytes]
    }
}

/// The launches of one layer in one kind of pass, in a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// A convolution with its BatchNorm, `linear`, or `-`.
    pub layer: String,
    /// `forward`, `input gradient`, `weight gradient`, or the kernel of work that is no layer's.
    pub pass: String,
    pub calls: usize,
    pub flops: f64,
    pub bytes: f64,
    pub seconds: f64,
    /// Of the seconds, those of launches whose bytes take longer than their operations.
    pub memory_seconds: f64,
}

/// A step of one recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    pub recipe: String,
    pub batch: usize,
    /// In the order in which a step first comes to them.
    pub parts: Vec<Part>,
    pub flops: f64,
    pub bytes: f64,
    pub seconds: f64,
    pub memory_seconds: f64,
    pub images_per_second: f64,
    /// Of 50,000 images.
    pub epoch_seconds: f64,
    /// FLOPs of the step over those of the convolutions of one forward pass.
    pub units: f64,
}

/// The prediction for a recorded step of `batch` images.
pub fn predict(record: &Record, recipe: &str, network: ResNet, batch: usize, roof: Roof) -> Prediction {
    let convs = network.convs();
    let mut parts: Vec<Part> = Vec::new();
    for launch in &record.launches {
        let (layer, pass) = place(launch, &convs);
        let at =
            parts.iter().position(|part| part.layer == layer && part.pass == pass).unwrap_or_else(|| {
                let (layer, pass) = (layer.to_string(), pass.to_string());
                let empty =
                    Part { layer, pass, calls: 0, flops: 0.0, bytes: 0.0, seconds: 0.0, memory_seconds: 0.0 };
                parts.push(empty);
                parts.len() - 1
            });
        let part = &mut parts[at];
        let [compute, memory] = roof.seconds(launch);
        part.calls += 1;
        part.flops += launch.flops as f64;
        part.bytes += launch.bytes as f64;
        part.seconds += compute.max(memory);
        part.memory_seconds += if memory > compute { memory } else { 0.0 };
    }
    let sum = |of: fn(&Part) -> f64| parts.iter().map(of).sum::<f64>();
    let (flops, seconds) = (sum(|part| part.flops), sum(|part| part.seconds));
    let forward: usize = convs.iter().map(|conv| 2 * batch * conv.multiply_adds()).sum();
    Prediction {
        recipe: recipe.into(),
        batch,
        flops,
        bytes: sum(|part| part.bytes),
        seconds,
        memory_seconds: sum(|part| part.memory_seconds),
        images_per_second: batch as f64 / seconds,
        epoch_seconds: EPOCH * seconds / batch as f64,
        units: flops / forward as f64,
        parts,
    }
}

/// Layer and pass of a launch.
fn place<'a>(launch: &Launch, convs: &'a [Conv]) -> (&'a str, &'static str) {
    let kernel = launch.kernel;
    let layer = match launch.layer.and_then(|layer| convs.get(layer)) {
        Some(conv) => conv.name.as_ref(),
        None if kernel.starts_with("head_") => "linear",
        None => return ("-", kernel),
    };
    let of = |names: &[&str]| names.iter().any(|name| kernel.contains(name));
    let pass = match () {
        () if of(&["weight_gradient"]) => "weight gradient",
        () if of(&["input_gradient", "image_", "backward"]) => "input gradient",
        () => "forward",
    };
    (layer, pass)
}

/// The layers of a step: one line a layer and pass.
pub fn part_lines(prediction: &Prediction) -> Vec<String> {
    let named = |layer: &str, pass: &str| format!("{layer:<20} {pass}");
    let title = named("layer", "pass");
    let heading = [title.as_str(), "calls", "GFLOP", "MB", "FLOP/B", "time", "share", "bound by"];
    let cells = |part: &Part| {
        vec![
            named(&part.layer, &part.pass),
            part.calls.to_string(),
            number(part.flops / 1e9),
            number(part.bytes / 1e6),
            number(part.flops / part.bytes),
            time(part.seconds),
            percent(Some(part.seconds / prediction.seconds)),
            if 2.0 * part.memory_seconds > part.seconds { "memory" } else { "compute" }.into(),
        ]
    };
    table::lines(&heading, &prediction.parts.iter().map(cells).collect::<Vec<_>>())
}

/// The steps: one line a recipe.
pub fn total_lines(predictions: &[Prediction]) -> Vec<String> {
    let heading =
        ["recipe", "units", "GFLOP/image", "MB/image", "step", "images/s", "50k epoch", "bound by memory"];
    let cells = |step: &Prediction| {
        vec![
            step.recipe.clone(),
            format!("{:.2}", step.units),
            number(step.flops / step.batch as f64 / 1e9),
            number(step.bytes / step.batch as f64 / 1e6),
            time(step.seconds),
            number(step.images_per_second),
            time(step.epoch_seconds),
            percent(Some(step.memory_seconds / step.seconds)),
        ]
    };
    table::lines(&heading, &predictions.iter().map(cells).collect::<Vec<_>>())
}
