//! PGD-AT (Madry et al., 2018): the cross-entropy of the adversarial images, L = CE(z', y), dL/dz' = q - target.

use super::{Objective, passes};
use crate::accelerate;
use crate::attack::{Adversary, AttackWork, CrossEntropyAscent};
use crate::batch::Batch;
use crate::engine::{Engine, Result, Tensor};
use crate::model::Weights;
use crate::philox::Key;
use crate::recipe::Recipe;

/// Cross-entropy, with label smoothing if wanted, on the images that PGD found.
pub struct PgdAt {
    pub adversary: Box<dyn Adversary>,
    /// The target is `(1 - smoothing) * one_hot + smoothing / classes`; the attack ascends hard labels.
    pub smoothing: f32,
}

impl PgdAt {
    /// PGD-AT with the attack, its acceleration and the smoothing of a recipe.
    pub fn of_recipe(recipe: &Recipe) -> Self {
        Self {
            adversary: accelerate::adversary_of_recipe(recipe, |pgd| pgd),
            smoothing: recipe.objective.label_smoothing as f32,
        }
    }
}

impl Objective for PgdAt {
    fn needs_fold(&self) -> bool {
        self.adversary.needs_fold()
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
        passes::cross_entropy(engine, batch, self.smoothing, weights)
    }

    fn loss(
        &self,
        engine: &mut dyn Engine,
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
