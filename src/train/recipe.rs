//! What decides a training run: the configurations of all modules together, and what is made of them.

use serde::Serialize;

use super::Timeline;
use super::config::{
    CheckpointConfig, EvaluationConfig, MetricsConfig, OptimizerConfig, OverfittingConfig, Schedule,
};
use crate::accelerate::AccelerateConfig;
use crate::attack::{AttackConfig, ScheduledPgd};
use crate::data::DataConfig;
use crate::model::ModelConfig;
use crate::objective::{Objective, ObjectiveConfig, Parts};
use crate::ops::Augment;
use crate::prune::{self, Selection, SelectionConfig, Setting};

/// A training run. Every field is resolved: nothing consults a default again.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    pub name: String,
    /// Keys all randomness of the run but the generated images.
    pub seed: u64,
    /// Epochs of the schedule; where samples are pruned, those that are trained may be fewer (see [`Timeline`]).
    pub epochs: usize,
    /// Images a step; the last, smaller batch of an epoch is trained on too.
    pub batch: usize,
    pub data: DataConfig,
    pub model: ModelConfig,
    pub objective: ObjectiveConfig,
    pub attack: AttackConfig,
    pub accelerate: AccelerateConfig,
    pub selection: SelectionConfig,
    pub overfitting: OverfittingConfig,
    pub optimizer: OptimizerConfig,
    pub schedule: Schedule,
    pub evaluation: EvaluationConfig,
    pub checkpoint: CheckpointConfig,
    pub metrics: MetricsConfig,
}

impl Recipe {
    /// Every key, resolved.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe holds only values that TOML has")
    }

    /// What is trained when.
    pub fn timeline(&self) -> Timeline {
        Timeline::new(self.epochs, &self.selection)
    }

    /// The full attack of each trained epoch.
    pub fn full_attack(&self) -> ScheduledPgd {
        ScheduledPgd::from_config(&self.attack, |epoch| self.timeline().first_at(epoch))
    }

    /// The objective at the start of a run.
    pub fn new_objective(&self) -> Box<dyn Objective> {
        let parts = Parts {
            config: &self.objective,
            attack: self.full_attack(),
            accelerate: &self.accelerate,
            batch: self.batch,
        };
        (self.objective.method.row().new)(parts)
    }

    /// The method that selects samples.
    pub fn new_selection(&self) -> Box<dyn Selection> {
        let setting = Setting {
            batch: self.batch,
            first_selection: self.timeline().first_selection().unwrap_or(0) as u32,
            augment: self.augmentation(self.seed, 0),
            learning_rate: self.optimizer.learning_rate,
        };
        prune::build(&self.selection, &setting)
    }

    /// The augmentation of an epoch, where there is any.
    pub fn augmentation(&self, seed: u64, epoch: u32) -> Option<Augment> {
        self.data.augment.then_some(Augment { seed, epoch, padding: self.data.padding })
    }
}
