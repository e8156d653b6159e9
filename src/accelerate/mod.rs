//! Fewer attack steps for the same training: what any objective can use in place of plain PGD.
//!
//! A new acceleration is one more file here, one line in [`adversary_of_recipe`] and one name in
//! `recipe::Acceleration`; [`replays_of_recipe`] is the table of those that can work on replays, the attack of Free-AT.
//! Called by the objectives. Checked by `tests/bullet_train.rs`.

mod bullet_train;
mod groups;
mod replays;

pub use bullet_train::BulletTrain;
pub use groups::{Grouping, Groups, quantile};
pub use replays::Replays;

use crate::attack::{Adversary, Pgd, ScheduledPgd};
use crate::recipe::{Acceleration, Recipe};

/// The table of accelerations: the attack of a recipe, each phase of it changed by `change` to what the method makes of it,
/// with what makes it cheaper.
pub fn adversary_of_recipe(recipe: &Recipe, change: impl Fn(Pgd) -> Pgd) -> Box<dyn Adversary> {
    let pgd = ScheduledPgd::of_recipe(recipe).map(change);
    match recipe.accelerate.method {
        Acceleration::None => Box::new(pgd),
        Acceleration::BulletTrain => Box::new(BulletTrain::new(pgd, &recipe.accelerate)),
    }
}

/// The same for an attack whose steps are the replays of a minibatch; `None` where all images move behind each.
pub fn replays_of_recipe(recipe: &Recipe) -> Option<Replays> {
    match recipe.accelerate.method {
        Acceleration::None => None,
        Acceleration::BulletTrain => Some(Replays::new(&recipe.accelerate)),
    }
}
