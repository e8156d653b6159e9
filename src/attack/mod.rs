//! The inner maximisation: a random start, then sign steps, over micro-batches whose activations stay in cache.
//!
//! What a step ascends is an [`Ascent`], so an attack on another loss is one more file beside [`cross_entropy`].
//! Called by objectives (training) and protocols (evaluation). Checked by `tests/evaluate.rs`: every image stays in
//! the ball and in [0, 1], and the ascended loss rises.

mod cross_entropy;

pub use cross_entropy::CrossEntropyAscent;

use crate::batch::Batch;
use crate::engine::{Engine, Noise, Pass, Result, SignStep};
use crate::philox::Key;
use crate::recipe::{self, BatchNorm, Start};

/// Projected gradient descent in the L-infinity ball (Madry et al., 2018).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pgd {
    /// Noise of the start; `None` starts at the clean image.
    pub start: Option<Noise>,
    /// Radius of the ball and length of a step, in units of [0, 1] pixels.
    pub step: SignStep,
    pub steps: usize,
    /// Statistics that BatchNorm uses while attacking; `Train` also moves the running statistics, as in the first
    /// PGD-AT code.
    pub batch_norm: BatchNorm,
}

/// What an attack ascends.
pub trait Ascent {
    /// Computes what stays fixed over the steps; called once a micro-batch, before its first step.
    fn prepare(&mut self, _engine: &mut dyn Engine, _pass: Pass, _batch: &Batch) -> Result<()> {
        Ok(())
    }

    /// Writes the gradient of the ascended loss with respect to `batch.logits`, the logits of x', to
    /// `batch.logit_gradient`. Any positive factor will do: the step takes the sign only.
    fn logit_gradient(&mut self, engine: &mut dyn Engine, batch: &Batch) -> Result<()>;
}

impl Pgd {
    /// The attack that a recipe's `[attack]` describes.
    pub fn of_recipe(attack: &recipe::Attack) -> Self {
        let epsilon = attack.epsilon.as_f32();
        Self {
            start: match attack.start {
                Start::Uniform => Some(Noise::Uniform { radius: epsilon }),
                Start::Normal => Some(Noise::Normal { deviation: attack.start_deviation.as_f32() }),
                Start::None => None,
            },
            step: SignStep { step_size: attack.step_size.as_f32(), epsilon },
            steps: attack.steps,
            batch_norm: attack.batch_norm,
        }
    }

    /// Moves `batch.perturbed` from a start keyed by `key` and each sample, for `self.steps` steps.
    ///
    /// [`BatchNorm::Eval`] needs [`Engine::fold_batch_norm`] after the last change of the weights. The logits,
    /// losses and predictions of the batch are overwritten.
    pub fn perturb(
        &self,
        engine: &mut dyn Engine,
        ascent: &mut dyn Ascent,
        key: Key,
        batch: &Batch,
    ) -> Result<()> {
        // A radius of zero is the clean image, already in [0, 1].
        let noise = self.start.unwrap_or(Noise::Uniform { radius: 0.0 });
        engine.perturb(noise, key, &batch.samples, &batch.images, &batch.perturbed)?;
        if self.steps == 0 {
            return Ok(());
        }
        // Batch statistics are those of the whole batch, so only folded BatchNorm may be cut into parts.
        let (pass, size) = match self.batch_norm {
            BatchNorm::Eval => (Pass::Eval, engine.micro_batch()),
            BatchNorm::Train => (Pass::Train { slot: 0 }, batch.len()),
        };
        for part in batch.parts(size) {
            ascent.prepare(engine, pass, &part)?;
            for _ in 0..self.steps {
                engine.forward(pass, &part.perturbed, &part.logits)?;
                ascent.logit_gradient(engine, &part)?;
                engine.attack_step(pass, &part.logit_gradient, &self.step, &part.images, &part.perturbed)?;
            }
        }
        Ok(())
    }
}
