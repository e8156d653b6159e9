//! Standard training, no attack: the yardstick of cost, L = CE(z, y). Its adversarial images are the clean ones.

use super::{Objective, passes};
use crate::attack::AttackWork;
use crate::batch::Batch;
use crate::engine::{Engine, Noise, Result, Tensor};
use crate::philox::Key;
use crate::recipe::Recipe;

/// Cross-entropy of the clean images, with label smoothing if wanted.
#[derive(Clone, Copy, Debug)]
pub struct Standard {
    pub smoothing: f32,
}

impl Standard {
    pub fn of_recipe(recipe: &Recipe) -> Self {
        Self { smoothing: recipe.objective.label_smoothing as f32 }
    }
}

impl Objective for Standard {
    fn needs_fold(&self) -> bool {
        false
    }

    fn attack(&mut self, engine: &mut dyn Engine, key: Key, batch: &Batch) -> Result<AttackWork> {
        // A radius of zero copies: the images are in [0, 1] already.
        let nothing = Noise::Uniform { radius: 0.0 };
        engine.perturb(nothing, key, &batch.samples, &batch.images, &batch.perturbed)?;
        Ok(AttackWork { samples: batch.len() as u64, ..AttackWork::default() })
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
}
