//! A recipe: everything that decides a training run, read from TOML into a typed, fully resolved form.
//!
//! A recipe may leave out what has a default; [`Recipe::to_toml`] writes every key back, so that the `recipe.toml`
//! of a run folder holds the whole truth and parses to the same recipe. Unknown keys are refused with the nearest
//! known one; values out of range name the key, the actual value and the expected ones.
//!
//! A section with names or rules of its own has a file, type and reading together; those of a few plain keys stand here.

mod accelerate;
mod attack;
mod builtin;
mod data;
mod objective;
mod overrides;
mod reader;
mod schedule;
mod selection;
mod source;
mod spelling;
mod timeline;
mod value;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use accelerate::{Accelerate, Acceleration};
pub use attack::{Attack, BatchNorm, Phase, Start};
pub use builtin::{BUILTIN, Builtin};
pub use data::Data;
pub use objective::{Method, Objective};
pub use schedule::{Position, Schedule, Update};
pub use selection::{
    AtomMode, GradientPart, Greedy, RidgeUnit, Sampling, Scores, Selection, SelectionMethod,
    SelectionWeights, StepAlong,
};
pub use timeline::{Pace, Stage, Timeline};
pub use value::Fraction;

use crate::data::order::{self, Split};
use crate::data::{DataError, DataSet, Sizes};
use crate::model::layers::WIDTHS;
use reader::{Section, above};
use source::{Chain, Source};

/// A training run. Every field is resolved: nothing below consults a default again.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    pub name: String,
    /// Keys all randomness of the run but the generated images.
    pub seed: u64,
    /// Epochs of the schedule; where samples are pruned, those that are trained may be fewer (see [`Timeline`]).
    pub epochs: usize,
    /// Images a step; the last, smaller batch of an epoch is trained on too.
    pub batch: usize,
    pub data: Data,
    pub model: Model,
    pub objective: Objective,
    pub attack: Attack,
    pub accelerate: Accelerate,
    pub selection: Selection,
    pub overfitting: Overfitting,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub evaluation: Evaluation,
    pub checkpoint: Checkpoint,
    pub metrics: Metrics,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// Channels of the first stage: 64, or 16 for tests and CPU demonstrations.
    pub width: usize,
}

/// `[overfitting]`: catastrophic overfitting, seen by the PGD-5 accuracy of one batch of training images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overfitting {
    /// Whether it is measured behind each epoch; by default for single-step methods.
    pub check: bool,
    /// A larger fall from one epoch to the next is reported.
    pub max_fall: f64,
    /// Whether it also ends the run.
    pub stop: bool,
}

/// `[optimizer]`: SGD.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Optimizer {
    /// The peak of the schedule.
    pub learning_rate: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    /// Decay of the exponential moving average of the weights, if one is kept (and then evaluated).
    #[serde(serialize_with = "value::none")]
    pub average_decay: Option<f64>,
    /// Whether its decay begins lower, at min(average_decay, (1 + t) / (10 + t)) in optimizer step t: without, a short
    /// run's average is mostly the untrained network. Unused without an average.
    pub average_warmup: bool,
}

/// `[evaluation]` during training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Every so many epochs of the schedule, and after the last; 0 for the last only.
    pub every: usize,
    /// The first so many test images.
    #[serde(serialize_with = "value::all")]
    pub samples: Option<usize>,
    /// Names of `evaluate`'s protocols, such as "clean", "pgd20", "pgd50x10".
    pub protocols: Vec<String>,
    /// The protocol whose accuracy on the validation images chooses the best epoch.
    pub best_by: String,
}

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checkpoint {
    /// Every so many epochs of the schedule, and after the last; 0 for the last only.
    pub every: usize,
    /// How many of the newest stay on disk; the best one stays besides.
    pub keep: usize,
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// Whether a TensorBoard event file is kept beside metrics.jsonl.
    pub tensorboard: bool,
}

/// Why a recipe is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RecipeError {
    #[error("no recipe '{name}': neither a file nor one of the built-in recipes ({known}){hint}")]
    NotFound { name: String, known: String, hint: String },
    #[error("{path}: {reason}")]
    Io { path: PathBuf, reason: String },
    #[error("recipe {recipe}: not TOML: {reason}")]
    Syntax { recipe: String, reason: String },
    #[error("--set {text}: {reason}")]
    Override { text: String, reason: String },
    #[error("recipe {recipe}: unknown key {key}{hint}")]
    UnknownKey { recipe: String, key: String, hint: String },
    #[error("recipe {recipe}: {key} = {met}, expected {wanted}")]
    Value { recipe: String, key: String, met: String, wanted: String },
    #[error("recipe {recipe}: {key} is missing, expected {wanted}")]
    MissingKey { recipe: String, key: String, wanted: String },
}

impl Recipe {
    /// The built-in recipe of this name, or else the file at this path, on top of what it extends and with `key=value`
    /// overrides applied.
    pub fn load(name_or_path: impl AsRef<OsStr>, overrides: &[String]) -> Result<Self, RecipeError> {
        Self::resolve(Source::named(name_or_path.as_ref())?, overrides)
    }

    /// The file that `name_or_path` stands for; none where it is the name of a built-in recipe.
    pub fn file(name_or_path: &OsStr) -> Option<&Path> {
        builtin::find(name_or_path).is_none().then_some(Path::new(name_or_path))
    }

    /// Parses TOML text, which may extend a built-in recipe; `name` stands in messages, and in the recipe where the text has
    /// none.
    pub fn parse(name: &str, text: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        Self::resolve(Source::text(name, text), overrides)
    }

    fn resolve(source: Source, overrides: &[String]) -> Result<Self, RecipeError> {
        let chain = Chain::read(source)?;
        let mut table = chain.merged();
        let mut overridden = Vec::with_capacity(overrides.len());
        for text in overrides {
            overridden.push(overrides::apply(&mut table, text)?);
        }
        Self::from_table(chain.name(), table).map_err(|error| chain.attribute(error, &overridden))
    }

    fn from_table(name: &str, table: toml::Table) -> Result<Self, RecipeError> {
        let mut root = Section::root(name, table);
        let objective = Objective::read(root.section("objective")?)?;
        let method = objective.method;
        let name = root.file_name("name", name)?;
        let seed = root.integer("seed", 0..=i64::MAX as usize, Some(0))? as u64;
        let epochs = root.integer("epochs", 1..=100_000, None)?;
        let batch = root.integer("batch", 1..=65_536, None)?;
        let data = Data::read(root.section("data")?)?;
        let model = Model::read(root.section("model")?)?;
        let attack = Attack::read(root.section("attack")?, method)?;
        let accelerate = Accelerate::read(root.section("accelerate")?)?;
        let optimizer = Optimizer::read(root.section("optimizer")?)?;
        let recipe = Self {
            name,
            seed,
            epochs,
            batch,
            data,
            model,
            objective,
            attack,
            accelerate,
            selection: Selection::read(root.section("selection")?)?,
            overfitting: Overfitting::read(root.section("overfitting")?, method)?,
            optimizer,
            schedule: Schedule::read(root.section("schedule")?)?,
            evaluation: Evaluation::read(root.section("evaluation")?)?,
            checkpoint: Checkpoint::read(root.section("checkpoint")?)?,
            metrics: Metrics::read(root.section("metrics")?)?,
        };
        recipe.check_together(&root)?;
        root.finish()?;
        Ok(recipe)
    }

    /// The whole recipe, every key resolved.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe holds only values that TOML has")
    }

    /// What is trained when.
    pub fn timeline(&self) -> Timeline {
        Timeline::of_recipe(self)
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
        let Data { validation, validation_split, .. } = self.data;
        let split = order::split(&data.train, data.classes, validation, validation_split, self.seed)?;
        Ok(split.reserve(&data.train.labels, data.classes, share, self.seed))
    }

    /// The lines in which this resolved recipe differs from `other`: "batch = 64, there batch = 128".
    pub fn differing_keys(&self, other: &Self) -> String {
        let (own, there) = (self.to_toml(), other.to_toml());
        let pairs = own.lines().zip(there.lines()).filter(|(own, there)| own != there);
        pairs.map(|(own, there)| format!("{own}, there {there}")).collect::<Vec<_>>().join("; ")
    }

    /// Checks that need more than one key.
    fn check_together(&self, root: &Section) -> Result<(), RecipeError> {
        let Sizes { train: all_train, test: all_test } = self.data.set.sizes();
        let limits = [
            ("data.train_limit", self.data.train_limit, all_train),
            ("data.test_limit", self.data.test_limit, all_test),
        ];
        for (key, limit, all) in limits {
            if let Some(limit) = limit.filter(|&limit| limit > all) {
                let wanted = format!("at most the {all} images of {}", self.data.set);
                return Err(root.value_error(key, limit, wanted));
            }
        }
        let train = self.data.train_limit.unwrap_or(all_train);
        if self.data.validation >= train {
            let wanted = format!("fewer than the {train} training images it is taken from");
            return Err(root.value_error("data.validation", self.data.validation, wanted));
        }
        if self.batch > train - self.data.validation {
            let wanted = format!("at most the {} training images", train - self.data.validation);
            return Err(root.value_error("batch", self.batch, wanted));
        }
        self.accelerate.check(self, root)?;
        if self.overfitting.stop && !self.overfitting.check {
            return Err(root.value_error("overfitting.check", false, "true where overfitting.stop is"));
        }
        self.selection.check(self, train - self.data.validation, root)
    }
}

impl Model {
    fn read(mut section: Section) -> Result<Self, RecipeError> {
        let width = section.integer("width", 1..=1024, Some(64))?;
        if !WIDTHS.contains(&width) {
            let wanted = WIDTHS.map(|width| width.to_string()).join(" or ");
            return Err(section.value_error("width", width, wanted));
        }
        section.finish()?;
        Ok(Self { width })
    }
}

impl Overfitting {
    fn read(mut section: Section, method: Method) -> Result<Self, RecipeError> {
        let single_step = method.fixed_steps() == Some(1);
        let overfitting = Self {
            check: section.boolean("check", single_step)?,
            max_fall: section.number("max_fall", 0.0..=1.0, Some(0.2))?,
            stop: section.boolean("stop", false)?,
        };
        section.finish()?;
        Ok(overfitting)
    }
}

impl Optimizer {
    fn read(mut section: Section) -> Result<Self, RecipeError> {
        let optimizer = Self {
            learning_rate: section.number("learning_rate", above(0.0, 100.0), None)?,
            momentum: section.number("momentum", 0.0..1.0, Some(0.9))?,
            weight_decay: section.number("weight_decay", 0.0..=1.0, Some(5e-4))?,
            average_decay: section.number_or("average_decay", "none", 0.0..1.0, None)?,
            average_warmup: section.boolean("average_warmup", true)?,
        };
        section.finish()?;
        Ok(optimizer)
    }
}

impl Evaluation {
    fn read(mut section: Section) -> Result<Self, RecipeError> {
        let evaluation = Self {
            every: section.integer("every", 0..=100_000, Some(1))?,
            samples: section.integer_or("samples", "all", 1..=1_000_000, None)?,
            protocols: section.texts("protocols", &["clean", "pgd20"])?,
            best_by: section.text("best_by", Some("pgd10"))?,
        };
        section.finish()?;
        Ok(evaluation)
    }
}

impl Checkpoint {
    fn read(mut section: Section) -> Result<Self, RecipeError> {
        let checkpoint = Self {
            every: section.integer("every", 0..=100_000, Some(1))?,
            keep: section.integer("keep", 1..=100_000, Some(2))?,
        };
        section.finish()?;
        Ok(checkpoint)
    }
}

impl Metrics {
    fn read(mut section: Section) -> Result<Self, RecipeError> {
        let metrics = Self { tensorboard: section.boolean("tensorboard", false)? };
        section.finish()?;
        Ok(metrics)
    }
}
