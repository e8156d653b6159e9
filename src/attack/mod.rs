//! The inner maximisation: a random start, then sign steps, over micro-batches whose activations stay in cache.
//!
//! What a step ascends is an [`AscentLoss`]; how a training batch is attacked is an [`Adversary`]: PGD for every image
//! ([`ScheduledPgd`]), or one of `accelerate`.

mod apgd;
mod config;
mod fab;
mod schedule;
mod search;
mod square;

pub use apgd::{Apgd, phases as apgd_phases};
pub use config::{AttackConfig, AttackDefaults, AttackPhase, BatchNorm, Start};
pub use fab::Fab;
pub use schedule::ScheduledPgd;
pub use search::{Cost, Found, Search};
pub use square::Square;

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::engine::{Engine, Pass, Result, SignStep};
use crate::model::Weights;
use crate::ops::{AscentLoss, AttackSteps, Noise, Perturb};
use crate::philox::Key;

/// Projected gradient descent in the L-infinity ball (Madry et al., 2018).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pgd {
    /// Noise of the start; `None` starts at the clean image.
    pub start: Option<Noise>,
    /// Radius of the ball and length of a step, in units of [0, 1] pixels.
    pub step: SignStep,
    pub steps: usize,
    /// Statistics that BatchNorm uses while attacking; a train pass also moves the running statistics, as in the first
    /// PGD-AT code.
    pub pass: Pass,
}

/// Makes the adversarial images of a training batch.
pub trait Adversary {
    /// Whether the attack needs [`Engine::fold_batch_norm`] after the last change of the weights.
    fn needs_fold(&self) -> bool;

    /// Makes `batch.perturbed` from `batch.images`, random numbers keyed by `key` and each sample. The logits,
    /// losses and predictions of the batch are overwritten.
    fn perturb(
        &mut self,
        engine: &mut Engine,
        ascent: AscentLoss,
        key: Key,
        batch: &Batch,
    ) -> Result<AttackWork>;

    /// What it carries from step to step, for checkpoints; empty where there is nothing.
    fn state(&self) -> Weights {
        Weights::default()
    }

    /// Takes back what [`Adversary::state`] gave; says why it cannot.
    fn restore(&mut self, _state: &Weights) -> Result<(), String> {
        Ok(())
    }
}

/// What attacks in training cost and whom they met.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, bytemuck::Pod, bytemuck::Zeroable,
)]
#[serde(deny_unknown_fields)]
#[repr(C)]
pub struct AttackWork {
    /// Images that training asked to attack.
    pub samples: u64,
    /// Sign steps, counted for each image.
    pub steps: u64,
    /// Images of each group, where the adversary forms groups: not attacked, attacked in full, with a short attack.
    pub outliers: u64,
    pub boundary: u64,
    pub robust: u64,
}

impl AddAssign for AttackWork {
    fn add_assign(&mut self, other: Self) {
        self.samples += other.samples;
        self.steps += other.steps;
        self.outliers += other.outliers;
        self.boundary += other.boundary;
        self.robust += other.robust;
    }
}

impl Pgd {
    /// The attack before any of its phases.
    pub fn from_config(attack: &AttackConfig) -> Self {
        let epsilon = attack.epsilon.as_f32();
        let radius = (attack.epsilon.value() * attack.start_scale) as f32;
        Self {
            start: match attack.start {
                Start::Uniform => Some(Noise::Uniform { radius }),
                Start::Normal => Some(Noise::Normal { deviation: attack.start_deviation.as_f32() }),
                Start::None => None,
            },
            step: SignStep { step_size: attack.step_size.as_f32(), epsilon },
            steps: attack.steps,
            pass: match attack.batch_norm {
                BatchNorm::Eval => Pass::EvalSplit,
                BatchNorm::Train => Pass::Train { slot: 0 },
            },
        }
    }

    /// Whether it can move an image at all: it has a random start or a step.
    pub fn moves(&self) -> bool {
        self.start.is_some() || self.steps > 0
    }

    /// Moves `batch.perturbed` from a start keyed by `key` and each sample, for `self.steps` steps.
    ///
    /// An evaluation pass needs [`Engine::fold_batch_norm`] after the last change of the weights. The logits,
    /// losses and predictions of the batch are overwritten.
    pub fn perturb(&self, engine: &mut Engine, ascent: AscentLoss, key: Key, batch: &Batch) -> Result<()> {
        self.start(engine, key, batch)?;
        if self.steps > 0 && ascent.needs_clean_logits() {
            for part in batch.parts(self.size(engine, batch)) {
                engine.forward(self.pass, &part.images, &part.clean_logits)?;
            }
        }
        self.ascend(engine, ascent, batch)
    }

    /// The random start alone: `batch.perturbed` from `batch.images`.
    ///
    /// A normal start leaves [0, 1], as in the codes of TRADES and MART; the first step returns to it, and where there
    /// is none the start is clipped.
    pub fn start(&self, engine: &mut Engine, key: Key, batch: &Batch) -> Result<()> {
        // A radius of zero adds nothing and clips.
        let clip = Noise::Uniform { radius: 0.0 };
        let noise = self.start.unwrap_or(clip);
        engine.run(&batch.perturb(noise, key))?;
        if self.steps == 0 && matches!(noise, Noise::Normal { .. }) {
            engine.run(&Perturb { images: &batch.perturbed, ..batch.perturb(clip, key) })?;
        }
        Ok(())
    }

    /// The steps alone, from where `batch.perturbed` stands; `batch.clean_logits`, under the attack's BatchNorm, are there if the
    /// loss needs them.
    pub fn ascend(&self, engine: &mut Engine, ascent: AscentLoss, batch: &Batch) -> Result<()> {
        for part in batch.parts(self.size(engine, batch)) {
            engine.run(&AttackSteps {
                pass: self.pass,
                loss: ascent,
                labels: &part.labels,
                clean_logits: &part.clean_logits,
                step: self.step,
                steps: self.steps as u32,
                images: &part.images,
                perturbed: &part.perturbed,
                logits: &part.logits,
                outputs: part.outputs(),
            })?;
        }
        Ok(())
    }

    /// Batch statistics are those of the whole batch, so only folded BatchNorm may be cut into micro-batches.
    fn size(&self, engine: &Engine, batch: &Batch) -> usize {
        if self.pass.is_eval() { engine.micro_batch() } else { batch.len() }
    }
}
