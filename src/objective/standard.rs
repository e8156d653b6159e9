//! Standard training, no attack: the yardstick of cost, L = CE(z, y). Its adversarial images are the clean ones.
//!
//! With BulletTrain its groups are formed and reported, and all of them get the same nothing: the shares show how the other
//! methods' groups would look without adversarial training. That saves no work and costs the clean forward of each batch.

use super::{Objective, passes};
use crate::accelerate;
use crate::attack::{Adversary, AttackWork, CrossEntropyAscent, Pgd};
use crate::batch::Batch;
use crate::engine::{Engine, Result, Tensor};
use crate::model::Weights;
use crate::philox::Key;
use crate::recipe::Recipe;

/// Cross-entropy of the clean images, with label smoothing if wanted.
pub struct Standard {
    /// Neither start nor steps: it copies.
    pub adversary: Box<dyn Adversary>,
    pub smoothing: f32,
}

impl Standard {
    pub fn of_recipe(recipe: &Recipe) -> Self {
        let nothing = |pgd: Pgd| Pgd { start: None, steps: 0, ..pgd };
        Self {
            adversary: accelerate::adversary_of_recipe(recipe, nothing),
            smoothing: recipe.objective.label_smoothing as f32,
        }
    }
}

impl Objective for Standard {
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
