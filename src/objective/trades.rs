//! TRADES (Zhang et al., ICML 2019): L = CE(z, y) + beta KL(p || q), its attack ascending KL.
//!
//! dL/dz = (p - e_y) + beta p (log p - log q - KL), dL/dz' = beta (q - p). The target p of the attack is computed once
//! a step, under the attack's BatchNorm; the train passes give x and x' batch statistics of their own.

use super::{Objective, passes};
use crate::accelerate;
use crate::attack::{Adversary, AttackWork, DivergenceAscent};
use crate::batch::Batch;
use crate::engine::{Engine, PairedForm, Result, Tensor};
use crate::model::Weights;
use crate::philox::Key;
use crate::recipe::Recipe;

/// Clean cross-entropy and the divergence of the adversarial prediction from the clean one.
pub struct Trades {
    pub adversary: Box<dyn Adversary>,
    /// Factor on the divergence; 6 in the paper.
    pub beta: f32,
}

impl Trades {
    /// TRADES with the attack, its acceleration and the beta of a recipe.
    pub fn of_recipe(recipe: &Recipe) -> Self {
        Self {
            adversary: accelerate::adversary_of_recipe(recipe, |pgd| pgd),
            beta: recipe.objective.beta as f32,
        }
    }
}

impl Objective for Trades {
    fn needs_fold(&self) -> bool {
        self.adversary.needs_fold()
    }

    fn has_clean_pass(&self) -> bool {
        true
    }

    fn attack(&mut self, engine: &mut dyn Engine, key: Key, batch: &Batch) -> Result<AttackWork> {
        self.adversary.perturb(engine, &mut DivergenceAscent, key, batch)
    }

    fn gradient(
        &mut self,
        engine: &mut dyn Engine,
        batch: &Batch,
        weights: Option<&Tensor<f32>>,
    ) -> Result<()> {
        passes::paired(engine, batch, PairedForm::CleanCrossEntropy, self.beta, weights)
    }

    fn loss(
        &self,
        engine: &mut dyn Engine,
        batch: &Batch,
        scale: f32,
        weights: Option<&Tensor<f32>>,
    ) -> Result<()> {
        passes::paired_loss(engine, batch, PairedForm::CleanCrossEntropy, self.beta, scale, weights)
    }

    fn state(&self) -> Weights {
        self.adversary.state()
    }

    fn restore(&mut self, state: &Weights) -> Result<(), String> {
        self.adversary.restore(state)
    }
}
