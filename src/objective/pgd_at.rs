//! PGD-AT (Madry et al., 2018): the cross-entropy of the adversarial images, L = CE(z', y), dL/dz' = q - target.

use super::Objective;
use crate::attack::{CrossEntropyAscent, Pgd};
use crate::batch::Batch;
use crate::engine::{CrossEntropy, Engine, Pass, Result, Tensor};
use crate::philox::Key;
use crate::recipe::Recipe;

/// Cross-entropy, with label smoothing if wanted, on the images that PGD found.
#[derive(Clone, Copy, Debug)]
pub struct PgdAt {
    pub pgd: Pgd,
    /// The target is `(1 - smoothing) * one_hot + smoothing / classes`; the attack ascends hard labels.
    pub smoothing: f32,
}

impl PgdAt {
    /// PGD-AT with the attack and the smoothing of a recipe.
    pub fn of_recipe(recipe: &Recipe) -> Self {
        Self { pgd: Pgd::of_recipe(&recipe.attack), smoothing: recipe.objective.label_smoothing as f32 }
    }
}

impl Objective for PgdAt {
    fn attack(&mut self, engine: &mut dyn Engine, key: Key, batch: &Batch) -> Result<()> {
        self.pgd.perturb(engine, &mut CrossEntropyAscent, key, batch)
    }

    fn gradient(
        &mut self,
        engine: &mut dyn Engine,
        batch: &Batch,
        weights: Option<&Tensor<f32>>,
    ) -> Result<()> {
        let pass = Pass::Train { slot: 0 };
        let loss = CrossEntropy { smoothing: self.smoothing, scale: 1.0 / batch.len() as f32 };
        engine.forward(pass, &batch.perturbed, &batch.logits)?;
        engine.cross_entropy(&loss, &batch.logits, &batch.labels, weights, batch.outputs())?;
        engine.parameter_gradient(pass, &batch.logit_gradient, false)
    }
}
