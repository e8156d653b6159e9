//! Fewer attack steps for the same training: adversaries that any objective attacking with PGD can use.
//!
//! A new acceleration is one more file here, one line in [`adversary_of_recipe`] and one name in
//! `recipe::Acceleration`. Called by the objectives. Checked by `tests/methods.rs`.

mod bullet_train;

pub use bullet_train::{BulletTrain, Groups, quantile};

use crate::attack::{Adversary, ScheduledPgd};
use crate::recipe::{Acceleration, Recipe};

/// The table of accelerations: the attack of a recipe, with what makes it cheaper.
pub fn adversary_of_recipe(recipe: &Recipe) -> Box<dyn Adversary> {
    let pgd = ScheduledPgd::of_recipe(&recipe.attack);
    match recipe.accelerate.method {
        Acceleration::None => Box::new(pgd),
        Acceleration::BulletTrain => Box::new(BulletTrain::new(pgd, &recipe.accelerate)),
    }
}
