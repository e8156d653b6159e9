//! `[attack]`: the inner maximisation, in the L-inf ball around the image. Its defaults are those of the method.

use serde::Serialize;

use super::reader::{Section, above};
use super::{Fraction, Method, RecipeError};
use crate::names::named;

/// The attack of a training step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Attack {
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
    pub phases: Vec<Phase>,
}

/// `[[attack.phases]]`: the steps from an epoch on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
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

/// What the published code of a method attacks with.
struct Defaults {
    epsilon: &'static str,
    step_size: &'static str,
    steps: usize,
    start: Start,
    start_scale: f64,
}

impl Defaults {
    fn of(method: Method) -> Self {
        let pgd =
            Self { epsilon: "8/255", step_size: "2/255", steps: 10, start: Start::Uniform, start_scale: 1.0 };
        match method {
            Method::PgdAt => pgd,
            Method::Standard => Self { steps: 0, start: Start::None, ..pgd },
            Method::Trades | Method::Mart => {
                Self { epsilon: "0.031", step_size: "0.007", start: Start::Normal, ..pgd }
            }
            Method::FgsmRs => Self { step_size: "10/255", steps: 1, ..pgd },
            Method::NFgsm => Self { step_size: "8/255", steps: 1, start_scale: 2.0, ..pgd },
            Method::Free => Self { step_size: "8/255", steps: 1, start: Start::None, ..pgd },
        }
    }
}

impl Attack {
    pub(super) fn read(mut section: Section, method: Method) -> Result<Self, RecipeError> {
        // Recipes of older run folders carry it; fp8 products were an experiment.
        section.retired("precision", "device")?;
        let default = Defaults::of(method);
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
        if attack.start == Start::Normal && attack.start_deviation.value() == 0.0 {
            let met = format!("\"{}\"", attack.start_deviation);
            return Err(section.value_error("start_deviation", met, "more than 0 for a normal start"));
        }
        let fixed = method.fixed_steps();
        let wrong = |steps: usize| fixed.filter(|&fixed| fixed != steps);
        if let Some(fixed) = wrong(attack.steps) {
            return Err(section.value_error("steps", attack.steps, format!("{fixed} for {method}")));
        }
        for mut phase in section.sections("phases")? {
            let from_epoch = phase.integer("from_epoch", 0..=100_000, None)?;
            let steps = phase.integer("steps", 0..=1000, Some(attack.steps))?;
            let step_size = phase.fraction("step_size", above(0.0, 1.0), &attack.step_size.to_string())?;
            if let Some(fixed) = wrong(steps) {
                return Err(phase.value_error("steps", steps, format!("{fixed} for {method}")));
            }
            if let Some(last) = attack.phases.last().filter(|last| last.from_epoch >= from_epoch) {
                let wanted = format!("more than {}, the epoch of the phase before", last.from_epoch);
                return Err(phase.value_error("from_epoch", from_epoch, wanted));
            }
            phase.finish()?;
            attack.phases.push(Phase { from_epoch, steps, step_size });
        }
        // Free-AT starts where the minibatch before it ended.
        if method == Method::Free && attack.start != Start::None {
            let met = format!("\"{}\"", attack.start);
            return Err(section.value_error(
                "start",
                met,
                "\"none\" for free, which carries its perturbation on",
            ));
        }
        section.finish()?;
        Ok(attack)
    }
}
