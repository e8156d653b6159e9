//! A loss on the images that an attack made before the train passes. The methods differ by the loss and by the attack, each in a
//! file of its own.

use super::loss::Loss;
use super::{Objective, ObjectiveParts};
use crate::attack::{Adversary, AttackWork, Pgd};
use crate::batch::Batch;
use crate::engine::{Engine, Result, Tensor};
use crate::model::Weights;
use crate::ops::{AscentLoss, PairedForm};
use crate::philox::Key;

/// An attack, then a loss.
pub struct Attacked {
    adversary: Box<dyn Adversary>,
    ascends: AscentLoss,
    loss: Loss,
}

impl Attacked {
    /// The cross-entropy of the adversarial images, with label smoothing where asked for; the attack ascends hard labels, and is
    /// changed by `change` to what the method makes of it.
    pub fn cross_entropy(parts: &ObjectiveParts, change: impl Fn(Pgd) -> Pgd) -> Self {
        Self::new(parts, change, Loss::CrossEntropy { smoothing: parts.config.label_smoothing as f32 })
    }

    /// A form of clean and adversarial logits.
    pub fn paired(parts: &ObjectiveParts, form: PairedForm) -> Self {
        Self::new(parts, |pgd| pgd, Loss::Paired { form, divergence: parts.config.beta as f32 })
    }

    fn new(parts: &ObjectiveParts, change: impl Fn(Pgd) -> Pgd, loss: Loss) -> Self {
        Self { adversary: parts.adversary(change), ascends: parts.config.method.row().ascends, loss }
    }
}

impl Objective for Attacked {
    fn needs_fold(&self) -> bool {
        self.adversary.needs_fold()
    }

    fn has_clean_pass(&self) -> bool {
        self.loss.is_paired()
    }

    fn attack(&mut self, engine: &mut Engine, key: Key, batch: &Batch) -> Result<AttackWork> {
        self.adversary.perturb(engine, self.ascends, key, batch)
    }

    fn gradient(&mut self, engine: &mut Engine, batch: &Batch) -> Result<Option<Tensor<f32>>> {
        self.loss.forward(engine, batch)?;
        self.loss.backward(engine, batch)?;
        Ok(None)
    }

    fn loss(&self, engine: &mut Engine, batch: &Batch, scale: f32) -> Result<()> {
        self.loss.of_logits(engine, batch, scale)
    }

    fn state(&self) -> Weights {
        self.adversary.state()
    }

    fn restore(&mut self, state: &Weights) -> Result<(), String> {
        self.adversary.restore(state)
    }
}
