//! `[accelerate]`: what makes the attack cheaper. The accelerations themselves are `accelerate`'s.
//!
//! Checked by tests/recipes.rs. Called by the recipe.

use serde::Serialize;

use super::reader::{Section, above};
use super::{BatchNorm, Fraction, Method, Recipe, RecipeError};
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
    /// Every image is attacked in full until a running mean of the clean accuracy of the batches, which starts at 0 and moves by
    /// `accuracy_decay`, has once come to this. 0: never, as published.
    pub warmup_accuracy: f64,
    /// Minibatches that are divided and attacked together, so that the groups fill whole micro-batches (AttackRider, IJCAI
    /// 2025). The last of n is trained on n - 1 steps later: by then its images meet other weights than they were attacked with.
    pub super_batch: usize,
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
            warmup_accuracy: section.number("warmup_accuracy", 0.0..=1.0, Some(0.0))?,
            super_batch: section.integer("super_batch", 1..=64, Some(1))?,
        };
        section.finish()?;
        Ok(accelerate)
    }

    /// Refuses what does not go with the rest of the recipe.
    pub(super) fn check(&self, recipe: &Recipe, root: &Section) -> Result<(), RecipeError> {
        let method = recipe.objective.method;
        if self.method == Acceleration::None {
            if self.super_batch > 1 {
                let wanted = "1 without bullet-train: the attack of a whole batch fills its micro-batches";
                return Err(root.value_error("accelerate.super_batch", self.super_batch, wanted));
            }
            if self.warmup_accuracy > 0.0 {
                let wanted = "0 without bullet-train, which it delays";
                return Err(root.value_error("accelerate.warmup_accuracy", self.warmup_accuracy, wanted));
            }
            return Ok(());
        }
        if recipe.attack.batch_norm != BatchNorm::Eval {
            let wanted = "\"eval\" with bullet-train, which attacks parts of a batch";
            return Err(root.value_error("attack.batch_norm", "\"train\"", wanted));
        }
        if self.super_batch > 1 && method == Method::Free {
            let wanted = "1 for free, whose attack is its training steps";
            return Err(root.value_error("accelerate.super_batch", self.super_batch, wanted));
        }
        if self.warmup_accuracy > 0.0 && method == Method::Standard {
            let wanted = "0 for standard, which attacks nothing";
            return Err(root.value_error("accelerate.warmup_accuracy", self.warmup_accuracy, wanted));
        }
        Ok(())
    }
}
