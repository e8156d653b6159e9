//! AutoAttack (Croce and Hein, ICML 2020) and its parts: each attack on the images that are robust to all before it.
//!
//! The work goes stage after stage (the clean images, the checks, then the parts), and in each over the surviving
//! images in order, a full batch at a time. [`Progress`] is all there is to know between two batches, so an evaluation that
//! goes on from a saved one comes to the same results: an attack's randomness is keyed by the image, never by its batch.
//! What an attack claims is not taken on trust: the network, in f32 wherever it is on a CPU, looks at each image once more, and
//! it must lie in the ball.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::sanity::{Checks, Extent};
use super::{Outcome, Part, Subject, predict_by};
use crate::attack::{Cost, Search};
use crate::batch::Batch;
use crate::engine::{self, Engine, Pass, unless_stopped};
use crate::model::layers::IMAGE_LEN;
use crate::ops::NO_CLASS;
use crate::philox::{Key, Purpose};

/// What is known of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageResult {
    /// Robust to everything so far.
    Robust,
    /// Predicted wrong as it is.
    Misclassified,
    BrokenBy(Part),
}

/// One stage that has begun.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// `None`: the clean images.
    pub part: Option<Part>,
    /// Images that it has to look at.
    pub entered: usize,
    /// Of all images, those that are robust after it.
    pub robust: usize,
    pub seconds: f64,
    pub cost: Cost,
    /// All images below this position have been looked at.
    pub next: usize,
    pub finished: bool,
}

/// Where an evaluation stands; saved between batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    pub parts: Vec<Part>,
    #[serde(with = "super::state::letters", rename = "verdicts")]
    pub results: Vec<ImageResult>,
    /// Of the clean images, and of the adversarial ones where there is one.
    pub clean_predictions: Vec<u32>,
    pub adversarial_predictions: Vec<u32>,
    pub stages: Vec<Stage>,
    pub checks: Option<Checks>,
    /// Of the adversarial images.
    pub extent: Extent,
}

/// Hears of each batch.
pub trait Listener {
    /// A wrongly predicted image of the ball (32 x 32 x 3) for the sample at `position`; told before [`Listener::batch`].
    fn found(&mut self, _position: usize, _image: &[f32]) {}

    /// After each batch of the running stage, the last of `progress.stages`. Returns whether to go on.
    fn batch(&mut self, progress: &Progress) -> bool;
}

/// A plain [`crate::progress::Watch`] as a listener: every stage counts all images.
pub struct Watched<'a>(pub crate::progress::Watch<'a>);

impl Listener for Watched<'_> {
    fn batch(&mut self, progress: &Progress) -> bool {
        let images = progress.results.len();
        let done =
            (progress.stages.len() - 1) * images + progress.stages.last().map_or(0, |stage| stage.next);
        (self.0)(done, (progress.parts.len() + 1) * images)
    }
}

impl Progress {
    /// The start of an evaluation of `images` images.
    pub fn new(parts: &[Part], images: usize) -> Self {
        Self {
            parts: parts.into(),
            results: vec![ImageResult::Robust; images],
            clean_predictions: vec![0; images],
            adversarial_predictions: vec![0; images],
            stages: Vec::new(),
            checks: None,
            extent: Extent::default(),
        }
    }

    /// Images that are robust so far.
    pub fn robust(&self) -> usize {
        self.results.iter().filter(|result| **result == ImageResult::Robust).count()
    }

    /// Images that are predicted right as they are.
    pub fn clean(&self) -> usize {
        self.results.iter().filter(|result| **result != ImageResult::Misclassified).count()
    }

    pub fn outcome(&self) -> Outcome {
        let Checks { mut cost, mut seconds, zero_gradients, .. } = self.checks.clone().unwrap_or_default();
        for stage in &self.stages {
            cost += stage.cost;
            seconds += stage.seconds;
        }
        let robust = self.results.iter().map(|result| *result == ImageResult::Robust).collect();
        // One image counts once: an attack enters only where the clean logits are finite.
        let non_finite =
            self.adversarial_predictions.iter().filter(|prediction| **prediction == NO_CLASS).count();
        Outcome { robust, seconds, cost, non_finite, zero_gradients }
    }

    /// The stage to work at, begun where it is new; `None` at the end.
    fn stage(&mut self) -> Option<usize> {
        if let Some(at) = self.stages.iter().position(|stage| !stage.finished) {
            return Some(at);
        }
        let at = self.stages.len();
        let part = match at {
            0 => None,
            _ => Some(*self.parts.get(at - 1)?),
        };
        let entered = self.robust();
        let (seconds, cost) = (0.0, Cost::default());
        self.stages.push(Stage { part, entered, robust: entered, seconds, cost, next: 0, finished: false });
        Some(at)
    }

    /// The next batch of the stage: positions of robust images that it has not seen.
    fn batch(&self, stage: usize, size: usize) -> Vec<usize> {
        let left = self.stages[stage].next..self.results.len();
        left.filter(|&at| self.results[at] == ImageResult::Robust).take(size).collect()
    }
}

/// Goes on from `progress` to the end of its parts, in batches of the size of `scratch`; false where the listener asked to
/// stop, or the engine was in the middle of a batch ([`Engine::stop_on`]), which is then done again. Replaces the engine's
/// folded weights.
pub fn run(
    engine: &mut Engine,
    subject: Subject,
    progress: &mut Progress,
    scratch: &Batch,
    listener: &mut dyn Listener,
) -> engine::Result<bool> {
    Ok(unless_stopped(stages(engine, subject, progress, scratch, listener))? == Some(true))
}

fn stages(
    engine: &mut Engine,
    subject: Subject,
    progress: &mut Progress,
    scratch: &Batch,
    listener: &mut dyn Listener,
) -> engine::Result<bool> {
    engine.fold_batch_norm(subject.weights)?;
    let mut search: Option<(Part, Box<dyn Search>)> = None;
    while let Some(at) = progress.stage() {
        // The checks need the clean results, and are no stage: they run through in about a hundredth of the time.
        if at == 1 && progress.checks.is_none() && progress.parts != [Part::Square] {
            progress.checks = Some(Checks::run(engine, subject, &progress.results, scratch)?);
        }
        let positions = progress.batch(at, scratch.len());
        if positions.is_empty() {
            progress.stages[at].finished = true;
            continue;
        }
        let begin = Instant::now();
        let samples: Vec<u32> = positions.iter().map(|&position| subject.samples[position]).collect();
        let batch = scratch.gathered(engine, subject.set, &samples, None)?;
        let labels = engine.read(&batch.labels)?;
        let cost = match progress.stages[at].part {
            None => {
                let predictions = predict_by(Pass::EvalF32, engine, &batch, false)?;
                for ((&position, prediction), label) in positions.iter().zip(predictions).zip(labels) {
                    progress.clean_predictions[position] = prediction;
                    progress.adversarial_predictions[position] = prediction;
                    if prediction != label {
                        progress.results[position] = ImageResult::Misclassified;
                    }
                }
                Cost { forwards: positions.len() as u64, backwards: 0 }
            }
            Some(part) => {
                let attack = match &mut search {
                    Some((held, attack)) if *held == part => attack,
                    _ => &mut search.insert((part, part.search(subject.epsilon))).1,
                };
                attacked(
                    engine,
                    subject,
                    part,
                    attack.as_mut(),
                    (&positions, &labels),
                    &batch,
                    progress,
                    listener,
                )?
            }
        };
        let robust = progress.robust();
        let stage = &mut progress.stages[at];
        stage.cost += cost;
        stage.robust = robust;
        stage.next = positions[positions.len() - 1] + 1;
        stage.seconds += begin.elapsed().as_secs_f64();
        let left = progress.batch(at, 1);
        progress.stages[at].finished = left.is_empty();
        if !listener.batch(progress) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// One part on one batch: its results, each looked at once more.
#[allow(clippy::too_many_arguments)]
fn attacked(
    engine: &mut Engine,
    subject: Subject,
    part: Part,
    attack: &mut dyn Search,
    (positions, labels): (&[usize], &[u32]),
    batch: &Batch,
    progress: &mut Progress,
    listener: &mut dyn Listener,
) -> engine::Result<Cost> {
    let key = Key { seed: subject.seed, purpose: Purpose::EvaluationStart, epoch: part.number(), step: 0 };
    let found = attack.search(engine, key, batch)?;
    let mut cost = found.cost;
    if !found.broken.contains(&true) {
        return Ok(cost);
    }
    let predictions = predict_by(Pass::EvalF32, engine, batch, true)?;
    // One more look for each image that was claimed, so that costs do not depend on batches.
    cost.forwards += found.broken.iter().filter(|broken| **broken).count() as u64;
    let (images, perturbed) = (engine.read(&batch.images)?, engine.read(&batch.perturbed)?);
    for (n, &position) in positions.iter().enumerate().filter(|(n, _)| found.broken[*n]) {
        let image = n * IMAGE_LEN..(n + 1) * IMAGE_LEN;
        let moved = &perturbed[image.clone()];
        let inside = progress.extent.take(subject.epsilon, &images[image], moved);
        if predictions[n] == labels[n] {
            progress.extent.disagreements += 1;
        } else if inside {
            progress.results[position] = ImageResult::BrokenBy(part);
            progress.adversarial_predictions[position] = predictions[n];
            listener.found(position, moved);
        }
    }
    Ok(cost)
}
