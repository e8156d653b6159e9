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
    /// Positions of images that the network mispredicts in the numbers of the search and predicts right in f32: not counted as broken.
    /// No search goes on from there.
    #[serde(default)]
    pub unconfirmed: Vec<usize>,
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
            unconfirmed: Vec::new(),
        }
    }

    /// Images that count as robust and are mispredicted in the numbers of the search.
    pub fn unconfirmed_robust(&self) -> usize {
        self.unconfirmed.iter().filter(|&&position| self.results[position] == ImageResult::Robust).count()
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
    let unconfirmed = |n: usize| found.broken[n] && predictions[n] == labels[n];
    let looked_again = (0..positions.len()).filter(|&n| unconfirmed(n)).count();
    // In the numbers of the search, which no fault makes right and wrong at once.
    let searched = match looked_again {
        0 => Vec::new(),
        _ => predict_by(Pass::Eval, engine, batch, true)?,
    };
    cost.forwards += looked_again as u64;
    let (images, perturbed) = (engine.read(&batch.images)?, engine.read(&batch.perturbed)?);
    for (n, &position) in positions.iter().enumerate().filter(|(n, _)| found.broken[*n]) {
        let image = n * IMAGE_LEN..(n + 1) * IMAGE_LEN;
        let moved = &perturbed[image.clone()];
        let inside = progress.extent.take(subject.epsilon, &images[image], moved);
        if unconfirmed(n) {
            if searched[n] == labels[n] {
                progress.extent.disagreements += 1;
            } else if !progress.unconfirmed.contains(&position) {
                progress.unconfirmed.push(position);
            }
        } else if inside {
            progress.results[position] = ImageResult::BrokenBy(part);
            progress.adversarial_predictions[position] = predictions[n];
            listener.found(position, moved);
        }
    }
    Ok(cost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::Found;
    use crate::engine::{DeviceChoice, WeightSet, open};
    use crate::model::{ResNet, initialise};
    use crate::ops::ImageSet;

    const NETWORK: ResNet = ResNet::resnet18(16, 10);
    const LEN: usize = 64;

    /// Claims that images are broken as they are.
    struct Claims;

    impl Search for Claims {
        fn search(&mut self, engine: &mut Engine, _: Key, batch: &Batch) -> engine::Result<Found> {
            let images = engine.read(&batch.images)?;
            engine.write(&batch.perturbed, &images)?;
            Ok(Found { broken: vec![true; batch.len()], cost: Cost::default() })
        }
    }

    struct Nobody;

    impl Listener for Nobody {
        fn batch(&mut self, _: &Progress) -> bool {
            true
        }
    }

    fn predictions(engine: &mut Engine, batch: &Batch, images: &[f32], pass: Pass) -> Vec<u32> {
        engine.write(&batch.perturbed, images).unwrap();
        predict_by(pass, engine, batch, true).unwrap()
    }

    /// Images on the way between two of them, nearer and nearer to a boundary in f32, until bf16 has some on its other side. The biases
    /// of the last layer put the boundary of two classes between them.
    fn near_the_boundary(engine: &mut Engine, batch: &Batch) -> Vec<f32> {
        let ends: Vec<f32> = (0..LEN * IMAGE_LEN)
            .map(|i| (((i * 7 + i / IMAGE_LEN * 131) % (17 + i / IMAGE_LEN)) as f32 / 80.0).min(1.0))
            .collect();
        let other = LEN - 1;
        predictions(engine, batch, &ends, Pass::EvalF32);
        let logits = engine.read(&batch.logits).unwrap();
        let margin = |n: usize| logits[n * NETWORK.classes] - logits[n * NETWORK.classes + 1];
        assert!((margin(0) - margin(other)).abs() > 1e-4, "two images alike");
        let mut weights = engine.weights(WeightSet::Live).unwrap();
        let mut biases = vec![-1000.0; NETWORK.classes];
        biases[..2].copy_from_slice(&weights.tensors["linear.bias"].values[..2]);
        biases[1] += (margin(0) + margin(other)) / 2.0;
        weights.insert("linear.bias", &[NETWORK.classes], biases);
        engine.load_weights(&weights).unwrap();
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        let at = |t: f32| (0..IMAGE_LEN).map(move |i| (i, t));
        let mix = |(i, t): (usize, f32)| ends[i] + t * (ends[other * IMAGE_LEN + i] - ends[i]);
        let (mut low, mut high) = (0.0f32, 1.0f32);
        for _ in 0..6 {
            let between = |n: usize| low + (high - low) * n as f32 / (LEN - 1) as f32;
            let images: Vec<f32> = (0..LEN).flat_map(|n| at(between(n))).map(mix).collect();
            let [f32, bf16] =
                [Pass::EvalF32, Pass::Eval].map(|pass| predictions(engine, batch, &images, pass));
            if f32 != bf16 {
                return images;
            }
            let step = (1..LEN).find(|&n| f32[n] != f32[0]).expect("a boundary");
            (low, high) = (between(step - 1), between(step));
        }
        panic!("bf16 and f32 agree on both sides of the boundary");
    }

    /// What the network predicts right in f32 is not counted as broken. Where the search's own numbers say otherwise that is rounding,
    /// and where they do not it is a fault of the search.
    #[test]
    fn rounding_of_the_search_breaks_no_image_and_is_no_fault() {
        for device in [DeviceChoice::CpuBf16, DeviceChoice::Cpu] {
            let mut engine = open(device, NETWORK, LEN).unwrap();
            let engine = &mut engine;
            engine.load_weights(&initialise(NETWORK, 3)).unwrap();
            engine.fold_batch_norm(WeightSet::Live).unwrap();
            let batch = Batch::alloc(engine, LEN).unwrap();
            let images = match device {
                DeviceChoice::CpuBf16 => near_the_boundary(engine, &batch),
                _ => vec![0.5; LEN * IMAGE_LEN],
            };
            let labels = predictions(engine, &batch, &images, Pass::EvalF32);
            let searched = predictions(engine, &batch, &images, Pass::Eval);
            engine.write(&batch.images, &images).unwrap();
            engine.write(&batch.labels, &labels).unwrap();
            let set = ImageSet::alloc(engine, &labels).unwrap();
            let samples: Vec<u32> = (0..LEN as u32).collect();
            let subject =
                Subject { set: &set, samples: &samples, weights: WeightSet::Live, epsilon: 0.03, seed: 0 };
            let positions: Vec<usize> = (0..LEN).collect();
            let mut progress = Progress::new(&[Part::ApgdCe], LEN);
            let cost = attacked(
                engine,
                subject,
                Part::ApgdCe,
                &mut Claims,
                (&positions, &labels),
                &batch,
                &mut progress,
                &mut Nobody,
            );
            assert_eq!(cost.unwrap().forwards, 2 * LEN as u64);
            assert_eq!(progress.robust(), LEN, "{device:?}");
            let rounded: Vec<usize> = (0..LEN).filter(|&n| searched[n] != labels[n]).collect();
            assert_eq!(rounded.is_empty(), device == DeviceChoice::Cpu, "{device:?}");
            assert_eq!(progress.unconfirmed, rounded);
            assert_eq!(progress.unconfirmed_robust(), rounded.len());
            assert_eq!(progress.extent.disagreements, LEN - rounded.len());
        }
    }
}
