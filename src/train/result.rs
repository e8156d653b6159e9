//! The end of a run: its best and its last weights for other programs, their accuracy on the test images, `result.json`.
//!
//! What is measured is kept in `best.state` and `last.state` until all is: a run that is interrupted here measures the rest.

use std::time::Instant;

use serde::Serialize;

use super::checkpoint::{self, Checkpoint, CheckpointError};
use super::epoch::evaluated_weights;
use super::metrics::{Best, Seconds};
use super::run::RunContext;
use super::{Result, TrainError, Trainer};
use crate::digest::sha256;
use crate::engine::Engine;
use crate::evaluate::state::{Finished, State};
use crate::evaluate::{EvaluatedImages, Evaluation, EvaluationError, EvaluationPlan, Protocol, sanity};
use crate::files::Place;
use crate::model::{ResNet, Weights, WeightsFile};
use crate::progress::{Event, Inner};

/// The end of a run; written as `result.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub recipe: String,
    pub seed: u64,
    /// Radius of the ball, as the recipe writes it.
    pub epsilon: String,
    /// The protocol that chose the best epoch on the validation images, and that epoch, where there are any.
    pub best_by: String,
    pub best: Option<Best>,
    pub test: Vec<TestAccuracy>,
    /// Over all sessions of the run.
    pub seconds: Seconds,
    pub seconds_test: f64,
    /// Training images over the seconds of attack and train.
    pub images_per_second: f64,
}

/// Accuracy of one set of weights under one protocol on the test images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TestAccuracy {
    /// `best` or `last`.
    pub weights: &'static str,
    /// Epochs trained.
    pub epoch: u32,
    pub protocol: String,
    pub correct: usize,
    pub total: usize,
    pub accuracy: f64,
    pub seconds: f64,
    /// Images with a logit that is NaN or infinite, counted as wrong.
    pub non_finite: usize,
    /// Images for which an attack had no gradient to follow.
    pub zero_gradients: usize,
}

impl TestAccuracy {
    /// What an evaluation found of one set of weights.
    pub fn new(weights: &'static str, epoch: u32, finished: &Finished) -> Self {
        let outcome = &finished.outcome;
        Self {
            weights,
            epoch,
            protocol: finished.protocol.clone(),
            correct: outcome.correct(),
            total: outcome.robust.len(),
            accuracy: outcome.accuracy(),
            seconds: outcome.seconds,
            non_finite: outcome.non_finite,
            zero_gradients: outcome.zero_gradients,
        }
    }
}

/// Writes the weights for other programs, measures best and last on the test images, writes the results.
pub(super) fn finish(run: &RunContext, trainer: Trainer, protocols: &[Protocol]) -> Result<Summary> {
    let recipe = run.recipe;
    let begin = Instant::now();
    let Trainer { engine, progress: state, .. } = trainer;
    let (epoch, network) = (state.epoch, engine.network());
    let weights = engine.weights(evaluated_weights(recipe))?;
    let last = Candidate::keep(run, "last", epoch, network, weights)?;
    // Weights that are no numbers are kept for whoever looks for the reason, and not measured.
    let diverged = last.file.weights.check(&network).err();
    let mut candidates = Vec::new();
    if let Some(best) = state.best {
        let folder = run.folder.checkpoints().folder(checkpoint::name(best.epoch, 0));
        match checkpoint::load(&folder) {
            Ok(Checkpoint { weights, optimizer, .. }) => {
                let weights = optimizer.average.unwrap_or(weights);
                candidates.push(Candidate::keep(run, "best", best.epoch, network, weights)?);
            }
            Err(error @ CheckpointError::Damaged { .. }) => {
                run.progress.event(Event::Warning(&format!("the best weights are lost: {error}")));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if diverged.is_none() {
        candidates.push(last);
    }
    let test = test(run, engine, protocols, &candidates)?;

    let seconds = state.run_seconds;
    let images = state.run_images.unwrap_or(0);
    let summary = Summary {
        recipe: recipe.name.clone(),
        seed: recipe.seed,
        epsilon: recipe.attack.epsilon.to_string(),
        best_by: recipe.evaluation.best_by.clone(),
        best: state.best,
        test,
        seconds,
        seconds_test: begin.elapsed().as_secs_f64(),
        images_per_second: images as f64 / seconds.training(),
    };
    run.folder.write_json("result.json", &summary)?;
    for candidate in &candidates {
        State::remove(&candidate.state(run)).map_err(EvaluationError::State)?;
    }
    if let Some(source) = diverged {
        return Err(TrainError::DivergedWeights { epoch, source });
    }
    match summary.test.iter().find(|row| row.non_finite > 0) {
        Some(row) => Err(TrainError::NonFinite {
            epoch: row.epoch,
            split: "test",
            count: row.non_finite,
            total: row.total,
        }),
        None => Ok(summary),
    }
}

/// Weights to measure.
struct Candidate {
    /// `best` or `last`.
    label: &'static str,
    /// Epochs trained.
    epoch: u32,
    file: WeightsFile,
}

impl Candidate {
    /// Writes the weights into the run's folder.
    fn keep(
        run: &RunContext,
        label: &'static str,
        epoch: u32,
        network: ResNet,
        weights: Weights,
    ) -> Result<Self> {
        let (name, bytes) = (format!("{label}.safetensors"), weights.to_bytes());
        run.folder.write(&name, &bytes)?;
        let path = run.folder.path().join(name);
        Ok(Self { label, epoch, file: WeightsFile { path, sha256: sha256(&bytes), network, weights } })
    }

    /// Where the accuracies that are known lie until all are.
    fn state(&self, run: &RunContext) -> Place {
        run.folder.place(&format!("{}.state", self.label))
    }
}

/// Accuracy of each candidate under each protocol; the same weights are measured once.
fn test(
    run: &RunContext,
    engine: &mut Engine,
    protocols: &[Protocol],
    candidates: &[Candidate],
) -> Result<Vec<TestAccuracy>> {
    let recipe = run.recipe;
    let plan = EvaluationPlan {
        images: EvaluatedImages::test(run.data, recipe.evaluation.samples.unwrap_or(usize::MAX)),
        protocols: protocols.into(),
        epsilon: recipe.attack.epsilon.clone(),
        seed: recipe.seed,
        batch: recipe.batch,
        dumped: None,
    };
    let mut rows: Vec<TestAccuracy> = Vec::new();
    for candidate in candidates {
        let &Candidate { label, epoch, ref file } = candidate;
        let known: Vec<TestAccuracy> = rows.iter().filter(|row| row.epoch == epoch).cloned().collect();
        if !known.is_empty() {
            rows.extend(known.into_iter().map(|row| TestAccuracy { weights: label, ..row }));
            continue;
        }
        let (place, progress) = (candidate.state(run), run.progress);
        let mut evaluation = Evaluation::resume_or_replace(engine, file, plan.clone(), place, progress)?;
        let known = evaluation.finished().len();
        let inner = Inner { outer: progress, label: &format!("test of {label} ") };
        let complete = evaluation.run(&inner)?;
        for (protocol, outcome) in evaluation.outcomes().skip(known) {
            for doubt in sanity::doubts(protocol, outcome) {
                progress.event(Event::Warning(&format!("test of {label}: {doubt}")));
            }
        }
        if !complete {
            // Every epoch is trained and saved: resuming comes straight back here.
            return Err(TrainError::Interrupted { folder: run.folder.path().into() });
        }
        rows.extend(evaluation.finished().iter().map(|done| TestAccuracy::new(label, epoch, done)));
    }
    Ok(rows)
}
