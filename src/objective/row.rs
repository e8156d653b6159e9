//! What an objective is, in one row: its defaults, its passes and its constructor.

use super::{Objective, ObjectiveConfig};
use crate::accelerate::{AccelerateConfig, Replays};
use crate::attack::{Adversary, AttackDefaults, Pgd, ScheduledPgd};
use crate::ops::AscentLoss;

/// Of logits z of a clean image x and z' of the adversarial x', p and q their softmax.
pub struct ObjectiveRow {
    pub name: &'static str,
    /// The loss.
    pub about: &'static str,
    pub paper: &'static str,
    pub attack: AttackKind,
    /// What the attack ascends.
    pub ascends: AscentLoss,
    /// Keys of `[attack]` that a recipe leaves out.
    pub defaults: AttackDefaults,
    pub passes: TrainPasses,
    /// `objective.beta` where a recipe leaves it out.
    pub beta: f64,
    /// Why the labels cannot be smoothed, where they cannot.
    pub hard_labels: Option<&'static str>,
    pub new: fn(ObjectiveParts) -> Box<dyn Objective>,
}

impl ObjectiveRow {
    /// Cross-entropy on the images of PGD with any number of steps; the others say in what they differ.
    pub const PGD: Self = Self {
        name: "",
        about: "CE(z', y)",
        paper: "",
        attack: AttackKind::Steps { fixed: None },
        ascends: AscentLoss::CrossEntropy,
        defaults: AttackDefaults::PGD,
        passes: TrainPasses::Adversarial,
        beta: 6.0,
        hard_labels: None,
        new: |parts| Box::new(super::attacked::Attacked::cross_entropy(&parts, |pgd| pgd)),
    };
}

/// How the adversarial images of a training step come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttackKind {
    /// They are the clean ones.
    None,
    /// By sign steps before the train passes, of a fixed number where that is part of the method.
    Steps { fixed: Option<usize> },
    /// By the train passes' own gradients: one step in each of the replays of a minibatch, so many by default.
    Replays { default: usize },
}

/// The images that a training step passes forward and backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainPasses {
    Adversarial,
    CleanAndAdversarial,
}

impl AttackKind {
    /// `attack.steps` where its number is part of the method.
    pub fn fixed_steps(self) -> Option<usize> {
        match self {
            Self::None => Some(0),
            Self::Steps { fixed } => fixed,
            Self::Replays { .. } => Some(1),
        }
    }

    /// Whether the perturbation is carried from replay to replay, and from minibatch to minibatch.
    pub fn is_replayed(self) -> bool {
        matches!(self, Self::Replays { .. })
    }

    /// `objective.replays` where a recipe leaves it out.
    pub fn replays(self) -> usize {
        match self {
            Self::None | Self::Steps { .. } => 1,
            Self::Replays { default } => default,
        }
    }
}

impl TrainPasses {
    /// Forward passes of a training step, for each image.
    pub fn forwards(self) -> usize {
        match self {
            Self::Adversarial => 1,
            Self::CleanAndAdversarial => 2,
        }
    }
}

/// What an objective is made of.
#[derive(Clone, Debug)]
pub struct ObjectiveParts<'a> {
    pub config: &'a ObjectiveConfig,
    /// The full attack.
    pub attack: ScheduledPgd,
    pub accelerate: &'a AccelerateConfig,
    /// Images of a minibatch.
    pub batch: usize,
}

impl ObjectiveParts<'_> {
    /// The attack of every batch, accelerated; `change` is what the method makes of each of its phases.
    pub(super) fn adversary(&self, change: impl Fn(Pgd) -> Pgd) -> Box<dyn Adversary> {
        (self.accelerate.method.row().adversary)(self.attack.clone().map(change), self.accelerate)
    }

    /// The same for an attack of replays; `None` where all images move in each.
    pub(super) fn replays(&self) -> Option<Replays> {
        (self.accelerate.method.row().replays)(self.accelerate)
    }
}
