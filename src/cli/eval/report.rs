//! The JSON of `--out`, with RobustBench's field names where AutoAttack ran.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::engine::DeviceInfo;
use crate::evaluate::autoattack::{Progress, Stage};
use crate::evaluate::sanity::{Checks, Extent};
use crate::evaluate::state::{Finished, Settings, flags, letters};
use crate::evaluate::{Evaluation, Part, Protocol};
use crate::model::WeightsFile;

/// What `--out` holds.
#[derive(Serialize)]
pub struct Report<'a> {
    #[serde(flatten)]
    entry: Option<Entry>,
    weights: String,
    weights_sha256: &'a str,
    width: usize,
    data: &'a str,
    split: &'a str,
    samples: usize,
    images_sha256: &'a str,
    device: &'a DeviceInfo,
    /// Whether every protocol of the command is among the results: not so where it was interrupted.
    complete: bool,
    results: Vec<Row>,
    warnings: &'a [String],
}

/// The fields of a RobustBench model entry that an evaluation can fill; percentages as text, as there.
#[derive(Serialize)]
struct Entry {
    name: String,
    dataset: String,
    architecture: &'static str,
    number_forward_passes: u32,
    eps: String,
    clean_acc: String,
    autoattack_acc: String,
}

/// Accuracy under one protocol.
#[derive(Serialize)]
struct Row {
    protocol: String,
    /// Radius as it was given, "8/255"; absent for clean.
    epsilon: Option<String>,
    step_size: Option<String>,
    steps: usize,
    restarts: u32,
    seed: u64,
    correct: usize,
    total: usize,
    accuracy: f64,
    seconds: f64,
    forwards: u64,
    backwards: u64,
    /// Images with a logit that is NaN or infinite, counted as wrong.
    non_finite: usize,
    /// Images for which an attack had no gradient to follow.
    zero_gradients: usize,
    /// One digit an image: 1 where it is robust.
    flags: String,
    #[serde(flatten)]
    search: Option<Search>,
}

/// What parts of AutoAttack report besides.
#[derive(Serialize)]
struct Search {
    clean_correct: usize,
    parts: Vec<PartRow>,
    /// One letter an image, and what the letters mean.
    verdicts: String,
    verdict_letters: BTreeMap<char, &'static str>,
    checks: Option<Checks>,
    adversarial_images: Extent,
    /// Share of all images that Square broke and no part before it.
    square_gain: Option<f64>,
}

/// One part, on the images that are robust to those before it.
#[derive(Serialize)]
struct PartRow {
    part: &'static str,
    entered: usize,
    robust: usize,
    robust_accuracy: f64,
    seconds: f64,
    forwards: u64,
    backwards: u64,
}

/// The report of what an evaluation has finished.
pub fn report<'a>(weights: &WeightsFile, evaluation: &'a Evaluation, warnings: &'a [String]) -> Report<'a> {
    let (settings, protocols) = (evaluation.settings(), &evaluation.plan().protocols);
    let finished = || protocols.iter().zip(evaluation.finished());
    let results: Vec<Row> = finished().map(|(protocol, done)| row(settings, protocol, done)).collect();
    let of_autoattack = finished().find(|(protocol, _)| **protocol == Protocol::AutoAttack);
    let entry =
        of_autoattack.and_then(|(_, done)| Some(entry(&weights.path, settings, done.progress.as_ref()?)));
    Report {
        entry,
        weights: weights.path.display().to_string(),
        weights_sha256: &settings.weights_sha256,
        width: weights.network.width,
        data: &settings.data,
        split: &settings.split,
        samples: settings.samples,
        images_sha256: &settings.images_sha256,
        device: evaluation.device(),
        complete: results.len() == protocols.len(),
        results,
        warnings,
    }
}

fn entry(weights: &Path, settings: &Settings, progress: &Progress) -> Entry {
    let percent = |count: usize| format!("{:.2}", 100.0 * share(count, progress));
    Entry {
        name: weights.file_stem().map_or(String::new(), |stem| stem.to_string_lossy().into_owned()),
        dataset: settings.data.clone(),
        architecture: "ResNet-18",
        number_forward_passes: 1,
        eps: settings.epsilon.clone(),
        clean_acc: percent(progress.clean()),
        autoattack_acc: percent(progress.robust()),
    }
}

fn share(count: usize, progress: &Progress) -> f64 {
    count as f64 / progress.results.len().max(1) as f64
}

fn row(settings: &Settings, protocol: &Protocol, finished: &Finished) -> Row {
    let outcome = &finished.outcome;
    let attacked = *protocol != Protocol::Clean;
    let step_size = match protocol {
        Protocol::Fgsm => Some(settings.epsilon.clone()),
        _ => protocol.step_size().map(String::from),
    };
    Row {
        protocol: protocol.to_string(),
        epsilon: attacked.then(|| settings.epsilon.clone()),
        step_size,
        steps: protocol.pgd(0.0).map_or(0, |pgd| pgd.steps),
        restarts: protocol.restarts(),
        seed: settings.seed,
        correct: outcome.correct(),
        total: outcome.robust.len(),
        accuracy: outcome.accuracy(),
        seconds: outcome.seconds,
        forwards: outcome.cost.forwards,
        backwards: outcome.cost.backwards,
        non_finite: outcome.non_finite,
        zero_gradients: outcome.zero_gradients,
        flags: flags::text(&outcome.robust),
        search: finished.progress.as_ref().map(search),
    }
}

fn search(progress: &Progress) -> Search {
    let part = |stage: &Stage| PartRow {
        part: stage.part.map_or("clean", Part::name),
        entered: stage.entered,
        robust: stage.robust,
        robust_accuracy: share(stage.robust, progress),
        seconds: stage.seconds,
        forwards: stage.cost.forwards,
        backwards: stage.cost.backwards,
    };
    let square = progress.stages.iter().find(|stage| stage.part == Some(Part::Square));
    Search {
        clean_correct: progress.clean(),
        parts: progress.stages.iter().map(part).collect(),
        verdicts: letters::text(&progress.results),
        verdict_letters: letters::ALL.iter().map(|(_, letter, name)| (*letter, *name)).collect(),
        checks: progress.checks.clone(),
        adversarial_images: progress.extent,
        square_gain: square.map(|stage| share(stage.entered - stage.robust, progress)),
    }
}
