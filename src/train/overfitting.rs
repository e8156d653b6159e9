//! Catastrophic overfitting: a single-step method suddenly learns to withstand its own step only, and its accuracy
//! under PGD collapses within an epoch or two.
//!
//! Watched as in "Fast is better than free" (Wong et al., ICLR 2020): PGD-5 accuracy on one batch of training images
//! behind each epoch, here always the same images without augmentation, so that two epochs differ by their weights
//! alone. Called by the loop over epochs. Checked by `tests/methods.rs`.

use std::time::Instant;

use super::metrics::Seconds;
use super::{Run, Trainer, judge};
use crate::engine::{Result, WeightSet};
use crate::evaluate::{PgdProtocol, Protocol, StepSize, Subject};
use crate::ops::ImageSet;

/// What was seen behind an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Watched {
    /// PGD-5 accuracy, where the recipe asks for it.
    pub accuracy: Option<f64>,
    /// Accuracy behind the epoch before and now, where it fell further than the recipe allows.
    pub fall: Option<(f64, f64)>,
}

/// Measures; `None` where the user asked to stop.
pub fn watch(run: &Run, trainer: &mut Trainer, set: &ImageSet) -> Result<Option<Watched>> {
    let recipe = run.recipe;
    if !recipe.overfitting.check {
        return Ok(Some(Watched::default()));
    }
    let begin = Instant::now();
    let samples = trainer.pruning.candidates();
    let subject = Subject {
        set,
        samples: &samples[..samples.len().min(recipe.batch)],
        weights: WeightSet::Live,
        epsilon: recipe.attack.epsilon.as_f32(),
        seed: recipe.seed,
    };
    let pgd5 = Protocol::Pgd(PgdProtocol { steps: 5, restarts: 1, step_size: StepSize::TwoLevels });
    let Some(outcome) = judge(run, trainer, subject, &pgd5, "overfitting check")? else { return Ok(None) };
    let seconds = Seconds { evaluate: begin.elapsed().as_secs_f64(), ..Seconds::default() };
    trainer.progress.epoch_seconds += seconds;
    trainer.progress.run_seconds += seconds;
    let now = outcome.accuracy();
    let before = trainer.progress.pgd5_accuracy;
    let fall = before.filter(|before| before - now > recipe.overfitting.max_fall).map(|before| (before, now));
    Ok(Some(Watched { accuracy: Some(now), fall }))
}
