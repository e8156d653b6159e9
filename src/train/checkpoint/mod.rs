//! Checkpoints: everything a run needs to go on with the very same bits.
//!
//! A checkpoint is a folder, built under a temporary name, synced to disk and renamed, with a manifest that holds
//! the SHA-256 of each file (`manifest`). A damaged one is passed over for the newest whole one. Written by the training
//! loop, read by `--resume` and by `secateur eval` of a run folder. Checked by `tests/checkpoints.rs` (property tests on
//! damaged folders) and `tests/training.rs` (resume is bit-identical).

mod manifest;

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::metrics::{Best, Seconds};
use crate::attack::AttackWork;
use crate::engine::OptimizerState;
use crate::files::sync_folder;
use crate::model::{Weights, WeightsError};
use crate::prune::MeanScores;
use manifest::{MANIFEST, Writer, json};

const PROGRESS: &str = "progress.json";
const WEIGHTS: &str = "weights.safetensors";
const MOMENTUM: &str = "momentum.safetensors";
/// Only where the recipe keeps a moving average.
const AVERAGE: &str = "average.safetensors";
/// Only where the objective carries something from step to step.
const OBJECTIVE: &str = "objective.safetensors";
/// Only in the middle of an epoch: what its samples have given so far.
const SAMPLES: &str = "samples.safetensors";
/// Only where the recipe selects what it trains on.
const SELECTION: &str = "selection.safetensors";
const FILES: [&str; 7] = [PROGRESS, WEIGHTS, MOMENTUM, AVERAGE, OBJECTIVE, SAMPLES, SELECTION];
/// A folder being written; whatever bears this prefix was never a checkpoint.
const UNFINISHED: &str = ".writing-";

/// The state of a run between two steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Live weights and running statistics.
    pub weights: Weights,
    pub optimizer: OptimizerState,
    /// What the objective carries from step to step; empty for most.
    pub objective: Weights,
    pub progress: Progress,
    pub samples: SamplesSoFar,
    pub selection: SelectionState,
}

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Epochs that are trained, validated and in the metrics.
    pub epoch: u32,
    /// Steps done in the epoch after them.
    pub step: usize,
    /// The best epoch on the validation split so far.
    pub best: Option<Best>,
    /// PGD-5 accuracy on a training batch behind the last epoch, where overfitting is watched.
    pub pgd5_accuracy: Option<f64>,
    /// Attacks of the unfinished epoch.
    pub epoch_attacks: AttackWork,
    /// Time spent in the unfinished epoch.
    pub epoch_seconds: Seconds,
    /// Time spent in the whole run, unfinished epoch included.
    pub run_seconds: Seconds,
    /// Images trained on in the finished epochs; absent in checkpoints from before there was data pruning.
    #[serde(default)]
    pub run_images: Option<u64>,
    /// The last selection of samples, where there was one.
    #[serde(default)]
    pub selection: Option<LastSelection>,
}

/// When samples were selected last.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastSelection {
    /// The epoch that it was made for, counted from 0.
    pub epoch: u32,
    /// What a pursuit left of its target, as a share of the target's norm.
    pub residual: Option<f64>,
}

/// Adversarial loss and prediction of each sample of the unfinished epoch, in the epoch's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplesSoFar {
    pub losses: Vec<f32>,
    pub predictions: Vec<u32>,
    /// The score of each, where selections rank by their mean; else none.
    pub scores: Vec<f32>,
    /// Pixels of the images that were attacked and not trained on yet, in the middle of a super-batch; else none.
    pub adversarial: Vec<f32>,
}

/// The subset in training and what the next selection is made from; all empty where the recipe selects nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SelectionState {
    /// Positions in the image set, ascending; none where all samples train.
    pub samples: Vec<u32>,
    /// A factor on the loss of each.
    pub weights: Vec<f32>,
    /// The last adversarial loss of each training sample, in the order of the split; infinite where there is none.
    pub losses: Vec<f32>,
    /// The mean score of each over training, where selections rank by it.
    pub scores: MeanScores,
}

/// Why a checkpoint cannot be written or is not whole.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("{path}: none of its {count} checkpoints is whole; remove the folder to start this run over")]
    NoneWhole { path: PathBuf, count: usize },
}

/// The folder name of a checkpoint at this place of a run.
pub fn name(epoch: u32, step: usize) -> String {
    format!("epoch-{epoch:04}-step-{step:06}")
}

fn parse_name(name: &str) -> Option<(u32, usize)> {
    let (epoch, step) = name.strip_prefix("epoch-")?.split_once("-step-")?;
    Some((epoch.parse().ok()?, step.parse().ok()?))
}

/// Every folder in `folder` that bears a checkpoint's name, newest first; whole or not.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(at(folder))?;
        if let Some(place) = entry.file_name().to_str().and_then(parse_name) {
            found.push((place, entry.path()));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Writes a checkpoint into `folder`; a reader sees all of it or nothing. Then removes old ones: the newest `keep`
/// (at least one) and that of the best epoch stay.
pub fn save(folder: &Path, checkpoint: &Checkpoint, keep: usize) -> Result<PathBuf, CheckpointError> {
    let Progress { epoch, step, best, .. } = &checkpoint.progress;
    fs::create_dir_all(folder).map_err(at(folder))?;
    remove_unfinished(folder)?;
    let name = name(*epoch, *step);
    let unfinished = folder.join(format!("{UNFINISHED}{name}"));
    let path = folder.join(&name);
    if let Err(error) = write_files(&unfinished, checkpoint) {
        // A full disk: give the room back. The first error is the one to report.
        let _ = fs::remove_dir_all(&unfinished);
        return Err(error);
    }
    if path.exists() {
        // A damaged checkpoint of the same place, passed over when this run was resumed.
        fs::remove_dir_all(&path).map_err(at(&path))?;
    }
    fs::rename(&unfinished, &path).map_err(at(&path))?;
    sync_folder(folder).map_err(at(folder))?;

    let best = best.as_ref().map(|best| folder.join(self::name(best.epoch, 0)));
    for old in list(folder)?.into_iter().skip(keep.max(1)).filter(|path| Some(path) != best.as_ref()) {
        fs::remove_dir_all(&old).map_err(at(&old))?;
    }
    Ok(path)
}

/// The newest whole checkpoint; `None` where there is none at all. `warn` is told of each one passed over.
pub fn load_newest(
    folder: &Path,
    warn: &mut dyn FnMut(&CheckpointError),
) -> Result<Option<(PathBuf, Checkpoint)>, CheckpointError> {
    let candidates = list(folder)?;
    for path in &candidates {
        match load(path) {
            Ok(checkpoint) => return Ok(Some((path.clone(), checkpoint))),
            Err(error) => warn(&error),
        }
    }
    match candidates.len() {
        0 => Ok(None),
        count => Err(CheckpointError::NoneWhole { path: folder.into(), count }),
    }
}

/// Reads one checkpoint; every file must have the size and digest that the manifest gives.
pub fn load(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let files = manifest::read(path, &FILES)?;
    let damaged = |name: &str, reason: String| CheckpointError::Damaged { path: path.join(name), reason };
    let required = |name: &str| {
        files.get(name).ok_or_else(|| damaged(MANIFEST, format!("lists no {name}, which a checkpoint needs")))
    };
    let tensors = |name: &str, bytes: &[u8]| match Weights::from_bytes(bytes) {
        Ok(weights) => Ok(weights),
        Err(WeightsError::Format { reason, .. }) => Err(damaged(name, reason)),
        Err(error) => Err(damaged(name, error.to_string())),
    };

    let weights = tensors(WEIGHTS, required(WEIGHTS)?)?;
    let network = weights.infer_network().map_err(|error| damaged(WEIGHTS, error.to_string()))?;
    weights.check(&network).map_err(|error| damaged(WEIGHTS, error.to_string()))?;
    let momentum = tensors(MOMENTUM, required(MOMENTUM)?)?;
    let average = files.get(AVERAGE).map(|bytes| tensors(AVERAGE, bytes)).transpose()?;
    let objective = files.get(OBJECTIVE).map(|bytes| tensors(OBJECTIVE, bytes)).transpose()?;
    let progress: Progress =
        serde_json::from_slice(required(PROGRESS)?).map_err(|error| damaged(PROGRESS, error.to_string()))?;
    let samples = match files.get(SAMPLES) {
        Some(bytes) => samples_from(&tensors(SAMPLES, bytes)?).map_err(|reason| damaged(SAMPLES, reason))?,
        None => SamplesSoFar::default(),
    };
    let selection = match files.get(SELECTION) {
        Some(bytes) => {
            selection_from(&tensors(SELECTION, bytes)?).map_err(|reason| damaged(SELECTION, reason))?
        }
        None => SelectionState::default(),
    };
    let optimizer = OptimizerState { momentum, average };
    let objective = objective.unwrap_or_default();
    Ok(Checkpoint { weights, optimizer, objective, progress, samples, selection })
}

/// The weights file inside a checkpoint folder that stands for the epoch: the moving average where one is kept.
pub fn weights_to_judge(path: &Path) -> PathBuf {
    let average = path.join(AVERAGE);
    if average.exists() { average } else { path.join(WEIGHTS) }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_path_buf();
    |source| CheckpointError::Io { path, source }
}

/// Removes what an earlier run was writing when it died.
fn remove_unfinished(folder: &Path) -> Result<(), CheckpointError> {
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path()).map_err(at(&entry.path()))?;
        }
    }
    Ok(())
}

fn write_files(path: &Path, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    let mut folder = Writer::create(path)?;
    let mut write = |name: &str, bytes: &[u8]| folder.write(name, bytes);
    write(WEIGHTS, &checkpoint.weights.to_bytes())?;
    write(MOMENTUM, &checkpoint.optimizer.momentum.to_bytes())?;
    if let Some(average) = &checkpoint.optimizer.average {
        write(AVERAGE, &average.to_bytes())?;
    }
    if !checkpoint.objective.tensors.is_empty() {
        write(OBJECTIVE, &checkpoint.objective.to_bytes())?;
    }
    if checkpoint.progress.step > 0 {
        write(SAMPLES, &samples_to(&checkpoint.samples).to_bytes())?;
    }
    if checkpoint.selection != SelectionState::default() {
        write(SELECTION, &selection_to(&checkpoint.selection).to_bytes())?;
    }
    write(PROGRESS, &json(&checkpoint.progress))?;
    folder.finish()
}

fn samples_to(samples: &SamplesSoFar) -> Weights {
    let mut tensors = Weights::default();
    let predictions: Vec<f32> = samples.predictions.iter().map(|&class| class as f32).collect();
    tensors.insert("losses", &[samples.losses.len()], samples.losses.clone());
    tensors.insert("predictions", &[predictions.len()], predictions);
    insert_some(&mut tensors, "scores", &samples.scores);
    insert_some(&mut tensors, "adversarial", &samples.adversarial);
    tensors
}

fn samples_from(tensors: &Weights) -> Result<SamplesSoFar, String> {
    let tensor = |name: &str| tensors.tensors.get(name).ok_or(format!("no tensor '{name}'"));
    let losses = tensor("losses")?.values.clone();
    let predictions: Vec<u32> = tensor("predictions")?.values.iter().map(|&class| class as u32).collect();
    if losses.len() != predictions.len() {
        return Err(format!("{} losses but {} predictions", losses.len(), predictions.len()));
    }
    let (scores, adversarial) = (values_or_none(tensors, "scores"), values_or_none(tensors, "adversarial"));
    Ok(SamplesSoFar { losses, predictions, scores, adversarial })
}

fn insert_some(tensors: &mut Weights, name: &str, values: &[f32]) {
    if !values.is_empty() {
        tensors.insert(name, &[values.len()], values.into());
    }
}

fn values_or_none(tensors: &Weights, name: &str) -> Vec<f32> {
    tensors.tensors.get(name).map_or(Vec::new(), |tensor| tensor.values.clone())
}

fn selection_to(selection: &SelectionState) -> Weights {
    let mut tensors = Weights::default();
    // Positions are below 2^24, so exact in f32.
    let samples: Vec<f32> = selection.samples.iter().map(|&sample| sample as f32).collect();
    tensors.insert("samples", &[samples.len()], samples);
    tensors.insert("weights", &[selection.weights.len()], selection.weights.clone());
    tensors.insert("losses", &[selection.losses.len()], selection.losses.clone());
    insert_some(&mut tensors, "scores", &selection.scores.means);
    insert_some(&mut tensors, "score_counts", &selection.scores.counts);
    tensors
}

fn selection_from(tensors: &Weights) -> Result<SelectionState, String> {
    let tensor = |name: &str| tensors.tensors.get(name).ok_or(format!("no tensor '{name}'"));
    let samples: Vec<u32> = tensor("samples")?.values.iter().map(|&sample| sample as u32).collect();
    let (weights, losses) = (tensor("weights")?.values.clone(), tensor("losses")?.values.clone());
    if samples.len() != weights.len() {
        return Err(format!("{} samples but {} weights", samples.len(), weights.len()));
    }
    if !samples.is_sorted_by(|a, b| a < b) {
        return Err("its samples do not ascend".into());
    }
    let (means, counts) = (values_or_none(tensors, "scores"), values_or_none(tensors, "score_counts"));
    if means.len() != counts.len() {
        return Err(format!("{} scores but {} counts of them", means.len(), counts.len()));
    }
    Ok(SelectionState { samples, weights, losses, scores: MeanScores { means, counts } })
}
