//! Which runs a speed-up table needs: the recipes, and the controls without which their figures would say nothing.
//!
//! | row | what it is, next to the recipe it controls |
//! |---|---|
//! | `full` | without selection and acceleration: what every speed-up is counted against |
//! | `short` | all samples, for the share of the epochs that the subsets are of the samples, under the same learning-rate shape |
//! | `random` | a random subset as large, drawn once |
//! | `random-online` | the same, for every epoch the next stretch of one permutation |
//!
//! The last three keep the acceleration, so that they differ by the choice of the samples alone. A control that several
//! recipes share is one row; a recipe that is the control of another is that row. Recipes whose own selection is random
//! or `short` have `full` alone, and so have those that prune nothing and only attack less; InfoBatch too, which
//! decides itself how much it keeps.

use super::cost::Cost;
use crate::accelerate::Acceleration;
use crate::names::named;
use crate::prune::{Coverage, SelectionConfig};
use crate::recipe::{Recipe, RecipeError};
use crate::train::config::Schedule;

named! {
    /// Why a row is in the table.
    pub enum Role {
        /// It was asked for.
        Recipe = "recipe",
        Full = "full",
        Short = "short",
        Random = "random",
        RandomOnline = "random-online",
    }
}

/// One row: a recipe that is trained under every seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub role: Role,
    /// Its name is the row's; its seed is of no matter.
    pub recipe: Recipe,
    /// Names of the recipes that it is a control of.
    pub controls: Vec<String>,
    /// Place of the row that its speed-up is counted against: its own, for the full method.
    pub full: usize,
}

/// The rows, controls before the recipe that needs them first.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub entries: Vec<Entry>,
    pub seeds: Vec<u64>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error("--recipes {name}: named twice, expected each recipe once")]
    Twice { name: String },
    #[error("--seeds {seed}: named twice, expected each seed once")]
    Seed { seed: u64 },
    #[error("two rows are named {name}, expected a name for each; give the recipe's file another name")]
    Name { name: String },
}

impl Plan {
    /// The rows for `recipes`, each trained under every one of `seeds`.
    ///
    /// The runs themselves test nothing (`evaluation.protocols` is empty): what is measured on the test images is no part of
    /// a training, and may change without one.
    pub fn new(recipes: &[Recipe], seeds: &[u64]) -> Result<Self, PlanError> {
        if let Some((_, seed)) = seeds.iter().enumerate().find(|(at, seed)| seeds[..*at].contains(seed)) {
            return Err(PlanError::Seed { seed: *seed });
        }
        let recipes: Vec<Recipe> = recipes.iter().map(untested).collect();
        let mut plan = Self { entries: Vec::new(), seeds: seeds.into() };
        for (at, recipe) in recipes.iter().enumerate() {
            if recipes[..at].iter().any(|other| same(other, recipe)) {
                return Err(PlanError::Twice { name: recipe.name.clone() });
            }
            let mut full = None;
            for &role in controls(recipe) {
                let control = control(recipe, role)?;
                // A recipe that was asked for stands for the control that it is.
                let asked = recipes.iter().find(|other| same(other, &control));
                let (role, control) = asked.map_or((role, &control), |asked| (Role::Recipe, asked));
                let place = plan.place(role, control);
                plan.entries[place].controls.push(recipe.name.clone());
                full = full.or(Some(place));
            }
            let place = plan.place(Role::Recipe, recipe);
            plan.entries[place].full = full.unwrap_or(place);
        }
        for at in 0..plan.entries.len() {
            // A control's baseline is that of the recipe it was made for.
            if plan.entries[at].role != Role::Recipe {
                let of = &plan.entries[at].controls[0];
                let recipe = plan.entries.iter().find(|entry| entry.recipe.name == *of);
                plan.entries[at].full = recipe.map_or(at, |entry| entry.full);
            }
            let name = &plan.entries[at].recipe.name;
            if plan.entries[..at].iter().any(|entry| entry.recipe.name == *name) {
                return Err(PlanError::Name { name: name.clone() });
            }
        }
        Ok(plan)
    }

    /// The place of the row of this recipe, new where there is none yet.
    fn place(&mut self, role: Role, recipe: &Recipe) -> usize {
        let known = self.entries.iter().position(|entry| same(&entry.recipe, recipe));
        known.unwrap_or_else(|| {
            let full = self.entries.len();
            self.entries.push(Entry { role, recipe: recipe.clone(), controls: Vec::new(), full });
            full
        })
    }
}

impl Entry {
    /// The row's recipe under a seed.
    pub fn seeded(&self, seed: u64) -> Recipe {
        Recipe { seed, ..self.recipe.clone() }
    }

    /// The folder of the run under a seed, inside that of the table.
    pub fn folder(&self, seed: u64) -> String {
        format!("{}-seed-{seed}", self.recipe.name.replace(['/', '\\'], "-"))
    }

    /// By the cost model.
    pub fn predicted(&self) -> Cost {
        Cost::predicted(&self.recipe)
    }
}

/// Whether two recipes differ by their names alone.
fn same(a: &Recipe, b: &Recipe) -> bool {
    *a == Recipe { name: a.name.clone(), ..b.clone() }
}

fn untested(recipe: &Recipe) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.evaluation.protocols.clear();
    // The number of test images is of no matter either, and must not tell two recipes apart.
    recipe.evaluation.samples = None;
    recipe.seed = 0;
    recipe
}

/// The controls that a recipe needs; `full`, where it is one, first.
fn controls(recipe: &Recipe) -> &'static [Role] {
    let method = recipe.selection.method;
    if method.is_informed() {
        return &[Role::Full, Role::Short, Role::Random, Role::RandomOnline];
    }
    let is_full =
        matches!(method.row().coverage, Coverage::All) && recipe.accelerate.method == Acceleration::None;
    if is_full { &[] } else { &[Role::Full] }
}

/// A control of a recipe. Constants of selections that it does not make are the defaults, so that it is the same one for
/// recipes that differ by them.
fn control(recipe: &Recipe, role: Role) -> Result<Recipe, RecipeError> {
    let mut table: toml::Table = recipe.to_toml().parse().expect("a recipe's own TOML");
    table.remove("selection");
    let SelectionConfig { fraction, warm_start, full_share, .. } = recipe.selection;
    let mut overrides = vec![format!("name={}.{role}", recipe.name)];
    match role {
        Role::Recipe => return Ok(recipe.clone()),
        Role::Full => {
            table.remove("accelerate");
        }
        _ => {
            overrides.push(format!("selection.method={role}"));
            overrides.push(format!("selection.fraction={fraction:?}"));
            if role != Role::Short {
                overrides.push(format!("selection.warm_start={warm_start:?}"));
                overrides.push(format!("selection.full_share={full_share:?}"));
            }
        }
    }
    Recipe::parse(&recipe.name, &toml::to_string(&table).expect("a table of TOML"), &overrides)
}

/// The same recipe for another number of epochs: the epochs at which the learning rate drops and the attack changes move along.
pub fn with_epochs(mut recipe: Recipe, epochs: usize) -> Result<Recipe, RecipeError> {
    let share = epochs as f64 / recipe.epochs as f64;
    recipe.epochs = epochs;
    if let Schedule::Step { drops, .. } = &mut recipe.schedule {
        drops.iter_mut().for_each(|drop| *drop *= share);
    }
    for phase in &mut recipe.attack.phases {
        phase.from_epoch = (phase.from_epoch as f64 * share).round() as usize;
    }
    Recipe::parse(&recipe.name, &recipe.to_toml(), &[])
}
