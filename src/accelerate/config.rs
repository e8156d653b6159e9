//! `[accelerate]`: what makes the attack cheaper.

use serde::Serialize;

use super::Acceleration;
use crate::config::{ConfigError, Fraction, Refusal, Section, above};

/// Fewer attack steps for the same training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccelerateConfig {
    pub method: Acceleration,
    /// Of the short attack on robust samples; at most the steps of the full attack.
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

impl AccelerateConfig {
    pub(crate) fn read(mut section: Section) -> Result<Self, ConfigError> {
        let accelerate = Self {
            method: section.name("method", Some(Acceleration::None))?,
            robust_steps: section.integer("robust_steps", 0..=1000, Some(2))?,
            robust_step_size: section.fraction("robust_step_size", above(0.0, 1.0), "6/255")?,
            accuracy_decay: section.number("accuracy_decay", 0.0..1.0, Some(0.9))?,
            accuracy_factor: section.number("accuracy_factor", 0.0..=1.0, Some(0.8))?,
            warmup_accuracy: section.number("warmup_accuracy", 0.0..=1.0, Some(0.0))?,
            super_batch: section.integer("super_batch", 1..=64, Some(1))?,
        };
        section.finish(accelerate, Self::validate)
    }

    /// Refuses the options of groups where there are none.
    pub fn validate(&self) -> Result<(), Refusal> {
        if self.method.row().groups {
            return Ok(());
        }
        if self.super_batch > 1 {
            let expected = "1 without bullet-train: the attack of a whole batch fills its micro-batches";
            return Err(Refusal::new("super_batch", self.super_batch, expected));
        }
        if self.warmup_accuracy > 0.0 {
            let expected = "0 without bullet-train, which it delays";
            return Err(Refusal::new("warmup_accuracy", self.warmup_accuracy, expected));
        }
        Ok(())
    }
}
