//! Accuracy over a list of images under a [`Protocol`], with the result of every image.

mod adversarial;
pub mod autoattack;
mod protocol;
pub mod sanity;
mod session;
pub mod state;

pub use adversarial::AdversarialImages;
pub use protocol::{Part, PgdProtocol, Protocol, StepSize};
pub use session::{EvaluatedImages, Evaluation, EvaluationError, EvaluationPlan, IMAGES_SUFFIX};

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::attack::{Cost, Pgd};
use crate::batch::Batch;
use crate::engine::{self, Engine, Pass, Phase, WeightSet, unless_stopped};
use crate::model::layers::IMAGE_LEN;
use crate::ops::{AscentLoss, ImageSet, NO_CLASS};
use crate::philox::{Key, Purpose};
use crate::progress::Watch;

/// What is evaluated, besides the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub set: &'a ImageSet,
    /// Positions in the set; they key the random starts, so an image's result does not depend on the others.
    pub samples: &'a [u32],
    /// Live weights or their moving average.
    pub weights: WeightSet,
    /// Radius of the ball.
    pub epsilon: f32,
    pub seed: u64,
}

/// What a protocol found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// For each sample: is every prediction under the protocol the true label?
    #[serde(with = "state::flags", rename = "withstood")]
    pub robust: Vec<bool>,
    pub seconds: f64,
    /// Passes through the network.
    pub cost: Cost,
    /// Images with a logit that is NaN or infinite where the protocol ended: counted as wrong.
    pub non_finite: usize,
    /// Robust images for which the attack had no gradient to follow: no step moves them. For AutoAttack and its parts, images
    /// predicted right whose cross-entropy has no gradient.
    pub zero_gradients: usize,
}

impl Outcome {
    pub fn correct(&self) -> usize {
        self.robust.iter().filter(|&&right| right).count()
    }
    /// Share of samples, in [0, 1].
    pub fn accuracy(&self) -> f64 {
        self.correct() as f64 / self.robust.len().max(1) as f64
    }
}

/// Runs `protocol` over `subject` in batches of the size of `scratch`; `None` if `watch` asked to stop, or the engine was
/// ([`Engine::stop_on`]). To `watch` restarts and parts count again.
///
/// An image is robust to PGD if the prediction at the end point of every restart is right; later restarts visit only
/// the images that are still right, which changes no result. Replaces the engine's folded weights.
pub fn evaluate(
    engine: &mut Engine,
    subject: Subject,
    protocol: &Protocol,
    scratch: &Batch,
    watch: Watch,
) -> engine::Result<Option<Outcome>> {
    if !protocol.parts().is_empty() {
        let mut progress = autoattack::Progress::new(protocol.parts(), subject.samples.len());
        let mut listener = autoattack::Watched(watch);
        let finished = autoattack::run(engine, subject, &mut progress, scratch, &mut listener)?;
        return Ok(finished.then(|| progress.outcome()));
    }
    Ok(unless_stopped(end_points(engine, subject, protocol, scratch, watch))?.flatten())
}

/// A protocol that looks at the end point of each start: clean images, FGSM, PGD and CW.
fn end_points(
    engine: &mut Engine,
    subject: Subject,
    protocol: &Protocol,
    scratch: &Batch,
    watch: Watch,
) -> engine::Result<Option<Outcome>> {
    let begin = Instant::now();
    engine.fold_batch_norm(subject.weights)?;
    let attack = protocol.pgd(subject.epsilon);
    let restarts = protocol.restarts().max(1);
    let mut cost = Cost::default();
    let mut robust = vec![true; subject.samples.len()];
    let (mut non_finite, mut zero_gradients) = (0, 0);
    for restart in 0..restarts {
        let left: Vec<usize> = (0..robust.len()).filter(|&i| robust[i]).collect();
        let key = Key { seed: subject.seed, purpose: Purpose::EvaluationStart, epoch: 0, step: restart };
        for (number, positions) in left.chunks(scratch.len()).enumerate() {
            let samples: Vec<u32> = positions.iter().map(|&i| subject.samples[i]).collect();
            let batch = scratch.gathered(engine, subject.set, &samples, None)?;
            let steps = match &attack {
                None => 0,
                Some(pgd) => {
                    pgd.perturb(engine, protocol.ascends(), key, &batch)?;
                    pgd.steps as u64
                }
            };
            let images = positions.len() as u64;
            cost += Cost { forwards: images * (steps + 1), backwards: images * steps };
            let predictions = predict(engine, &batch, attack.is_some())?;
            non_finite += predictions.iter().filter(|prediction| **prediction == NO_CLASS).count();
            let right = right(engine, &batch, &predictions)?;
            if let Some(pgd) = attack.filter(|_| restart == 0) {
                zero_gradients += still(engine, &batch, &pgd, key, &right)?;
            }
            for (&position, right) in positions.iter().zip(right) {
                robust[position] = right;
            }
            let done = restart as usize * robust.len() + number * scratch.len() + positions.len();
            if !watch(done, restarts as usize * robust.len()) {
                return Ok(None);
            }
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Some(Outcome { robust, seconds, cost, non_finite, zero_gradients }))
}

/// Predicts the images of a batch, or its perturbed ones, by the folded weights ([`Engine::fold_batch_norm`]); [`NO_CLASS`] where a
/// logit is not finite. Fills `batch.logits` and `batch.logit_gradient` (of the cross-entropy) as well.
pub fn predict(engine: &mut Engine, batch: &Batch, perturbed: bool) -> engine::Result<Vec<u32>> {
    predict_by(Pass::Eval, engine, batch, perturbed)
}

/// The same by another evaluation pass.
fn predict_by(pass: Pass, engine: &mut Engine, batch: &Batch, perturbed: bool) -> engine::Result<Vec<u32>> {
    engine.phase(Phase::Evaluate);
    for part in batch.parts(engine.micro_batch()) {
        let images = if perturbed { &part.perturbed } else { &part.images };
        engine.forward(pass, images, &part.logits)?;
        engine.run(&part.cross_entropy(1.0))?;
    }
    engine.read(&batch.predictions)
}

/// Whether each image of a batch is predicted right.
fn right(engine: &mut Engine, batch: &Batch, predictions: &[u32]) -> engine::Result<Vec<bool>> {
    let labels = engine.read(&batch.labels)?;
    Ok(predictions.iter().zip(&labels).map(|(prediction, label)| prediction == label).collect())
}

/// Whether each image of a gathered batch is robust to a sign-step attack, by its end point.
fn is_robust(engine: &mut Engine, batch: &Batch, pgd: &Pgd, key: Key) -> engine::Result<Vec<bool>> {
    pgd.perturb(engine, AscentLoss::CrossEntropy, key, batch)?;
    let predictions = predict(engine, batch, true)?;
    right(engine, batch, &predictions)
}

/// How many of the images in `right` lie where the attack started: a gradient that is zero everywhere moves nothing, in the first
/// step or in any later one. Takes no pass through the network; replaces `batch.perturbed` by the starts.
fn still(engine: &mut Engine, batch: &Batch, pgd: &Pgd, key: Key, right: &[bool]) -> engine::Result<usize> {
    if !right.contains(&true) {
        return Ok(0);
    }
    let ends = engine.read(&batch.perturbed)?;
    pgd.start(engine, key, batch)?;
    let starts = engine.read(&batch.perturbed)?;
    let pairs = ends.chunks_exact(IMAGE_LEN).zip(starts.chunks_exact(IMAGE_LEN)).zip(right);
    Ok(pairs.filter(|((end, start), right)| **right && end == start).count())
}
