//! Accuracy over a list of images under a [`Protocol`], with the verdict on every image.
//!
//! Called by the training loop (validation, final figures) and by `secateur eval`. Checked by `tests/evaluate.rs`.

mod protocol;

pub use protocol::{PgdProtocol, Protocol, StepSize};

use std::time::Instant;

use crate::attack::{CrossEntropyAscent, Pgd};
use crate::batch::Batch;
use crate::engine::{self, Engine, ImageSet, Pass, WeightSet};
use crate::philox::{Key, Purpose};

/// What is evaluated, besides the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub set: &'a ImageSet,
    /// Positions in the set; they key the random starts, so an image's verdict does not depend on the others.
    pub samples: &'a [u32],
    /// Live weights or their moving average.
    pub weights: WeightSet,
    /// Radius of the ball.
    pub epsilon: f32,
    pub seed: u64,
}

/// What a protocol found.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// For each sample: is every prediction under the protocol the true label?
    pub withstood: Vec<bool>,
    pub seconds: f64,
}

impl Outcome {
    pub fn correct(&self) -> usize {
        self.withstood.iter().filter(|&&right| right).count()
    }
    /// Share of samples, in [0, 1].
    pub fn accuracy(&self) -> f64 {
        self.correct() as f64 / self.withstood.len().max(1) as f64
    }
}

/// Told how many images of how many are done (restarts count again); answers whether to go on.
pub type Watch<'a> = &'a mut dyn FnMut(usize, usize) -> bool;

/// Runs `protocol` over `subject` in batches of the size of `scratch`; `None` if `watch` asked to stop.
///
/// An image withstands PGD if the prediction at the end point of every restart is right; later restarts visit only
/// the images that are still right, which changes no verdict. Replaces the engine's folded weights.
pub fn evaluate(
    engine: &mut dyn Engine,
    subject: Subject,
    protocol: &Protocol,
    scratch: &Batch,
    watch: Watch,
) -> engine::Result<Option<Outcome>> {
    let begin = Instant::now();
    engine.fold_batch_norm(subject.weights)?;
    let (attack, restarts) = match protocol {
        Protocol::Clean => (None, 1),
        Protocol::Pgd(pgd) => (Some(pgd.pgd(subject.epsilon)), pgd.restarts),
    };
    let mut withstood = vec![true; subject.samples.len()];
    for restart in 0..restarts {
        let left: Vec<usize> = (0..withstood.len()).filter(|&i| withstood[i]).collect();
        let key = Key { seed: subject.seed, purpose: Purpose::EvaluationStart, epoch: 0, step: restart };
        for (number, positions) in left.chunks(scratch.len()).enumerate() {
            let samples: Vec<u32> = positions.iter().map(|&i| subject.samples[i]).collect();
            let right = verdicts(engine, subject.set, &samples, attack.as_ref(), key, scratch)?;
            for (&position, right) in positions.iter().zip(right) {
                withstood[position] = right;
            }
            let done = restart as usize * withstood.len() + number * scratch.len() + positions.len();
            if !watch(done, restarts as usize * withstood.len()) {
                return Ok(None);
            }
        }
    }
    Ok(Some(Outcome { withstood, seconds: begin.elapsed().as_secs_f64() }))
}

/// Whether the prediction of each of `samples` (at most a batch of them) is right, after the attack if there is one.
fn verdicts(
    engine: &mut dyn Engine,
    set: &ImageSet,
    samples: &[u32],
    attack: Option<&Pgd>,
    key: Key,
    scratch: &Batch,
) -> engine::Result<Vec<bool>> {
    let batch = scratch.rows(0..samples.len());
    engine.write(&batch.samples, samples)?;
    engine.gather(set, &batch.samples, None, &batch.images, &batch.labels)?;
    if let Some(pgd) = attack {
        pgd.perturb(engine, &mut CrossEntropyAscent, key, &batch)?;
    }
    for part in batch.parts(engine.micro_batch()) {
        let images = if attack.is_some() { &part.perturbed } else { &part.images };
        engine.forward(Pass::Eval, images, &part.logits)?;
        let loss = engine::CrossEntropy { smoothing: 0.0, scale: 1.0 };
        engine.cross_entropy(&loss, &part.logits, &part.labels, None, part.outputs())?;
    }
    let (predictions, labels) = (engine.read(&batch.predictions)?, engine.read(&batch.labels)?);
    Ok(predictions.iter().zip(&labels).map(|(prediction, label)| prediction == label).collect())
}
