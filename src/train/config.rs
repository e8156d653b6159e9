//! Sections of a recipe that are the training loop's own: `[optimizer]`, `[schedule]`, `[overfitting]`, `[evaluation]`,
//! `[checkpoint]`, `[metrics]`.

use serde::Serialize;

use crate::config::{self, ConfigError, Refusal, Section, above};
use crate::names::named;
use crate::objective::AttackKind;
use crate::ops::Sgd;

/// `[optimizer]`: SGD.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OptimizerConfig {
    /// The peak of the schedule.
    pub learning_rate: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    /// Decay of the exponential moving average of the weights, if one is kept (and then evaluated).
    #[serde(serialize_with = "config::none")]
    pub average_decay: Option<f64>,
    /// Whether its decay begins lower, at min(average_decay, (1 + t) / (10 + t)) in optimizer step t: without, a short
    /// run's average is mostly the untrained network. Unused without an average.
    pub average_warmup: bool,
    /// Whether a step goes on by momentum once more, as Nesterov's does.
    pub nesterov: bool,
}

/// `[overfitting]`: catastrophic overfitting, seen by the PGD-5 accuracy of one batch of training images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OverfittingConfig {
    /// Whether it is measured after each epoch; by default where the attack is one step by its method.
    pub check: bool,
    /// A larger fall from one epoch to the next is reported.
    pub max_fall: f64,
    /// Whether it also ends the run.
    pub stop: bool,
}

/// `[evaluation]` during training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationConfig {
    /// Every N epochs of the schedule, and after the last; 0 for the last only.
    pub every: usize,
    /// The first N test images.
    #[serde(serialize_with = "config::all")]
    pub samples: Option<usize>,
    /// Names of `evaluate`'s protocols, such as "clean", "pgd20", "pgd50x10".
    pub protocols: Vec<String>,
    /// The protocol whose accuracy on the validation images chooses the best epoch.
    pub best_by: String,
}

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckpointConfig {
    /// Every N epochs of the schedule, and after the last; 0 for the last only.
    pub every: usize,
    /// How many of the newest stay on disk; the best one stays besides.
    pub keep: usize,
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetricsConfig {
    /// Whether a TensorBoard event file is kept next to metrics.jsonl.
    pub tensorboard: bool,
}

/// `[schedule]`: the shape of the learning rate; its peak is `optimizer.learning_rate`. Times are in epochs, shares are of the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Schedule {
    /// The peak throughout, after a linear warm-up.
    Constant { warmup_epochs: f64 },
    /// Times `factor` from each epoch in `drops` on, epochs counted from 0 (PyTorch's MultiStepLR).
    Step { drops: Vec<f64>, factor: f64, position: Position, warmup_epochs: f64 },
    /// Half a cosine from the peak to `floor` times the peak (PyTorch's CosineAnnealingLR), after the warm-up.
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
        #[serde(serialize_with = "config::none")]
        momentum_range: Option<[f64; 2]>,
    },
    /// Straight lines from 0 to the peak at the share `peak_at` of the run and back to 0: PyTorch's CyclicLR.
    Cyclic {
        peak_at: f64,
        /// As for `OneCycle`, in straight lines. PyTorch cycles it between 0.8 and 0.9 unless told not to.
        #[serde(serialize_with = "config::none")]
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
        /// Once an epoch, as code that calls `scheduler.step()` after each epoch does.
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
    pub(crate) fn read(mut section: Section) -> Result<Self, ConfigError> {
        let epochs = 0.0..=100_000.0;
        let schedule = match section.name("kind", None)? {
            Kind::Constant => {
                Self::Constant { warmup_epochs: section.number("warmup_epochs", epochs, Some(0.0))? }
            }
            Kind::Step => Self::Step {
                drops: section.ascending("drops", above(0.0, 100_000.0))?,
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
        section.finish(schedule, |_| Ok(()))
    }
}

impl OptimizerConfig {
    pub(crate) fn read(mut section: Section) -> Result<Self, ConfigError> {
        let optimizer = Self {
            learning_rate: section.number("learning_rate", above(0.0, 100.0), None)?,
            momentum: section.number("momentum", 0.0..1.0, Some(0.9))?,
            weight_decay: section.number("weight_decay", 0.0..=1.0, Some(5e-4))?,
            average_decay: section.number_or("average_decay", "none", 0.0..1.0, None)?,
            average_warmup: section.boolean("average_warmup", true)?,
            nesterov: section.boolean("nesterov", false)?,
        };
        section.finish(optimizer, |_| Ok(()))
    }

    /// A step at the peak of the schedule.
    pub fn sgd(&self) -> Sgd<'static> {
        Sgd {
            learning_rate: self.learning_rate as f32,
            momentum: self.momentum as f32,
            weight_decay: self.weight_decay as f32,
            nesterov: self.nesterov,
            ..Sgd::ZERO
        }
    }
}

impl OverfittingConfig {
    pub(crate) fn read(mut section: Section, attack: AttackKind) -> Result<Self, ConfigError> {
        let overfitting = Self {
            check: section.boolean("check", attack.fixed_steps() == Some(1))?,
            max_fall: section.number("max_fall", 0.0..=1.0, Some(0.2))?,
            stop: section.boolean("stop", false)?,
        };
        section.finish(overfitting, Self::validate)
    }

    /// Refuses to stop by what is not measured.
    pub fn validate(&self) -> Result<(), Refusal> {
        match self.stop && !self.check {
            true => Err(Refusal::new("check", false, "true where overfitting.stop is")),
            false => Ok(()),
        }
    }
}

impl EvaluationConfig {
    pub(crate) fn read(mut section: Section) -> Result<Self, ConfigError> {
        let evaluation = Self {
            every: section.integer("every", 0..=100_000, Some(1))?,
            samples: section.integer_or("samples", "all", 1..=1_000_000, None)?,
            protocols: section.texts("protocols", &["clean", "pgd20"])?,
            best_by: section.text("best_by", Some("pgd10"))?,
        };
        section.finish(evaluation, |_| Ok(()))
    }
}

impl CheckpointConfig {
    pub(crate) fn read(mut section: Section) -> Result<Self, ConfigError> {
        let checkpoint = Self {
            every: section.integer("every", 0..=100_000, Some(1))?,
            keep: section.integer("keep", 1..=100_000, Some(2))?,
        };
        section.finish(checkpoint, |_| Ok(()))
    }
}

impl MetricsConfig {
    pub(crate) fn read(mut section: Section) -> Result<Self, ConfigError> {
        let tensorboard = section.boolean("tensorboard", false)?;
        section.finish(Self { tensorboard }, |_| Ok(()))
    }
}
