//! A training step on several H200s, before any was measured: the step of a share by the model of [`super::predict`], then the sum of
//! gradients, which begins when the backward pass has ended.
//!
//! The sum goes around a ring of the GPUs of a machine over NVLink, and between machines each GPU sums its part with its peers over
//! a network card of its own: 2 (n - 1) / n of the bytes pass each link. What is not in the model: host time, waits for the slowest
//! rank, the choice of a selection, which every rank makes alike, and evaluation, which rank 0 makes alone.

use serde::Serialize;

use super::predict::predicted_seconds;
use super::table::{self, number, percent, time};
use super::workload::{Bench, Work, WorkError};
use crate::engine::Error;
use crate::model::ParameterKind;
use crate::recipe::Recipe;

/// GPUs of a machine.
const MACHINE: usize = 8;
/// Bytes a second in one direction: of a GPU's NVLink 4, by its data sheet, and of a network card of 400 Gbit/s.
const NVLINK: f64 = 450e9;
const NETWORK: f64 = 50e9;
/// Seconds from one GPU to the next, over NVLink and over the network: guesses.
const NVLINK_HOP: f64 = 2e-6;
const NETWORK_HOP: f64 = 10e-6;
/// Bytes a second of what a selection gathers, which passes through the memory of rank 0's host: a guess.
const HOST: f64 = 10e9;
/// Samples of an epoch of CIFAR.
const EPOCH: f64 = 50_000.0;

/// What the model takes for granted, in lines.
pub fn assumptions() -> [String; 3] {
    [
        format!(
            "model of H200s, not measured: {MACHINE} GPUs a machine, NVLink {:.0} GB/s and network {:.0} GB/s a GPU and direction, \
             {:.0} and {:.0} us a hop (guesses)",
            NVLINK / 1e9,
            NETWORK / 1e9,
            1e6 * NVLINK_HOP,
            1e6 * NETWORK_HOP
        ),
        "gradients in f32, summed after the backward pass, nothing overlapped; BatchNorm statistics of each GPU's share".into(),
        format!(
            "selection: attack and forward pass of 50,000 images and the gathering of their last-layer gradients ({:.0} GB/s, a \
             guess); the choice itself is made on every rank alike and is not in it",
            HOST / 1e9
        ),
    ]
}

/// A step on some GPUs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScaledStep {
    pub gpus: usize,
    /// Images of the whole batch.
    pub batch: usize,
    /// Seconds of the largest share: attack, train passes, optimizer.
    pub share_seconds: f64,
    pub all_reduce_seconds: f64,
    pub seconds: f64,
    pub images_per_second: f64,
    /// Of 50,000 images.
    pub epoch_seconds: f64,
    /// Images a second over those of one GPU on the first batch, a GPU.
    pub efficiency: f64,
    /// A last-layer gradient pass over 50,000 images.
    pub selection_seconds: f64,
}

/// Seconds of a sum of `bytes` bytes over `gpus` GPUs.
pub fn all_reduce_seconds(bytes: f64, gpus: usize) -> f64 {
    let ring = |members: usize, bytes: f64, rate: f64, hop: f64| {
        let others = members as f64 - 1.0;
        2.0 * others * (bytes / members as f64 / rate + hop)
    };
    let (inside, machines) = (gpus.min(MACHINE), gpus.div_ceil(MACHINE));
    let outside = ring(machines, bytes / inside as f64, NETWORK, NETWORK_HOP);
    ring(inside, bytes, NVLINK, NVLINK_HOP) + outside
}

/// Steps of a recipe on 1, 2, 4, ... and `most` GPUs: first its batch, divided, as long as every GPU has an image; then as many images
/// on each GPU.
///
/// # Errors
/// Those of a dry engine.
pub fn scaled_steps(recipe: &Recipe, most: usize) -> Result<[Vec<ScaledStep>; 2], WorkError> {
    let counts: Vec<usize> =
        (0..).map(|power| 1 << power).take_while(|&gpus| gpus < most).chain([most]).collect();
    let alone = step(recipe, recipe.batch, 1, None)?;
    let of = |batch: &dyn Fn(usize) -> usize| -> Result<Vec<ScaledStep>, WorkError> {
        let divided = counts.iter().filter(|&&gpus| batch(gpus) >= gpus);
        divided.map(|&gpus| step(recipe, batch(gpus), gpus, Some(&alone))).collect()
    };
    Ok([of(&|_| recipe.batch)?, of(&|gpus| recipe.batch * gpus)?])
}

fn step(
    recipe: &Recipe,
    batch: usize,
    gpus: usize,
    alone: Option<&ScaledStep>,
) -> Result<ScaledStep, WorkError> {
    let share = Recipe { batch: batch.div_ceil(gpus), ..recipe.clone() };
    let mut bench = Bench::dry(&share)?;
    let mut seconds = |work: Work| -> Result<f64, WorkError> {
        let record = bench.record(&work, 1)?;
        let unknown = || Error::Invalid(format!("{}: a launch has no model", share.name));
        Ok(predicted_seconds(&bench.engine, &record.launches).ok_or_else(unknown)?)
    };
    let (share_seconds, attack) = (seconds(Work::Step)?, seconds(Work::Attack)?);
    let network = bench.engine.network();
    let values = |which: fn(ParameterKind) -> bool| (network.elements(which) * size_of::<f32>()) as f64;
    let gradients = all_reduce_seconds(values(ParameterKind::trainable), gpus);
    let statistics = all_reduce_seconds(values(|kind| !kind.trainable()), gpus);
    let all_reduce_seconds = if gpus > 1 { gradients + statistics } else { 0.0 };
    let seconds = share_seconds + all_reduce_seconds;
    let images_per_second = batch as f64 / seconds;
    let terms = recipe.objective.method.row().passes.forwards();
    let last_layer = (terms * (network.features() + 2 * network.classes) * size_of::<f32>()) as f64;
    let gathered = if gpus > 1 { EPOCH * last_layer / HOST } else { 0.0 };
    Ok(ScaledStep {
        gpus,
        batch,
        share_seconds,
        all_reduce_seconds,
        seconds,
        images_per_second,
        epoch_seconds: EPOCH / images_per_second,
        efficiency: alone.map_or(1.0, |one| images_per_second / gpus as f64 / one.images_per_second),
        selection_seconds: attack * EPOCH / (share.batch * gpus) as f64 + gathered,
    })
}

/// The steps of a recipe, one line each.
pub fn scaling_lines(recipe: &str, steps: &[ScaledStep]) -> Vec<String> {
    let heading =
        [recipe, "batch", "share", "all-reduce", "step", "images/s", "50k epoch", "efficiency", "selection"];
    let cells = |step: &ScaledStep| {
        vec![
            format!("{} GPU{}", step.gpus, if step.gpus == 1 { "" } else { "s" }),
            step.batch.to_string(),
            time(step.share_seconds),
            time(step.all_reduce_seconds),
            time(step.seconds),
            number(step.images_per_second),
            time(step.epoch_seconds),
            percent(Some(step.efficiency)),
            time(step.selection_seconds),
        ]
    };
    table::lines(&heading, &steps.iter().map(cells).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_takes_what_one_works_out_by_hand() {
        assert_eq!(all_reduce_seconds(1e9, 1), 0.0);
        // 7/8 of a gigabyte there and back, and 14 hops.
        let machine = 2.0 * 0.875e9 / 450e9 + 14.0 * 2e-6;
        assert!((all_reduce_seconds(1e9, 8) / machine - 1.0).abs() < 1e-12);
        // Each of eight GPUs sums an eighth with its one peer.
        let two = machine + 2.0 * 0.5 * 0.125e9 / 50e9 + 2.0 * 10e-6;
        assert!((all_reduce_seconds(1e9, 16) / two - 1.0).abs() < 1e-12);
    }
}
