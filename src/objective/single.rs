//! Objectives of the adversarial images alone: L = CE(z', y), dL/dz' = q - target, behind one train pass.
//!
//! Their methods differ by the attack, each in a file of its own.

use super::{Objective, ObjectiveParts, passes};
use crate::attack::{Adversary, AttackWork, Pgd};
use crate::batch::Batch;
use crate::engine::{Engine, Result, Tensor};
use crate::model::Weights;
use crate::ops::AscentLoss;
use crate::philox::Key;

/// Cross-entropy, with label smoothing where asked for, on the images that an attack made.
pub struct Single {
    adversary: Box<dyn Adversary>,
    ascends: AscentLoss,
    /// The target is `(1 - smoothing) * one_hot + smoothing / classes`; the attack ascends hard labels.
    smoothing: f32,
}

impl Single {
    /// The attack is changed by `change` to what the method makes of it.
    pub fn new(parts: &ObjectiveParts, change: impl Fn(Pgd) -> Pgd) -> Self {
        Self {
            adversary: parts.adversary(change),
            ascends: parts.config.method.row().ascends,
            smoothing: parts.config.label_smoothing as f32,
        }
    }
}

impl Objective for Single {
    fn needs_fold(&self) -> bool {
        self.adversary.needs_fold()
    }

    fn attack(&mut self, engine: &mut Engine, key: Key, batch: &Batch) -> Result<AttackWork> {
        self.adversary.perturb(engine, self.ascends, key, batch)
    }

    fn gradient(
        &mut self,
        engine: &mut Engine,
        batch: &Batch,
        weights: Option<&Tensor<f32>>,
    ) -> Result<Option<Tensor<f32>>> {
        passes::cross_entropy(engine, batch, self.smoothing, weights)?;
        Ok(None)
    }

    fn loss(
        &self,
        engine: &mut Engine,
        batch: &Batch,
        scale: f32,
        weights: Option<&Tensor<f32>>,
    ) -> Result<()> {
        passes::cross_entropy_loss(engine, batch, self.smoothing, scale, weights)
    }

    fn state(&self) -> Weights {
        self.adversary.state()
    }

    fn restore(&mut self, state: &Weights) -> Result<(), String> {
        self.adversary.restore(state)
    }
}
