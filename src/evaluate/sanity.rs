//! Checks around an evaluation: what AutoAttack's own code checks, and the alarm of masked gradients.
//!
//! Attacks that follow gradients fail on a network whose gradients mislead, and the figure is then too good. Signs of
//! it (Athalye et al., ICML 2018; Carlini et al., 2019): one large step does better than many small ones, and a search
//! that sees logits only does better than both. `aa` runs FGSM and PGD-10 on the images that are predicted right, for
//! about a hundredth of its time; `secateur eval` compares whatever protocols it was asked for.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::autoattack::{ImageResult, Progress};
use super::{Outcome, Part, PgdProtocol, Protocol, StepSize, Subject, is_robust, predict};
use crate::attack::Cost;
use crate::batch::Batch;
use crate::engine::{self, Engine, GradRequest, Pass};
use crate::model::layers::IMAGE_LEN;
use crate::philox::{Key, Purpose};

/// A weak attack must break more than this share of all images beyond a strong one before it raises the alarm; the share
/// that AutoAttack's code allows Square.
pub const TOLERANCE: f64 = 0.002;
/// An attack on margins must break more than this share of all images beyond one on the cross-entropy before it raises the alarm:
/// sound networks lose a few percent to it (the MART and TRADES papers list both).
pub const MARGIN_TOLERANCE: f64 = 0.1;
/// How far logits of repeated passes may lie apart, each row divided by its norm; AutoAttack's value.
const RANDOM_TOLERANCE: f64 = 1e-4;
/// How near a row of logits must come to a distribution to look like one; AutoAttack's value.
const DISTRIBUTION_TOLERANCE: f32 = 1e-5;
/// Rounding of `x + epsilon` and of the difference from x.
const BALL_TOLERANCE: f32 = 2.4e-7;

/// What was seen before the attacks, on images that are predicted right.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checks {
    /// Repeated passes over the first batch give other logits.
    pub randomized: bool,
    /// The outputs of the first batch look like probabilities, not logits.
    pub probabilities: bool,
    /// Images whose cross-entropy has no gradient at all.
    pub zero_gradients: usize,
    /// Images that are robust to one step of the whole radius.
    pub fgsm: usize,
    /// Images that are robust to ten steps of 2/255.
    pub pgd10: usize,
    pub seconds: f64,
    pub cost: Cost,
}

/// What the adversarial images look like, all together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// The largest distance of a pixel from its clean one.
    pub max_perturbation: f32,
    pub min: f32,
    pub max: f32,
    /// Pixels that are NaN.
    pub nan: usize,
    /// Images outside of the ball or of [0, 1]: not counted as broken.
    pub outside: usize,
    /// Images that an attack called broken and the network predicts right, in the numbers of the attack too: not counted either.
    pub disagreements: usize,
}

impl Default for Extent {
    fn default() -> Self {
        Self { max_perturbation: 0.0, min: 1.0, max: 0.0, nan: 0, outside: 0, disagreements: 0 }
    }
}

impl Extent {
    /// Takes an adversarial image in; whether it lies in the ball and in [0, 1].
    pub fn take(&mut self, epsilon: f32, image: &[f32], moved: &[f32]) -> bool {
        let mut inside = true;
        for (x, moved) in image.iter().zip(moved) {
            let far = (moved - x).abs();
            self.nan += usize::from(moved.is_nan());
            self.max_perturbation = self.max_perturbation.max(far);
            (self.min, self.max) = (self.min.min(*moved), self.max.max(*moved));
            // Written so that NaN is outside.
            inside &= far <= epsilon + BALL_TOLERANCE && (0.0..=1.0).contains(moved);
        }
        self.outside += usize::from(!inside);
        inside
    }

    /// What must not happen, in words.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let mut fail = |count: usize, what: &str| {
            if count > 0 {
                failures.push(format!("{count} {what}"));
            }
        };
        fail(self.nan, "pixels of adversarial images are NaN");
        fail(self.outside, "adversarial images lie outside of the ball or of [0, 1]; they were not counted");
        fail(self.disagreements, "images were called broken but are predicted right; they were not counted");
        failures
    }
}

impl Checks {
    /// Looks at the images that `results` calls robust.
    pub fn run(
        engine: &mut Engine,
        subject: Subject,
        results: &[ImageResult],
        scratch: &Batch,
    ) -> engine::Result<Self> {
        let begin = Instant::now();
        let robust =
            results.iter().zip(subject.samples).filter(|(result, _)| **result == ImageResult::Robust);
        let samples: Vec<u32> = robust.map(|(_, &sample)| sample).collect();
        let mut checks = Self::default();
        let gradient = engine.alloc("gradient of the clean images", scratch.len() * IMAGE_LEN)?;
        let key = Key { seed: subject.seed, purpose: Purpose::EvaluationStart, epoch: 0, step: 0 };
        let pgd10 = PgdProtocol { steps: 10, restarts: 1, step_size: StepSize::TwoLevels };
        let fgsm = Protocol::Fgsm.pgd(subject.epsilon).unwrap_or_else(|| pgd10.pgd(subject.epsilon));
        let count = |right: Vec<bool>| right.into_iter().filter(|right| *right).count();
        for (number, samples) in samples.chunks(scratch.len()).enumerate() {
            let batch = scratch.gathered(engine, subject.set, samples, None)?;
            if number == 0 {
                checks.repeat(engine, &batch)?;
            }
            let gradient = gradient.rows(0..batch.len(), IMAGE_LEN);
            let size = engine.micro_batch();
            for start in (0..batch.len()).step_by(size) {
                let range = start..batch.len().min(start + size);
                let part = batch.rows(range.clone());
                engine.forward(Pass::Eval, &part.images, &part.logits)?;
                engine.run(&part.cross_entropy(1.0))?;
                engine.backward(
                    Pass::Eval,
                    &part.logit_gradient,
                    GradRequest::images(&gradient.rows(range, IMAGE_LEN)),
                )?;
            }
            let gradient = engine.read(&gradient)?;
            let zero = |image: &&[f32]| image.iter().all(|g| *g == 0.0);
            checks.zero_gradients += gradient.chunks(IMAGE_LEN).filter(zero).count();
            checks.fgsm += count(is_robust(engine, &batch, &fgsm, key)?);
            checks.pgd10 += count(is_robust(engine, &batch, &pgd10.pgd(subject.epsilon), key)?);
            let images = batch.len() as u64;
            checks.cost += Cost { forwards: 14 * images, backwards: 12 * images };
        }
        checks.seconds = begin.elapsed().as_secs_f64();
        Ok(checks)
    }

    /// Five passes over one batch.
    fn repeat(&mut self, engine: &mut Engine, batch: &Batch) -> engine::Result<()> {
        let mut passes = Vec::new();
        for _ in 0..5 {
            predict(engine, batch, false)?;
            passes.push(engine.read(&batch.logits)?);
        }
        self.cost.forwards += 5 * batch.len() as u64;
        let classes = batch.classes();
        self.probabilities = passes[0].chunks(classes).all(|row| {
            let inside =
                row.iter().all(|z| (-DISTRIBUTION_TOLERANCE..1.0 + DISTRIBUTION_TOLERANCE).contains(z));
            inside && (row.iter().sum::<f32>() - 1.0).abs() < DISTRIBUTION_TOLERANCE
        });
        let unit = |row: &[f32]| -> Vec<f64> {
            let norm = row.iter().map(|z| f64::from(*z).powi(2)).sum::<f64>().sqrt() + 1e-10;
            row.iter().map(|z| f64::from(*z) / norm).collect()
        };
        let apart = |a: &[f32], b: &[f32]| {
            let squares = unit(a).into_iter().zip(unit(b)).map(|(a, b)| (a - b).powi(2));
            squares.sum::<f64>().sqrt() > RANDOM_TOLERANCE
        };
        self.randomized = passes[1..].iter().any(|pass| {
            pass.chunks(classes).zip(passes[0].chunks(classes)).any(|(again, first)| apart(again, first))
        });
        Ok(())
    }

    /// What looks wrong, in words, for an evaluation of `images` images.
    fn warnings(&self, images: usize) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.randomized {
            warnings.push("the network gives other logits for the same image: AutoAttack's standard version does not suit it".into());
        }
        if self.probabilities {
            warnings.push("the outputs look like probabilities, not logits: the attacks need logits".into());
        }
        warnings.extend(fgsm_alarm(self.fgsm, "PGD-10", self.pgd10, images));
        warnings
    }
}

/// Everything that looks wrong in an evaluation by parts of AutoAttack.
pub fn warnings(progress: &Progress) -> Vec<String> {
    let images = progress.results.len();
    let mut warnings = progress.checks.as_ref().map_or(Vec::new(), |checks| checks.warnings(images));
    let square = progress.stages.iter().find(|stage| stage.part == Some(Part::Square));
    if let Some(square) = square.filter(|_| progress.parts.len() > 1) {
        warnings.extend(square_alarm(
            square.entered - square.robust,
            "the gradient attacks of AutoAttack",
            images,
        ));
    }
    let unconfirmed = progress.unconfirmed_robust();
    if unconfirmed > 0 {
        warnings.push(format!(
            "{unconfirmed} of {images} images are mispredicted in bf16, so the search ended there, and predicted right in f32, so they \
             count as robust: the figure is too high by that at most; --device cpu searches in f32"
        ));
    }
    warnings.extend(progress.extent.failures());
    warnings
}

/// What makes the figure of one protocol wrong: logits that are no numbers. Such images are counted as wrong.
pub fn failure(protocol: &Protocol, outcome: &Outcome) -> Option<String> {
    (outcome.non_finite > 0).then(|| {
        format!(
            "{protocol}: {} of {} images have a logit that is NaN or infinite; they were counted as wrong",
            outcome.non_finite,
            outcome.robust.len()
        )
    })
}

/// What looks wrong in the outcome of one protocol.
pub fn doubts(protocol: &Protocol, outcome: &Outcome) -> Vec<String> {
    let without_gradient = (outcome.zero_gradients > 0).then(|| {
        format!(
            "{protocol}: {} of {} images have no gradient at all: an attack that follows gradients cannot evaluate them, and the \
             figure is no robustness",
            outcome.zero_gradients,
            outcome.robust.len()
        )
    });
    failure(protocol, outcome).into_iter().chain(without_gradient).collect()
}

/// [`doubts`] of each outcome, and signs of masked gradients among those of several protocols on the same images.
pub fn alarms(outcomes: &[(&Protocol, &Outcome)]) -> Vec<String> {
    let mut alarms: Vec<String> =
        outcomes.iter().flat_map(|(protocol, outcome)| doubts(protocol, outcome)).collect();
    let named =
        |expected: fn(&Protocol) -> bool| outcomes.iter().filter(move |(protocol, _)| expected(protocol));
    for (_, fgsm) in named(|protocol| *protocol == Protocol::Fgsm) {
        for (protocol, pgd) in named(|protocol| matches!(protocol, Protocol::Pgd(pgd) if pgd.steps >= 10)) {
            alarms.extend(fgsm_alarm(
                fgsm.correct(),
                &protocol.to_string(),
                pgd.correct(),
                fgsm.robust.len(),
            ));
        }
    }
    for (margin, lower) in named(Protocol::is_on_margins) {
        for (entropy, higher) in named(Protocol::is_on_cross_entropy) {
            alarms.extend(margin_alarm(
                (margin, lower.correct()),
                (entropy, higher.correct()),
                lower.robust.len(),
            ));
        }
    }
    let strong: Vec<_> =
        named(|protocol| protocol.follows_gradients() && *protocol != Protocol::Fgsm).collect();
    for (_, square) in named(|protocol| *protocol == Protocol::Part(Part::Square)) {
        let missed =
            |at: &usize| !square.robust[*at] && strong.iter().all(|(_, outcome)| outcome.robust[*at]);
        let missed = (0..square.robust.len()).filter(missed).count();
        if !strong.is_empty() {
            let names: Vec<String> = strong.iter().map(|(protocol, _)| protocol.to_string()).collect();
            alarms.extend(square_alarm(missed, &names.join(", "), square.robust.len()));
        }
    }
    alarms
}

fn fgsm_alarm(fgsm: usize, name: &str, pgd: usize, images: usize) -> Option<String> {
    (pgd > fgsm && (pgd - fgsm) as f64 > TOLERANCE * images as f64).then(|| {
        format!(
            "masked gradients? One FGSM step leaves {fgsm} of {images} images right, {name} leaves {pgd}: many small steps \
             should do better than one"
        )
    })
}

fn margin_alarm(
    (margin, lower): (&Protocol, usize),
    (entropy, higher): (&Protocol, usize),
    images: usize,
) -> Option<String> {
    (higher > lower && (higher - lower) as f64 > MARGIN_TOLERANCE * images as f64).then(|| {
        format!(
            "masked gradients? {margin} leaves {lower} of {images} images right, {entropy} leaves {higher}: the softmax may be \
             saturated, and the cross-entropy flat"
        )
    })
}

fn square_alarm(missed: usize, missed_by: &str, images: usize) -> Option<String> {
    (missed as f64 > TOLERANCE * images as f64).then(|| {
        format!(
            "masked gradients? Square, which sees no gradient, breaks {missed} of {images} images that are robust to {missed_by}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(robust: &[bool]) -> Outcome {
        let (seconds, cost) = (0.0, Cost::default());
        Outcome { robust: robust.into(), seconds, cost, non_finite: 0, zero_gradients: 0 }
    }

    #[test]
    fn weak_attacks_that_win_raise_the_alarm() {
        let protocol = |name: &str| -> Protocol { name.parse().unwrap() };
        let (fgsm, pgd10, pgd5, square) =
            (protocol("fgsm"), protocol("pgd10"), protocol("pgd5"), protocol("square"));
        let mut weak = vec![true; 1000];
        weak[..3].fill(false);
        let (weak, strong) = (outcome(&weak), outcome(&vec![true; 1000]));
        assert_eq!(alarms(&[(&fgsm, &weak), (&pgd10, &strong)]).len(), 1);
        assert_eq!(alarms(&[(&square, &weak), (&pgd10, &strong), (&pgd5, &strong)]).len(), 1);
        // Too few steps to compare with, the same images, or a difference within the tolerance.
        assert!(alarms(&[(&fgsm, &weak), (&pgd5, &strong)]).is_empty());
        assert!(alarms(&[(&square, &weak), (&pgd10, &weak), (&pgd5, &strong)]).is_empty());
        assert!(alarms(&[(&square, &weak)]).is_empty());
        let mut two = vec![true; 1000];
        two[..2].fill(false);
        assert!(alarms(&[(&square, &outcome(&two)), (&fgsm, &outcome(&two)), (&pgd10, &strong)]).is_empty());
        // A margin attack does better by more than sound networks show.
        let cw = protocol("cw");
        let (mut sound, mut saturated) = (vec![true; 1000], vec![true; 1000]);
        sound[..100].fill(false);
        saturated[..101].fill(false);
        assert!(alarms(&[(&cw, &outcome(&sound)), (&pgd10, &strong)]).is_empty());
        let said = alarms(&[(&cw, &outcome(&saturated)), (&pgd10, &strong)]);
        assert!(
            said.len() == 1 && said[0].contains("cw leaves 899 of 1000 images right, pgd10 leaves 1000"),
            "{said:?}"
        );
        // Of one outcome.
        let broken = Outcome { non_finite: 7, zero_gradients: 5, ..weak.clone() };
        let said = alarms(&[(&pgd5, &broken)]);
        assert!(
            said.len() == 2 && said[0].contains("pgd5: 7 of 1000") && said[1].contains("pgd5: 5 of 1000"),
            "{said:?}"
        );
        // The other way round nothing is amiss.
        assert!(alarms(&[(&fgsm, &strong), (&square, &strong), (&pgd10, &weak)]).is_empty());
    }

    #[test]
    fn an_image_outside_is_seen() {
        let image = [0.5f32, 0.99, 0.0];
        let mut extent = Extent::default();
        assert!(extent.take(0.1, &image, &[0.6, 1.0, 0.0]));
        assert!(extent.failures().is_empty(), "{extent:?}");
        for (moved, what) in
            [([0.61, 1.0, 0.0], "outside"), ([0.5, 1.01, 0.0], "outside"), ([f32::NAN, 0.99, 0.0], "NaN")]
        {
            let mut extent = extent;
            assert!(!extent.take(0.1, &image, &moved), "{moved:?}");
            assert!(extent.failures().iter().any(|line| line.contains(what)), "{extent:?}");
        }
        assert_eq!((extent.min, extent.max), (0.0, 1.0));
    }
}
