//! Checkpoints: everything a run needs to go on with the very same bits.
//!
//! A checkpoint is a folder, built under a temporary name, synced to disk and renamed, with a manifest that holds the
//! SHA-256 of each file (`manifest`). A damaged one is passed over for the newest whole one. Written by the training
//! loop, read by `--resume` and by `secateur eval` of a run folder.

mod manifest;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::metrics::{Best, Seconds};
use crate::attack::AttackWork;
use crate::engine::OptimizerState;
use crate::files::{Folder, if_there};
use crate::model::{Weights, WeightsError};
use crate::prune::{Diagnosis, MeanScores};
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
    /// PGD-5 accuracy on a training batch after the last epoch, where overfitting is watched.
    pub pgd5_accuracy: Option<f64>,
    /// Attacks of the unfinished epoch.
    pub epoch_attacks: AttackWork,
    /// Time spent in the unfinished epoch.
    pub epoch_seconds: Seconds,
    /// Time spent in the whole run, unfinished epoch included.
    pub run_seconds: Seconds,
    /// Optimizer steps of the whole run; absent in checkpoints from before they were counted.
    pub optimizer_steps: Option<u64>,
    /// Images trained on in the finished epochs; absent in checkpoints from before there was data pruning.
    pub run_images: Option<u64>,
    /// The last selection of samples, where there was one.
    pub selection: Option<LastSelection>,
    /// Engines that shared the batches; absent in checkpoints from before there could be several.
    pub ranks: Option<usize>,
}

impl Progress {
    /// Counts time for the unfinished epoch and for the run.
    pub fn spend(&mut self, seconds: Seconds) {
        self.epoch_seconds += seconds;
        self.run_seconds += seconds;
    }
}

/// When samples were selected last, and what was measured of them. Older checkpoints have another residual instead, which
/// is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastSelection {
    /// The epoch that it was made for, counted from 0.
    pub epoch: u32,
    pub diagnosis: Option<Diagnosis>,
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
    #[error("{path}: none of its {count} checkpoints is whole; put one back, or start anew in another --out")]
    NoneWhole { path: PathBuf, count: usize },
}

/// The folder name of a checkpoint at this place of a run.
pub fn name(epoch: u32, step: usize) -> String {
    format!("epoch-{epoch:04}-step-{step:06}")
}

fn parse_name(text: &str) -> Option<(u32, usize)> {
    let (epoch, step) = text.strip_prefix("epoch-")?.split_once("-step-")?;
    let place = (epoch.parse().ok()?, step.parse().ok()?);
    (name(place.0, place.1) == text).then_some(place)
}

/// Every folder in `folder` that bears a checkpoint's name, newest first; whole or not. Files and links that do are none.
pub fn list(folder: impl Into<Folder>) -> Result<Vec<String>, CheckpointError> {
    let folder = folder.into();
    let Some(names) = if_there(folder.names()).map_err(at(folder.path()))? else { return Ok(Vec::new()) };
    let place = |name: OsString| {
        let name = name.into_string().ok().filter(|name| folder.has_folder(name))?;
        Some((parse_name(&name)?, name))
    };
    let mut found: Vec<_> = names.into_iter().filter_map(place).collect();
    found.sort_by(|a, b| b.cmp(a));
    Ok(found.into_iter().map(|(_, name)| name).collect())
}

/// Writes a checkpoint into `folder`; a reader sees all of it or nothing. Then removes those older than the newest `keep` whole
/// ones (at least one); this one and that of the best epoch stay.
pub fn save(
    folder: impl Into<Folder>,
    checkpoint: &Checkpoint,
    keep: usize,
) -> Result<PathBuf, CheckpointError> {
    let folder = &folder.into();
    let Progress { epoch, step, best, .. } = &checkpoint.progress;
    folder.create().map_err(at(folder.path()))?;
    remove_unfinished(folder)?;
    let name = name(*epoch, *step);
    let unfinished = format!("{UNFINISHED}{name}");
    let path = folder.path().join(&name);
    if let Err(error) = write_files(folder.folder(&unfinished), checkpoint) {
        // A full disk: give the room back. The first error is the one to report.
        let _ = folder.remove(&unfinished);
        return Err(error);
    }
    // One of the same place: damaged and passed over, or whole, where the run was interrupted twice within a step.
    if_there(folder.rename(&name, format!("{UNFINISHED}replaced-{name}"))).map_err(at(&path))?;
    folder.rename(&unfinished, &name).map_err(at(&path))?;
    folder.sync().map_err(at(folder.path()))?;
    remove_unfinished(folder)?;

    let best = best.as_ref().map(|best| self::name(best.epoch, 0));
    let mut whole = 0;
    for old in list(folder)? {
        if old == name {
            whole += 1;
        } else if whole < keep.max(1) {
            whole += usize::from(manifest::read(&folder.folder(&old), &FILES).is_ok());
        } else if Some(&old) != best.as_ref() {
            folder.remove(&old).map_err(at(&folder.path().join(&old)))?;
        }
    }
    Ok(path)
}

/// The newest whole checkpoint; `None` where there is none at all. `warn` gets each damaged one that is passed over.
///
/// # Errors
/// [`CheckpointError::Io`] for one that cannot be read: it may be whole.
pub fn load_newest(
    folder: impl Into<Folder>,
    warn: &mut dyn FnMut(&CheckpointError),
) -> Result<Option<(PathBuf, Checkpoint)>, CheckpointError> {
    let folder = folder.into();
    let candidates = list(&folder)?;
    for name in &candidates {
        match load(folder.folder(name)) {
            Ok(checkpoint) => return Ok(Some((folder.path().join(name), checkpoint))),
            Err(error @ CheckpointError::Io { .. }) => return Err(error),
            Err(error) => warn(&error),
        }
    }
    match candidates.len() {
        0 => Ok(None),
        count => Err(CheckpointError::NoneWhole { path: folder.path().into(), count }),
    }
}

/// Reads one checkpoint; every file must have the size and digest that the manifest gives.
pub fn load(folder: impl Into<Folder>) -> Result<Checkpoint, CheckpointError> {
    let folder = folder.into();
    let (files, path) = (manifest::read(&folder, &FILES)?, folder.path());
    let damaged = |name: &str, reason: String| CheckpointError::Damaged { path: path.join(name), reason };
    let required = |name: &str| files.get(name).ok_or_else(|| missing(path, name));
    let tensors = |name: &str, bytes: &[u8]| match Weights::from_bytes(bytes) {
        Ok(weights) => Ok(weights),
        Err(WeightsError::Format { reason, .. }) => Err(damaged(name, reason)),
        Err(error) => Err(damaged(name, error.to_string())),
    };

    let weights = tensors(WEIGHTS, required(WEIGHTS)?)?;
    let network = weights.infer_network().map_err(|error| damaged(WEIGHTS, error.to_string()))?;
    weights.check(&network).map_err(|error| damaged(WEIGHTS, error.to_string()))?;
    let momentum = tensors(MOMENTUM, required(MOMENTUM)?)?;
    let optional = |name: &str| files.get(name).map(|bytes| tensors(name, bytes)).transpose();
    let average = optional(AVERAGE)?;
    let objective = optional(OBJECTIVE)?.unwrap_or_default();
    let progress: Progress =
        serde_json::from_slice(required(PROGRESS)?).map_err(|error| damaged(PROGRESS, error.to_string()))?;
    let samples = optional(SAMPLES)?.map(|tensors| samples_from(&tensors)).transpose();
    let samples = samples.map_err(|reason| damaged(SAMPLES, reason))?.unwrap_or_default();
    let selection = optional(SELECTION)?.map(|tensors| selection_from(&tensors)).transpose();
    let selection = selection.map_err(|reason| damaged(SELECTION, reason))?.unwrap_or_default();
    let optimizer = OptimizerState { momentum, average };
    Ok(Checkpoint { weights, optimizer, objective, progress, samples, selection })
}

/// Whether a checkpoint has a file of this name.
pub fn is_file_name(name: &OsStr) -> bool {
    FILES.iter().chain([&MANIFEST]).any(|known| name == *known)
}

/// The file inside a checkpoint folder whose weights stand for the epoch, and its bytes, which are those of the manifest: the
/// moving average where one is kept.
pub fn weights_to_evaluate(folder: impl Into<Folder>) -> Result<(PathBuf, Vec<u8>), CheckpointError> {
    let folder = folder.into();
    let mut files = manifest::read(&folder, &FILES)?;
    let name = if files.contains_key(AVERAGE) { AVERAGE } else { WEIGHTS };
    match files.remove(name) {
        Some(bytes) => Ok((folder.path().join(name), bytes)),
        None => Err(missing(folder.path(), name)),
    }
}

/// The manifest lacks a file.
fn missing(path: &Path, name: &str) -> CheckpointError {
    let reason = format!("lists no {name}, which a checkpoint needs");
    CheckpointError::Damaged { path: path.join(MANIFEST), reason }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_path_buf();
    |source| CheckpointError::Io { path, source }
}

/// Removes what an earlier run was writing when it died.
fn remove_unfinished(folder: &Folder) -> Result<(), CheckpointError> {
    for name in folder.names().map_err(at(folder.path()))? {
        if name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            folder.remove(&name).map_err(at(&folder.path().join(&name)))?;
        }
    }
    Ok(())
}

fn write_files(folder: Folder, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    let mut folder = Writer::create(folder)?;
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
