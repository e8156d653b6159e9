//! Catastrophic overfitting: a single-step method suddenly becomes robust to its own step only, and its accuracy
//! under PGD collapses within an epoch or two.
//!
//! Watched as in "Fast is better than free" (Wong et al., ICLR 2020): PGD-5 accuracy on one batch of training images
//! after each epoch, here always the same images without augmentation, so that two epochs differ by their weights
//! alone.

use std::time::Instant;

use super::Trainer;
use super::epoch::measure;
use super::metrics::Seconds;
use super::run::RunContext;
use crate::engine::{Result, WeightSet};
use crate::evaluate::{PgdProtocol, Protocol, StepSize};

/// What was observed after an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Watched {
    /// PGD-5 accuracy, where the recipe asks for it.
    pub accuracy: Option<f64>,
    /// Accuracy after the epoch before and now, where it fell further than the recipe allows.
    pub fall: Option<(f64, f64)>,
}

/// Measures; `None` where the user asked to stop.
pub fn watch(run: &RunContext, trainer: &mut Trainer) -> Result<Option<Watched>> {
    let recipe = run.recipe;
    if !recipe.overfitting.check {
        return Ok(Some(Watched::default()));
    }
    let begin = Instant::now();
    let samples = trainer.pruning.candidates();
    let samples = &samples[..samples.len().min(recipe.batch)];
    let pgd5 = Protocol::Pgd(PgdProtocol { steps: 5, restarts: 1, step_size: StepSize::TwoLevels });
    let Some(outcome) = measure(run, trainer, samples, WeightSet::Live, &pgd5, "overfitting check")? else {
        return Ok(None);
    };
    trainer.progress.spend(Seconds { evaluate: begin.elapsed().as_secs_f64(), ..Seconds::default() });
    let now = outcome.accuracy();
    let before = trainer.progress.pgd5_accuracy;
    let fall = before.filter(|before| before - now > recipe.overfitting.max_fall).map(|before| (before, now));
    Ok(Some(Watched { accuracy: Some(now), fall }))
}
