//! MART (Wang et al., ICLR 2020): boosted cross-entropy of x' and a divergence weighted by the doubt about x,
//! L = -log q_y - log(1.0001 - q_k + 1e-12) + lambda (1.0000001 - p_y) KL(p || q + 1e-12), k the best wrong class of q.
//!
//! Its attack ascends the cross-entropy from the start of TRADES. The gradients stand at
//! [`PairedForm::BoostedCrossEntropy`].

use super::{Objective, passes};
use crate::accelerate;
use crate::attack::{Adversary, AttackWork, CrossEntropyAscent};
use crate::batch::Batch;
use crate::engine::{Engine, PairedForm, Result, Tensor};
use crate::model::Weights;
use crate::philox::Key;
use crate::recipe::Recipe;

/// Misclassification-aware adversarial training.
pub struct Mart {
    pub adversary: Box<dyn Adversary>,
    /// Factor on the weighted divergence; 5 in the official code for ResNet-18.
    pub lambda: f32,
}

impl Mart {
    /// MART with the attack, its acceleration and the factor (`objective.beta`) of a recipe.
    pub fn of_recipe(recipe: &Recipe) -> Self {
        Self {
            adversary: accelerate::adversary_of_recipe(recipe, |pgd| pgd),
            lambda: recipe.objective.beta as f32,
        }
    }
}

impl Objective for Mart {
    fn needs_fold(&self) -> bool {
        self.adversary.needs_fold()
    }

    fn has_clean_pass(&self) -> bool {
        true
    }

    fn attack(&mut self, engine: &mut dyn Engine, key: Key, batch: &Batch) -> Result<AttackWork> {
        self.adversary.perturb(engine, &mut CrossEntropyAscent, key, batch)
    }

    fn gradient(
        &mut self,
        engine: &mut dyn Engine,
        batch: &Batch,
        weights: Option<&Tensor<f32>>,
    ) -> Result<()> {
        passes::paired(engine, batch, PairedForm::BoostedCrossEntropy, self.lambda, weights)
    }

    fn loss(
        &self,
        engine: &mut dyn Engine,
        batch: &Batch,
        scale: f32,
        weights: Option<&Tensor<f32>>,
    ) -> Result<()> {
        passes::paired_loss(engine, batch, PairedForm::BoostedCrossEntropy, self.lambda, scale, weights)
    }

    fn state(&self) -> Weights {
        self.adversary.state()
    }

    fn restore(&mut self, state: &Weights) -> Result<(), String> {
        self.adversary.restore(state)
    }
}
