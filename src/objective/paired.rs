//! Objectives of the clean and the adversarial images: a [`PairedForm`] of both logits, behind a pair of train passes.
//!
//! Their methods differ by the form and by what the attack ascends, each in a file of its own. Checked by `tests/methods.rs`.

use super::{Objective, passes};
use crate::accelerate;
use crate::attack::{Adversary, Ascent, AttackWork};
use crate::batch::Batch;
use crate::engine::{Engine, Result, Tensor};
use crate::model::Weights;
use crate::ops::PairedForm;
use crate::philox::Key;
use crate::recipe::Recipe;

/// A loss on clean images and on those that an attack made of them.
pub struct Paired<A> {
    adversary: Box<dyn Adversary>,
    ascent: A,
    form: PairedForm,
    /// Factor on the divergence: `objective.beta` of the recipe.
    divergence: f32,
}

impl<A: Ascent> Paired<A> {
    /// With the factor of a recipe and its attack, which ascends `ascent`.
    pub fn of_recipe(recipe: &Recipe, form: PairedForm, ascent: A) -> Self {
        Self {
            adversary: accelerate::adversary_of_recipe(recipe, |pgd| pgd),
            ascent,
            form,
            divergence: recipe.objective.beta as f32,
        }
    }
}

impl<A: Ascent> Objective for Paired<A> {
    fn needs_fold(&self) -> bool {
        self.adversary.needs_fold()
    }

    fn has_clean_pass(&self) -> bool {
        true
    }

    fn attack(&mut self, engine: &mut Engine, key: Key, batch: &Batch) -> Result<AttackWork> {
        self.adversary.perturb(engine, &mut self.ascent, key, batch)
    }

    fn gradient(&mut self, engine: &mut Engine, batch: &Batch, weights: Option<&Tensor<f32>>) -> Result<()> {
        passes::paired(engine, batch, self.form, self.divergence, weights)
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
