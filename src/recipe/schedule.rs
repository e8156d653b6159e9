//! `[schedule]`: how the learning rate and the momentum change over a run. The function itself is `train::schedule`.
//!
//! Checked by tests/recipes.rs. Called by the recipe and by `train::schedule`.

use serde::Serialize;

use super::reader::{Section, above};
use super::{RecipeError, value};
use crate::names::named;

/// Shape of the learning rate; its peak is `optimizer.learning_rate`. Times are in epochs, shares are of the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Schedule {
    /// The peak throughout, behind a linear warm-up.
    Constant { warmup_epochs: f64 },
    /// Times `factor` from each epoch in `drops` on, epochs counted from 0 (PyTorch's MultiStepLR).
    Step { drops: Vec<f64>, factor: f64, position: Position, warmup_epochs: f64 },
    /// Half a cosine from the peak to `floor` times the peak (PyTorch's CosineAnnealingLR), behind the warm-up.
    Cosine { floor: f64, update: Update, warmup_epochs: f64 },
    /// PyTorch's OneCycleLR with cosine annealing: from peak / `initial_divisor` up to the peak over the first
    /// `rise` of the run, then down to peak / (`initial_divisor` * `final_divisor`).
    OneCycle {
        rise: f64,
        initial_divisor: f64,
        final_divisor: f64,
        update: Update,
        /// Momentum goes the other way, from the second number to the first and back; without, it stays
        /// `optimizer.momentum`. PyTorch cycles it between 0.85 and 0.95 unless told not to.
        #[serde(serialize_with = "value::none")]
        momentum_range: Option<[f64; 2]>,
    },
    /// Straight lines from 0 to the peak at the share `peak_at` of the run and back to 0: PyTorch's CyclicLR.
    Cyclic {
        peak_at: f64,
        /// As for `OneCycle`, in straight lines. PyTorch cycles it between 0.8 and 0.9 unless told not to.
        #[serde(serialize_with = "value::none")]
        momentum_range: Option<[f64; 2]>,
    },
}

named! {
    /// The point of a step whose epoch decides.
    pub enum Position {
        /// Its start, as code that calls `scheduler.step()` after each epoch does.
        Start = "start",
        /// Its end, as code that asks for the rate at `epoch + (i + 1) / steps` does: the last step before a drop has it
        /// already.
        End = "end",
    }
}

named! {
    /// How often a smooth schedule moves.
    pub enum Update {
        /// Every step.
        Step = "step",
        /// Once an epoch, as code that calls `scheduler.step()` behind each epoch does.
        Epoch = "epoch",
    }
}

named! {
    /// Names of the kinds.
    pub enum Kind {
        Constant = "constant",
        Step = "step",
        Cosine = "cosine",
        OneCycle = "one-cycle",
        Cyclic = "cyclic",
    }
}

impl Schedule {
    pub(super) fn read(mut section: Section) -> Result<Self, RecipeError> {
        let epochs = 0.0..=100_000.0;
        let schedule = match section.name("kind", None)? {
            Kind::Constant => {
                Self::Constant { warmup_epochs: section.number("warmup_epochs", epochs, Some(0.0))? }
            }
            Kind::Step => Self::Step {
                drops: section.ascending("drops", above(0.0, 100_000.0), None)?,
                factor: section.number("factor", above(0.0, 1.0), Some(0.1))?,
                position: section.name("position", Some(Position::Start))?,
                warmup_epochs: section.number("warmup_epochs", epochs, Some(0.0))?,
            },
            Kind::Cosine => Self::Cosine {
                floor: section.number("floor", 0.0..=1.0, Some(0.0))?,
                update: section.name("update", Some(Update::Step))?,
                warmup_epochs: section.number("warmup_epochs", epochs, Some(0.0))?,
            },
            Kind::OneCycle => Self::OneCycle {
                rise: section.number("rise", 0.0..=1.0, Some(0.3))?,
                initial_divisor: section.number("initial_divisor", 1.0..=1e9, Some(25.0))?,
                final_divisor: section.number("final_divisor", 1.0..=1e9, Some(1e4))?,
                update: section.name("update", Some(Update::Step))?,
                momentum_range: section.pair_or("momentum_range", "none", 0.0..1.0)?,
            },
            Kind::Cyclic => Self::Cyclic {
                peak_at: section.number("peak_at", 0.0..=1.0, Some(0.5))?,
                momentum_range: section.pair_or("momentum_range", "none", 0.0..1.0)?,
            },
        };
        section.finish()?;
        Ok(schedule)
    }
}
