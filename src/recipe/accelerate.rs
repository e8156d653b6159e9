//! `[accelerate]`: what makes the attack cheaper. The accelerations themselves are `accelerate`'s.
//!
//! Checked by tests/recipes.rs. Called by the recipe.

use serde::Serialize;

use super::reader::{Section, above};
use super::{Fraction, RecipeError};
use crate::names::named;

/// `[accelerate]`: fewer attack steps for the same training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Accelerate {
    pub method: Acceleration,
    /// Of the brief attack on robust samples; at most the steps of the full attack.
    pub robust_steps: usize,
    /// Unused where the full attack is a single step, which keeps its own size.
    pub robust_step_size: Fraction,
    /// The reference accuracy moves by `a <- accuracy_decay * a + (1 - accuracy_decay) * accuracy_factor * accuracy`.
    pub accuracy_decay: f64,
    pub accuracy_factor: f64,
}

named! {
    /// What makes the attack cheaper.
    pub enum Acceleration {
        None = "none",
        /// The full attack only near the decision boundary (Hua et al. 2021).
        BulletTrain = "bullet-train",
    }
}

impl Accelerate {
    pub(super) fn read(mut section: Section) -> Result<Self, RecipeError> {
        let accelerate = Self {
            method: section.name("method", Some(Acceleration::None))?,
            robust_steps: section.integer("robust_steps", 0..=1000, Some(2))?,
            robust_step_size: section.fraction("robust_step_size", above(0.0, 1.0), "6/255")?,
            accuracy_decay: section.number("accuracy_decay", 0.0..1.0, Some(0.9))?,
            accuracy_factor: section.number("accuracy_factor", 0.0..=1.0, Some(0.8))?,
        };
        section.finish()?;
        Ok(accelerate)
    }
}
