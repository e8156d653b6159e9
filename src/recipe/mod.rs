//! Recipes as TOML: the sections of the modules, composed into one document and checked across modules.
//!
//! A recipe may leave out what has a default; [`Recipe::to_toml`] writes every key back, so that the `recipe.toml`
//! of a run folder holds the whole truth and parses to the same recipe. Unknown keys are refused with the nearest
//! known one; values out of range name the key, the actual value and the expected ones.

mod builtin;
mod checks;
mod overrides;
mod source;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

pub use crate::train::Recipe;
pub use builtin::{BUILTIN, Builtin};

use crate::accelerate::AccelerateConfig;
use crate::attack::AttackConfig;
use crate::config::{ConfigError, Section};
use crate::data::DataConfig;
use crate::model::ModelConfig;
use crate::objective::ObjectiveConfig;
use crate::prune::SelectionConfig;
use crate::train::config::{
    CheckpointConfig, EvaluationConfig, MetricsConfig, OptimizerConfig, OverfittingConfig, Schedule,
};
use source::{Chain, Source};

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
    #[error(transparent)]
    Config(#[from] ConfigError),
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
        Self::from_table(chain.name(), table).map_err(|error| chain.attribute(error, &overridden).into())
    }

    fn from_table(name: &str, table: toml::Table) -> Result<Self, ConfigError> {
        let mut root = Section::root(name, table);
        let objective = ObjectiveConfig::read(root.section("objective")?)?;
        let method = objective.method.row();
        let recipe = Self {
            name: root.file_name("name", name)?,
            seed: root.integer("seed", 0..=i64::MAX as usize, Some(0))? as u64,
            epochs: root.integer("epochs", 1..=100_000, None)?,
            batch: root.integer("batch", 1..=65_536, None)?,
            data: DataConfig::read(root.section("data")?)?,
            model: ModelConfig::read(root.section("model")?)?,
            objective,
            attack: AttackConfig::read(root.section("attack")?, &method.defaults)?,
            accelerate: AccelerateConfig::read(root.section("accelerate")?)?,
            optimizer: OptimizerConfig::read(root.section("optimizer")?)?,
            selection: SelectionConfig::read(root.section("selection")?)?,
            overfitting: OverfittingConfig::read(root.section("overfitting")?, method.attack)?,
            schedule: Schedule::read(root.section("schedule")?)?,
            evaluation: EvaluationConfig::read(root.section("evaluation")?)?,
            checkpoint: CheckpointConfig::read(root.section("checkpoint")?)?,
            metrics: MetricsConfig::read(root.section("metrics")?)?,
        };
        root.finish(recipe, Self::validate)
    }
}
