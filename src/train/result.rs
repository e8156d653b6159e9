//! The end of a run: its best and its last weights for other programs, their accuracy on the test images, `result.json`.
//!
//! What is measured is kept in `best.state` and `last.state` until all is: a run that is interrupted here measures the rest.

use std::time::Instant;

use serde::Serialize;

use super::checkpoint::{self, Checkpoint, CheckpointError};
use super::metrics::{Best, Seconds};
use super::{Result, Run, TrainError, Trainer, judge, judged};
use crate::digest::sha256;
use crate::engine::WeightSet;
use crate::evaluate::state::{Finished, Settings, State, StateError, device_name};
use crate::evaluate::{Protocol, Subject, sanity};
use crate::files::Place;
use crate::model::Weights;
use crate::ops::ImageSet;

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

/// Writes the weights for other programs, measures best and last on the test images, writes the results.
pub(super) fn finish(run: &Run, mut trainer: Trainer, protocols: &[Protocol]) -> Result<Summary> {
    let recipe = run.recipe;
    let begin = Instant::now();
    let epoch = trainer.progress.epoch;
    let weights = trainer.engine.weights(judged(recipe))?;
    run.folder.write("last.safetensors", &weights.to_bytes())?;
    // Weights that are no numbers are kept for whoever looks for the reason, and not measured.
    let diverged = weights.check(&trainer.engine.network()).err();
    let mut candidates = Vec::new();
    if diverged.is_none() {
        candidates.push(Candidate { label: "last", epoch, weights });
    }
    if let Some(best) = trainer.progress.best {
        let folder = run.folder.checkpoints().folder(checkpoint::name(best.epoch, 0));
        match checkpoint::load(&folder) {
            Ok(Checkpoint { weights, optimizer, .. }) => {
                let weights = optimizer.average.unwrap_or(weights);
                run.folder.write("best.safetensors", &weights.to_bytes())?;
                candidates.insert(0, Candidate { label: "best", epoch: best.epoch, weights });
            }
            Err(error @ CheckpointError::Damaged { .. }) => {
                run.console.note(format!("warning: the best weights are lost: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let test = test(run, &mut trainer, protocols, &candidates)?;

    let seconds = trainer.progress.run_seconds;
    let images = trainer.progress.run_images.unwrap_or(0);
    let summary = Summary {
        recipe: recipe.name.clone(),
        seed: recipe.seed,
        epsilon: recipe.attack.epsilon.to_string(),
        best_by: recipe.evaluation.best_by.clone(),
        best: trainer.progress.best,
        test,
        seconds,
        seconds_test: begin.elapsed().as_secs_f64(),
        images_per_second: images as f64 / seconds.training(),
    };
    run.folder.write_json("result.json", &summary)?;
    for candidate in &candidates {
        State::remove(&candidate.state(run))?;
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
    weights: Weights,
}

impl Candidate {
    /// Where the accuracies that are known lie until all are.
    fn state(&self, run: &Run) -> Place {
        run.folder.place(&format!("{}.state", self.label))
    }
}

/// Accuracy of each candidate under each protocol; the same weights are measured once.
fn test(
    run: &Run,
    trainer: &mut Trainer,
    protocols: &[Protocol],
    candidates: &[Candidate],
) -> Result<Vec<TestAccuracy>> {
    let recipe = run.recipe;
    let set = ImageSet::upload(&trainer.engine, &run.data.test.pixels, &run.data.test.labels)?;
    let count = recipe.evaluation.samples.map_or(set.count, |samples| samples.min(set.count));
    let samples: Vec<u32> = (0..count as u32).collect();
    let mut rows: Vec<TestAccuracy> = Vec::new();
    let images_sha256 = run.data.test.sha256(count);
    for candidate in candidates {
        let &Candidate { label, epoch, ref weights } = candidate;
        let known: Vec<TestAccuracy> = rows.iter().filter(|row| row.epoch == epoch).cloned().collect();
        if !known.is_empty() {
            rows.extend(known.into_iter().map(|row| TestAccuracy { weights: label, ..row }));
            continue;
        }
        let device = trainer.engine.device();
        let settings = Settings {
            weights_sha256: sha256(&weights.to_bytes()),
            data: run.data.name.clone(),
            split: "test".into(),
            samples: count,
            images_sha256: images_sha256.clone(),
            epsilon: recipe.attack.epsilon.to_string(),
            seed: recipe.seed,
            protocols: protocols.iter().map(Protocol::to_string).collect(),
            device: device_name(device.kind, &device.code),
            build: env!("CARGO_PKG_VERSION").into(),
            dump: false,
        };
        let path = candidate.state(run);
        let mut state = match State::load(&path, &settings) {
            Err(error @ StateError::Io { .. }) => return Err(error.into()),
            // None, or of other weights: measured anew.
            Err(_) => State::new(settings),
            Ok(state) => state,
        };
        trainer.engine.load_weights(weights)?;
        for (number, protocol) in protocols.iter().enumerate() {
            let subject = Subject {
                set: &set,
                samples: &samples,
                weights: WeightSet::Live,
                epsilon: recipe.attack.epsilon.as_f32(),
                seed: recipe.seed,
            };
            if state.finished.len() <= number {
                let Some(outcome) = judge(run, trainer, subject, protocol, &format!("test of {label}"))?
                else {
                    // Every epoch is trained and saved: resuming comes straight back here.
                    run.console.clear();
                    return Err(TrainError::Interrupted { folder: run.folder.path().into() });
                };
                for doubt in sanity::doubts(protocol, &outcome) {
                    run.console.note(format!("warning: test of {label}: {doubt}"));
                }
                state.finished.push(Finished { protocol: protocol.to_string(), outcome, progress: None });
                state.save(&path)?;
            }
            let outcome = &state.finished[number].outcome;
            rows.push(TestAccuracy {
                weights: label,
                epoch,
                protocol: protocol.to_string(),
                correct: outcome.correct(),
                total: count,
                accuracy: outcome.accuracy(),
                seconds: outcome.seconds,
                non_finite: outcome.non_finite,
                zero_gradients: outcome.zero_gradients,
            });
        }
    }
    run.console.clear();
    Ok(rows)
}
