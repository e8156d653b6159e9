//! FGSM-RS, "Fast is better than free" (Wong et al., ICLR 2020): one step of 1.25 eps from a uniform start, projected
//! onto the ball; L = CE(z', y).

use super::{Objective, passes};
use crate::accelerate;
use crate::attack::{Adversary, AttackWork, CrossEntropyAscent};
use crate::batch::Batch;
use crate::engine::{Engine, Result, Tensor};
use crate::model::Weights;
use crate::philox::Key;
use crate::recipe::Recipe;

/// Cross-entropy on the images of one random-start step. Watch for catastrophic overfitting.
pub struct FgsmRs {
    /// One step; the step size is the recipe's.
    pub adversary: Box<dyn Adversary>,
    pub smoothing: f32,
}

impl FgsmRs {
    pub fn of_recipe(recipe: &Recipe) -> Self {
        Self {
            adversary: accelerate::adversary_of_recipe(recipe, |pgd| pgd),
            smoothing: recipe.objective.label_smoothing as f32,
        }
    }
}

impl Objective for FgsmRs {
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
