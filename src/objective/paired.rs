//! Objectives of the clean and the adversarial images: a [`PairedForm`] of both logits, behind a pair of train passes.
//!
//! Their methods differ by the form and by what the attack ascends, each in a file of its own.

use super::{Objective, ObjectiveParts, passes};
use crate::attack::{Adversary, AttackWork};
use crate::batch::Batch;
use crate::engine::{Engine, Result, Tensor};
use crate::model::Weights;
use crate::ops::{AscentLoss, PairedForm};
use crate::philox::Key;

/// A loss on clean images and on those that an attack made of them.
pub struct Paired {
    adversary: Box<dyn Adversary>,
    ascends: AscentLoss,
    form: PairedForm,
    /// Factor on the divergence.
    divergence: f32,
}

impl Paired {
    pub fn new(parts: &ObjectiveParts, form: PairedForm) -> Self {
        Self {
            adversary: parts.adversary(|pgd| pgd),
            ascends: parts.config.method.row().ascends,
            form,
            divergence: parts.config.beta as f32,
        }
    }
}

impl Objective for Paired {
    fn needs_fold(&self) -> bool {
        self.adversary.needs_fold()
    }

    fn has_clean_pass(&self) -> bool {
        true
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
        passes::paired(engine, batch, self.form, self.divergence, weights)?;
        Ok(None)
    }

    fn loss(
        &self,
        engine: &mut Engine,
        batch: &Batch,
        scale: f32,
        weights: Option<&Tensor<f32>>,
    ) -> Result<()> {
        passes::paired_loss(engine, batch, self.form, self.divergence, scale, weights)
    }

    fn state(&self) -> Weights {
        self.adversary.state()
    }

    fn restore(&mut self, state: &Weights) -> Result<(), String> {
        self.adversary.restore(state)
    }
}
