//! N-FGSM, "Make some noise" (de Jorge et al., NeurIPS 2022): strong noise, then one step that is not projected,
//! x' = clip01(clip01(x + U(-2 eps, 2 eps)) + eps sign g); L = CE(z', y).
//!
//! The training images lie outside the eps-ball by design, up to 3 eps from x.

use super::{Objective, passes};
use crate::accelerate;
use crate::attack::{Adversary, AttackWork, CrossEntropyAscent, Pgd};
use crate::batch::Batch;
use crate::engine::{Engine, Result, SignStep, Tensor};
use crate::model::Weights;
use crate::philox::Key;
use crate::recipe::Recipe;

/// Cross-entropy on noisy images moved by one step.
pub struct NFgsm {
    /// One step onto [0, 1] only; noise and step size are the recipe's.
    pub adversary: Box<dyn Adversary>,
    pub smoothing: f32,
}

impl NFgsm {
    pub fn of_recipe(recipe: &Recipe) -> Self {
        let unbounded = |pgd: Pgd| Pgd { step: SignStep { epsilon: f32::INFINITY, ..pgd.step }, ..pgd };
        Self {
            adversary: accelerate::adversary_of_recipe(recipe, unbounded),
            smoothing: recipe.objective.label_smoothing as f32,
        }
    }
}

impl Objective for NFgsm {
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
