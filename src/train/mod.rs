//! A training run: from a recipe and images to a folder with weights, metrics and results.

pub mod checkpoint;
pub mod config;
mod environment;
mod epoch;
mod epoch_report;
mod epoch_schedule;
pub mod metrics;
mod overfitting;
mod pruning;
pub mod ranks;
mod recipe;
pub mod result;
mod run;
pub mod run_folder;
pub mod schedule;
mod scores;
mod step_clock;
pub mod step_dump;
mod super_batch;
mod tensorboard;
pub mod trained;
mod trainer;

pub use epoch_schedule::{EpochSchedule, SchedulePosition, Stage};
pub use recipe::Recipe;
pub use run::{Protocols, TrainingRun, TrainingSetup};
pub use trainer::{EpochOutcome, Trainer};

use std::path::PathBuf;

use crate::data::DataError;
use crate::engine;
use crate::evaluate::EvaluationError;
use crate::model::{ResNet, WeightsError};
use crate::recipe::RecipeError;
use checkpoint::CheckpointError;
use run_folder::RunFolderError;

/// The network that a recipe trains on these images.
pub fn network(recipe: &Recipe) -> ResNet {
    ResNet::resnet18(recipe.model.width, recipe.data.set.classes())
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("{0}")]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Folder(#[from] RunFolderError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    #[error("{key}: {reason}")]
    Protocol { key: &'static str, reason: String },
    #[error(
        "epoch {epoch}: the loss of training image {image} is {loss}; training diverged, lower optimizer.learning_rate"
    )]
    Diverged { epoch: u32, image: u32, loss: f32 },
    #[error(
        "epoch {epoch}: {count} of {total} {split} images have a logit that is NaN or infinite; training diverged, lower \
         optimizer.learning_rate"
    )]
    NonFinite { epoch: u32, split: &'static str, count: usize, total: usize },
    #[error("epoch {epoch}: {source}")]
    DivergedWeights { epoch: u32, source: WeightsError },
    #[error(
        "epoch {epoch}: catastrophic overfitting, PGD-5 accuracy on training images fell from {before:.3} to {after:.3}; \
         take an earlier checkpoint, or more or smaller attack steps"
    )]
    Overfitted { epoch: u32, before: f64, after: f64 },
    #[error("epoch {epoch}: selection: {reason}")]
    Selection { epoch: u32, reason: String },
    #[error("{path}: {reason}")]
    Mismatch { path: PathBuf, reason: String },
    #[error("batch = {batch}: fewer images than {ranks} ranks, expected one for each at least")]
    Batch { batch: usize, ranks: usize },
    #[error("rank {rank} of {ranks}: {source}")]
    Rank { rank: usize, ranks: usize, source: Box<TrainError> },
    #[error("interrupted; continue with --resume --out {}", folder.display())]
    Interrupted { folder: PathBuf },
}

type Result<T, E = TrainError> = std::result::Result<T, E>;
