//! A training run: from a recipe and images to a folder with weights, metrics and results.
//!
//! [`run`] starts or resumes, trains epoch by epoch, validates, saves, and at the end has the best and the last weights
//! measured on the test images ([`result`]). Called by `secateur train` and `secateur bench speedup`. Checked by
//! `tests/training.rs`.

pub mod checkpoint;
mod epoch_report;
pub mod interrupt;
pub mod metrics;
mod overfitting;
mod pruning;
pub mod result;
pub mod run_folder;
pub mod schedule;
mod scores;
mod step_clock;
mod super_batch;
mod tensorboard;
mod trainer;

pub use trainer::{EpochOutcome, Trainer};

use std::path::PathBuf;
use std::time::Instant;

use crate::attack::AttackWork;
use crate::console::Console;
use crate::data::{DataError, DataSet, order::split};
use crate::engine::{self, Engine, ImageSet, WeightSet};
use crate::evaluate::state::StateError;
use crate::evaluate::{Outcome, Protocol, Subject, evaluate};
use crate::model::{ResNet, WeightsError, initialise};
use crate::prune::PruneError;
use crate::recipe::Recipe;
use checkpoint::CheckpointError;
use epoch_report::Judged;
use metrics::{Best, Seconds};
use result::Summary;
use run_folder::{RunFolder, RunFolderError};

/// What a run is made of.
pub struct Run<'a> {
    pub recipe: &'a Recipe,
    pub data: &'a DataSet,
    pub folder: &'a RunFolder,
    pub console: &'a Console,
    /// Asked between steps and between batches of an evaluation; `true` ends the run behind a checkpoint.
    pub stop: &'a dyn Fn() -> bool,
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Folder(#[from] RunFolderError),
    #[error(transparent)]
    Evaluation(#[from] StateError),
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
    #[error("interrupted; continue with --resume --out {}", folder.display())]
    Interrupted { folder: PathBuf },
}

type Result<T, E = TrainError> = std::result::Result<T, E>;

/// The network that a recipe trains on these images.
pub fn network(recipe: &Recipe) -> ResNet {
    ResNet::resnet18(recipe.model.width, recipe.data.set.classes())
}

/// Trains to the end of the recipe, from the newest whole checkpoint of the folder if it has any.
pub fn run(engine: &mut dyn Engine, run: &Run) -> Result<Summary> {
    let recipe = run.recipe;
    let protocols = Protocols::of_recipe(recipe)?;

    let checkpoints = run.folder.checkpoints();
    let warn = &mut |error: &CheckpointError| {
        run.console.note(format!("warning: checkpoint passed over: {error}"));
    };
    let resumed = checkpoint::load_newest(&checkpoints, warn)?;

    let set = engine.upload_images(&run.data.train.pixels, &run.data.train.labels)?;
    let kept = &recipe.data;
    let split =
        split(&run.data.train, run.data.classes, kept.validation, kept.validation_split, recipe.seed)?
            .reserve(
                &run.data.train.labels,
                run.data.classes,
                recipe.selection.held_out_share(),
                recipe.seed,
            );
    engine.load_weights(&initialise(network(recipe), recipe.seed))?;
    let mut trainer = Trainer::new(engine, recipe, &set, &split)?;
    if let Some((path, checkpoint)) = &resumed {
        trainer.accepts(checkpoint).map_err(|reason| TrainError::Mismatch { path: path.clone(), reason })?;
        trainer.restore(checkpoint)?;
        let done = &checkpoint.progress;
        run.console.note(format!("resumed behind epoch {}, step {}", done.epoch, done.step));
    }
    let mut damaged = vec![run.folder.roll_back_metrics(trainer.progress.epoch)?];
    if recipe.metrics.tensorboard {
        damaged.push(tensorboard::synchronize(run.folder)?);
    }
    for path in damaged.into_iter().flatten() {
        run.console.note(format!("warning: {}: a damaged file; what is whole of it is kept", path.display()));
    }

    while (trainer.progress.epoch as usize) < trainer.timeline().epochs() {
        epoch(run, &mut trainer, &set, &split.validation, &protocols.best_by)?;
    }
    run.console.clear();
    result::finish(run, trainer, &protocols.test)
}

/// The protocols that a recipe names.
#[derive(Clone, Debug, PartialEq)]
pub struct Protocols {
    /// Chooses the best epoch on the validation images.
    pub best_by: Protocol,
    /// Measured on the test images at the end.
    pub test: Vec<Protocol>,
}

impl Protocols {
    pub fn of_recipe(recipe: &Recipe) -> Result<Self> {
        let parse = |key, name: &String| name.parse().map_err(|reason| TrainError::Protocol { key, reason });
        let test = recipe.evaluation.protocols.iter().map(|name| parse("evaluation.protocols", name));
        let test = test.collect::<Result<Vec<Protocol>>>()?;
        Protocol::check_list(&test)
            .map_err(|reason| TrainError::Protocol { key: "evaluation.protocols", reason })?;
        Ok(Self { best_by: parse("evaluation.best_by", &recipe.evaluation.best_by)?, test })
    }
}

/// The weights that are judged: their moving average where the recipe keeps one.
fn judged(recipe: &Recipe) -> WeightSet {
    match recipe.optimizer.average_decay {
        Some(_) => WeightSet::Average,
        None => WeightSet::Live,
    }
}

/// Selects where due, trains the rest of an epoch, validates, writes the metrics and, where due, a checkpoint.
fn epoch(
    run: &Run,
    trainer: &mut Trainer,
    set: &ImageSet,
    validation: &[u32],
    best_by: &Protocol,
) -> Result<()> {
    let (recipe, console) = (run.recipe, run.console);
    let number = trainer.progress.epoch + 1;
    let timeline = *trainer.timeline();
    let epochs = timeline.epochs();
    if !select(run, trainer)? {
        return interrupted(run, trainer);
    }
    console.bar(format!("epoch {number}/{epochs}"), trainer.steps_per_epoch());
    let finished = trainer.epoch(&mut |step| {
        console.at(step);
        !(run.stop)()
    })?;
    // An epoch that ends with its last step may be interrupted too: its validation is then done on resuming.
    let Some(outcome) = finished else { return interrupted(run, trainer) };
    for (&image, &loss) in outcome.order.iter().zip(&outcome.samples.losses) {
        if !loss.is_finite() {
            return Err(TrainError::Diverged { epoch: number, image, loss });
        }
    }

    let (mut validated, mut live) = (None, None);
    if !validation.is_empty() && timeline.due(recipe.evaluation.every, number) {
        let begin = Instant::now();
        let weights = judged(recipe);
        validated = validate(run, trainer, set, validation, best_by, weights)?;
        if validated.is_some() && weights == WeightSet::Average {
            live = validate(run, trainer, set, validation, best_by, WeightSet::Live)?;
        }
        if validated.is_none() || (weights == WeightSet::Average && live.is_none()) {
            return interrupted(run, trainer);
        }
        let seconds = Seconds { evaluate: begin.elapsed().as_secs_f64(), ..Seconds::default() };
        trainer.progress.epoch_seconds += seconds;
        trainer.progress.run_seconds += seconds;
    }

    let Some(watched) = overfitting::watch(run, trainer, set)? else { return interrupted(run, trainer) };

    let progress = &mut trainer.progress;
    let best =
        validated.is_some_and(|(_, robust)| progress.best.is_none_or(|best| robust > best.validation_robust));
    if let (true, Some((validation_clean, validation_robust))) = (best, validated) {
        progress.best = Some(Best { epoch: number, validation_clean, validation_robust });
    }
    let judged = Judged { validated, live, best, watched };
    let metrics = epoch_report::metrics(trainer, &run.data.train.labels, &outcome, &judged);
    let progress = &mut trainer.progress;
    *progress.run_images.get_or_insert(0) += metrics.images as u64;
    progress.epoch = number;
    progress.step = 0;
    progress.pgd5_accuracy = watched.accuracy;
    progress.epoch_attacks = AttackWork::default();
    progress.epoch_seconds = Seconds::default();
    trainer.pruning.learn(&outcome.order, &outcome.samples.scores);

    run.folder.append_metrics(&metrics)?;
    if recipe.metrics.tensorboard {
        tensorboard::append(run.folder, &metrics)?;
    }
    let chosen = trainer.progress.selection.filter(|_| metrics.selected);
    console.line(epoch_report::line(&metrics, chosen.and_then(|last| last.diagnosis), epochs));
    if let Some((before, after)) = watched.fall {
        console.note(format!(
            "warning: epoch {number}: catastrophic overfitting: PGD-5 accuracy on training images fell from {before:.3} \
             to {after:.3}"
        ));
    }
    let stop = watched.fall.filter(|_| recipe.overfitting.stop);
    if best || stop.is_some() || timeline.due(recipe.checkpoint.every, number) {
        save(run, trainer)?;
    }
    match stop {
        Some((before, after)) => Err(TrainError::Overfitted { epoch: number, before, after }),
        None => Ok(()),
    }
}

/// Chooses the samples of the epoch where that is due, and keeps what was chosen in the run's folder; `false` where the
/// user asked to stop.
fn select(run: &Run, trainer: &mut Trainer) -> Result<bool> {
    let number = trainer.progress.epoch + 1;
    let chosen =
        trainer.begin_epoch(&mut run.console.watch(format!("selection for epoch {number}"), run.stop));
    match chosen {
        Ok(chosen) => {
            let diagnosis = trainer.progress.selection.and_then(|last| last.diagnosis);
            if let (true, Some(subset), Some(diagnosis)) = (chosen, trainer.subset(), diagnosis) {
                run.folder.write_selection(number, subset, &diagnosis)?;
                if let Some(warning) = diagnosis.warning() {
                    run.console.note(format!("warning: selection for epoch {number}: {warning}"));
                }
            }
            Ok(true)
        }
        Err(PruneError::Stopped) => Ok(false),
        Err(PruneError::Engine(error)) => Err(error.into()),
        Err(PruneError::Invalid(reason)) => Err(TrainError::Selection { epoch: number, reason }),
    }
}

fn save(run: &Run, trainer: &Trainer) -> Result<()> {
    checkpoint::save(run.folder.checkpoints(), &trainer.checkpoint()?, run.recipe.checkpoint.keep)?;
    Ok(())
}

fn interrupted<T>(run: &Run, trainer: &Trainer) -> Result<T> {
    run.console.clear();
    save(run, trainer)?;
    Err(TrainError::Interrupted { folder: run.folder.path().into() })
}

/// Clean and robust accuracy of one set of weights on the validation images; `None` where the user asked to stop.
fn validate(
    run: &Run,
    trainer: &mut Trainer,
    set: &ImageSet,
    samples: &[u32],
    best_by: &Protocol,
    weights: WeightSet,
) -> Result<Option<(f64, f64)>> {
    let (epsilon, seed) = (run.recipe.attack.epsilon.as_f32(), run.recipe.seed);
    let subject = Subject { set, samples, weights, epsilon, seed };
    let mut accuracy = |protocol| -> Result<Option<f64>> {
        let Some(outcome) = judge(run, trainer, subject, protocol, "validation")? else { return Ok(None) };
        if outcome.non_finite > 0 {
            run.console.clear();
            return Err(TrainError::NonFinite {
                epoch: trainer.progress.epoch + 1,
                split: "validation",
                count: outcome.non_finite,
                total: samples.len(),
            });
        }
        Ok(Some(outcome.accuracy()))
    };
    let Some(clean) = accuracy(&Protocol::Clean)? else { return Ok(None) };
    Ok(accuracy(best_by)?.map(|robust| (clean, robust)))
}

/// Evaluates under a bar; `None` where the user asked to stop.
fn judge(
    run: &Run,
    trainer: &mut Trainer,
    subject: Subject,
    protocol: &Protocol,
    label: &str,
) -> Result<Option<Outcome>, engine::Error> {
    let scratch = trainer.batch.clone();
    let watch = &mut run.console.watch(format!("{label} {protocol}"), run.stop);
    evaluate(trainer.engine, subject, protocol, &scratch, watch)
}
