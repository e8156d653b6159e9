//! What decides a training run: the configurations of all modules together, and what is made of them.

use serde::Serialize;

use super::EpochSchedule;
use super::config::{
    CheckpointConfig, EvaluationConfig, MetricsConfig, OptimizerConfig, OverfittingConfig, Schedule,
};
use crate::accelerate::AccelerateConfig;
use crate::attack::{AttackConfig, ScheduledPgd};
use crate::data::order::{self, Split};
use crate::data::{DataConfig, DataError, DataSet};
use crate::model::ModelConfig;
use crate::objective::{self, Objective, ObjectiveConfig, ObjectiveParts};
use crate::ops::Augment;
use crate::prune::{self, Selection, SelectionConfig, Setting};

/// A training run. Every field is resolved: nothing consults a default again.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    pub name: String,
    /// Keys all randomness of the run but the generated images.
    pub seed: u64,
    /// Epochs of the schedule; where samples are pruned, those that are trained may be fewer (see [`EpochSchedule`]).
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
    pub fn epoch_schedule(&self) -> EpochSchedule {
        EpochSchedule::new(self.epochs, &self.selection)
    }

    /// The full attack of each trained epoch.
    pub fn full_attack(&self) -> ScheduledPgd {
        ScheduledPgd::from_config(&self.attack, |epoch| self.epoch_schedule().first_at(epoch))
    }

    /// The objective at the start of a run.
    pub fn new_objective(&self) -> Box<dyn Objective> {
        objective::build(ObjectiveParts {
            config: &self.objective,
            attack: self.full_attack(),
            accelerate: &self.accelerate,
            batch: self.batch,
        })
    }

    /// The method that selects samples.
    pub fn new_selection(&self) -> Box<dyn Selection> {
        let setting = Setting {
            batch: self.batch,
            first_selection: self.epoch_schedule().first_selection().unwrap_or(0) as u32,
            augment: self.augmentation(self.seed, 0),
            learning_rate: self.optimizer.learning_rate,
        };
        prune::build(&self.selection, &setting)
    }

    /// Which of the recipe's images train, which validate, and which selections choose by.
    ///
    /// # Errors
    /// [`DataError::Validation`] where too few are left to train.
    pub fn split(&self, data: &DataSet) -> Result<Split, DataError> {
        self.split_holding_out(data, self.selection.held_out_share())
    }

    /// [`Recipe::split`], with another share of the images for selections to choose by.
    ///
    /// # Errors
    /// [`DataError::Validation`] where too few are left to train.
    pub fn split_holding_out(&self, data: &DataSet, share: f64) -> Result<Split, DataError> {
        let DataConfig { validation, validation_split, .. } = self.data;
        let split = order::split(&data.train, data.classes, validation, validation_split, self.seed)?;
        let split = split.reserve(&data.train.labels, data.classes, share, self.seed);
        let first = data.train.len() as u32;
        Ok(Split { extra: first..first + data.extra_count() as u32, ..split })
    }

    /// The lines in which this resolved recipe differs from `other`: "batch = 64, there batch = 128".
    pub fn differing_keys(&self, other: &Self) -> String {
        let (own, there) = (self.to_toml(), other.to_toml());
        let pairs = own.lines().zip(there.lines()).filter(|(own, there)| own != there);
        pairs.map(|(own, there)| format!("{own}, there {there}")).collect::<Vec<_>>().join("; ")
    }

    /// The augmentation of an epoch, where there is any.
    pub fn augmentation(&self, seed: u64, epoch: u32) -> Option<Augment> {
        self.data.augment.then_some(Augment { seed, epoch, padding: self.data.padding })
    }
}
