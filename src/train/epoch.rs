//! One epoch of a training run: selection where due, steps, validation, metrics, and a checkpoint where due.

use std::time::Instant;

use super::epoch_report::{self, Measured};
use super::metrics::{Best, Seconds};
use super::overfitting;
use super::run::RunContext;
use super::tensorboard;
use super::{Result, TrainError, Trainer, checkpoint};
use crate::engine::{self, WeightSet};
use crate::evaluate::{Outcome, Protocol, Subject, evaluate};
use crate::progress::{Event, watch};
use crate::prune::{self, PruneError};
use crate::recipe::Recipe;

/// The weights that are evaluated: their moving average where the recipe keeps one.
pub(super) fn evaluated_weights(recipe: &Recipe) -> WeightSet {
    match recipe.optimizer.average_decay {
        Some(_) => WeightSet::Average,
        None => WeightSet::Live,
    }
}

/// Selects where due, trains the rest of an epoch, validates, writes the metrics and, where due, a checkpoint. `validation` are
/// positions in the training images.
pub(super) fn epoch(
    run: &RunContext,
    trainer: &mut Trainer,
    validation: &[u32],
    best_by: &Protocol,
) -> Result<()> {
    let (recipe, progress) = (run.recipe, run.progress);
    let number = trainer.progress.epoch + 1;
    let epoch_schedule = *trainer.epoch_schedule();
    let epochs = epoch_schedule.epochs();
    if !select(run, trainer)? {
        return interrupted(run, trainer);
    }
    progress
        .event(Event::Begin { task: &format!("epoch {number}/{epochs}"), total: trainer.steps_per_epoch() });
    let finished = trainer.epoch(&mut |step| {
        progress.event(Event::Done(step));
        !progress.stop()
    })?;
    // An epoch that ends with its last step may be interrupted too: its validation is then done on resuming.
    let Some(outcome) = finished else { return interrupted(run, trainer) };
    for (&image, &loss) in outcome.order.iter().zip(&outcome.samples.losses) {
        if !loss.is_finite() {
            return Err(TrainError::Diverged { epoch: number, image, loss });
        }
    }

    let (mut validated, mut live) = (None, None);
    if !validation.is_empty() && epoch_schedule.due(recipe.evaluation.every, number) {
        let begin = Instant::now();
        let weights = evaluated_weights(recipe);
        validated = validate(run, trainer, validation, best_by, weights)?;
        if validated.is_some() && weights == WeightSet::Average {
            live = validate(run, trainer, validation, best_by, WeightSet::Live)?;
        }
        if validated.is_none() || (weights == WeightSet::Average && live.is_none()) {
            return interrupted(run, trainer);
        }
        trainer.progress.spend(Seconds { evaluate: begin.elapsed().as_secs_f64(), ..Seconds::default() });
    }

    let Some(watched) = overfitting::watch(run, trainer)? else { return interrupted(run, trainer) };

    let state = &mut trainer.progress;
    let best =
        validated.is_some_and(|(_, robust)| state.best.is_none_or(|best| robust > best.validation_robust));
    if let (true, Some((validation_clean, validation_robust))) = (best, validated) {
        state.best = Some(Best { epoch: number, validation_clean, validation_robust });
    }
    let measured = Measured { validated, live, best, watched };
    let metrics = epoch_report::metrics(trainer, run.labels, &outcome, &measured);
    trainer.progress.pgd5_accuracy = watched.accuracy;
    trainer.end_epoch(&outcome);

    run.folder.append_metrics(&metrics)?;
    if recipe.metrics.tensorboard {
        tensorboard::append(run.folder, &metrics)?;
    }
    let chosen = trainer.progress.selection.filter(|_| metrics.selected);
    let diagnosis = chosen.and_then(|last| last.diagnosis);
    progress.event(Event::Result(&epoch_report::line(&metrics, diagnosis, epochs)));
    if let Some((before, after)) = watched.fall {
        progress.event(Event::Warning(&format!(
            "epoch {number}: catastrophic overfitting: PGD-5 accuracy on training images fell from {before:.3} to \
             {after:.3}"
        )));
    }
    let stop = watched.fall.filter(|_| recipe.overfitting.stop);
    if best || stop.is_some() || epoch_schedule.due(recipe.checkpoint.every, number) {
        save(run, trainer)?;
    }
    match stop {
        Some((before, after)) => Err(TrainError::Overfitted { epoch: number, before, after }),
        None => Ok(()),
    }
}

/// Chooses the samples of the epoch where that is due, and keeps what was chosen in the run's folder; `false` where the
/// user asked to stop.
fn select(run: &RunContext, trainer: &mut Trainer) -> Result<bool> {
    let number = trainer.progress.epoch + 1;
    let chosen = trainer.begin_epoch(&mut watch(run.progress, format!("selection for epoch {number}")));
    match selected(chosen, number)? {
        Some(chosen) => {
            let diagnosis = trainer.progress.selection.and_then(|last| last.diagnosis);
            if let (true, Some(subset), Some(diagnosis)) = (chosen, trainer.subset(), diagnosis) {
                run.folder.write_selection(number, subset, &diagnosis)?;
                if let Some(warning) = diagnosis.warning() {
                    let warning = format!("selection for epoch {number}: {warning}");
                    run.progress.event(Event::Warning(&warning));
                }
            }
            Ok(true)
        }
        None => Ok(false),
    }
}

/// What a selection for an epoch returned; `None` where the user asked to stop.
pub(super) fn selected<T>(done: prune::Result<T>, epoch: u32) -> Result<Option<T>> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(PruneError::Stopped) => Ok(None),
        Err(PruneError::Engine(error)) => Err(error.into()),
        Err(PruneError::Data(error)) => Err(error.into()),
        Err(PruneError::Invalid(reason)) => Err(TrainError::Selection { epoch, reason }),
    }
}

fn save(run: &RunContext, trainer: &Trainer) -> Result<()> {
    checkpoint::save(run.folder.checkpoints(), &trainer.checkpoint()?, run.recipe.checkpoint.keep)?;
    Ok(())
}

fn interrupted<T>(run: &RunContext, trainer: &Trainer) -> Result<T> {
    run.progress.event(Event::End);
    save(run, trainer)?;
    Err(TrainError::Interrupted { folder: run.folder.path().into() })
}

/// Clean and robust accuracy of one set of weights on the validation images; `None` where the user asked to stop.
fn validate(
    run: &RunContext,
    trainer: &mut Trainer,
    samples: &[u32],
    best_by: &Protocol,
    weights: WeightSet,
) -> Result<Option<(f64, f64)>> {
    let mut accuracy = |protocol| -> Result<Option<f64>> {
        let Some(outcome) = measure(run, trainer, samples, weights, protocol, "validation")? else {
            return Ok(None);
        };
        if outcome.non_finite > 0 {
            run.progress.event(Event::End);
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

/// The outcome of a protocol on some of the training images, as a task with this label; `None` where the user asked to stop.
pub(super) fn measure(
    run: &RunContext,
    trainer: &mut Trainer,
    samples: &[u32],
    weights: WeightSet,
    protocol: &Protocol,
    label: &str,
) -> Result<Option<Outcome>, engine::Error> {
    let (epsilon, seed) = (run.recipe.attack.epsilon.as_f32(), run.recipe.seed);
    let subject = Subject { set: trainer.set, samples, weights, epsilon, seed };
    let scratch = trainer.batch.clone();
    let watch = &mut watch(run.progress, format!("{label} {protocol}"));
    evaluate(trainer.engine, subject, protocol, &scratch, watch)
}
