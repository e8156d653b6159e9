//! `[attack]`: the inner maximisation, in the L-inf ball around the image.

use serde::Serialize;

use crate::config::{ConfigError, Fraction, Refusal, Section, above};
use crate::names::named;

/// The attack of a training step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttackConfig {
    /// Radius of the ball; also that of every evaluation of the run.
    pub epsilon: Fraction,
    pub step_size: Fraction,
    pub steps: usize,
    pub start: Start,
    /// Radius of a uniform start, in units of `epsilon`; unused by the others.
    pub start_scale: f64,
    /// Standard deviation of a normal start; unused by the others.
    pub start_deviation: Fraction,
    pub batch_norm: BatchNorm,
    /// Other steps later in training; ascending.
    pub phases: Vec<AttackPhase>,
}

/// `[[attack.phases]]`: the steps from an epoch on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttackPhase {
    /// Epochs of the schedule, counted from 0.
    pub from_epoch: usize,
    pub steps: usize,
    pub step_size: Fraction,
}

named! {
    /// Where the attack starts.
    pub enum Start {
        /// x + U(-r, r), r = start_scale * epsilon.
        Uniform = "uniform",
        /// x + start_deviation * N(0, 1).
        Normal = "normal",
        /// x itself.
        None = "none",
    }
}

named! {
    /// Statistics that BatchNorm uses during the attack.
    pub enum BatchNorm {
        /// Running statistics, folded into the convolutions.
        Eval = "eval",
        /// Statistics of the attacked batch, as in the first PGD-AT code.
        Train = "train",
    }
}

/// What the published code of an objective attacks with: the values of keys that a recipe leaves out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttackDefaults {
    pub epsilon: &'static str,
    pub step_size: &'static str,
    pub steps: usize,
    pub start: Start,
    pub start_scale: f64,
}

impl AttackDefaults {
    /// PGD-10 (Madry et al., 2018).
    pub const PGD: Self =
        Self { epsilon: "8/255", step_size: "2/255", steps: 10, start: Start::Uniform, start_scale: 1.0 };
}

impl AttackConfig {
    pub(crate) fn read(mut section: Section, default: &AttackDefaults) -> Result<Self, ConfigError> {
        // Recipes of older run folders carry it; fp8 products were an experiment.
        section.retired("precision", "device")?;
        let mut attack = Self {
            epsilon: section.fraction("epsilon", above(0.0, 1.0), default.epsilon)?,
            step_size: section.fraction("step_size", above(0.0, 1.0), default.step_size)?,
            steps: section.integer("steps", 0..=1000, Some(default.steps))?,
            start: section.name("start", Some(default.start))?,
            start_scale: section.number("start_scale", 0.0..=100.0, Some(default.start_scale))?,
            start_deviation: section.fraction("start_deviation", (0.0..=1.0).into(), "0.001")?,
            batch_norm: section.name("batch_norm", Some(BatchNorm::Eval))?,
            phases: Vec::new(),
        };
        for mut phase in section.sections("phases")? {
            let read = AttackPhase {
                from_epoch: phase.integer("from_epoch", 0..=100_000, None)?,
                steps: phase.integer("steps", 0..=1000, Some(attack.steps))?,
                step_size: phase.fraction("step_size", above(0.0, 1.0), &attack.step_size.to_string())?,
            };
            attack.phases.push(phase.finish(read, |_| Ok(()))?);
        }
        section.finish(attack, Self::validate)
    }

    /// Refuses a normal start without a deviation, and phases that do not ascend.
    pub fn validate(&self) -> Result<(), Refusal> {
        if self.start == Start::Normal && self.start_deviation.value() == 0.0 {
            let expected = "more than 0 for a normal start";
            return Err(Refusal::of_text("start_deviation", &self.start_deviation, expected));
        }
        for (index, pair) in self.phases.windows(2).enumerate() {
            let [before, phase] = [&pair[0], &pair[1]].map(|phase| phase.from_epoch);
            if before >= phase {
                let key = format!("phases[{}].from_epoch", index + 1);
                let expected = format!("more than {before}, the epoch of the phase before");
                return Err(Refusal::new(key, phase, expected));
            }
        }
        Ok(())
    }
}
