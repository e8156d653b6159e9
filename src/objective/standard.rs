//! Standard training, no attack: the yardstick of cost, L = CE(z, y). Its adversarial images are the clean ones.
//!
//! With BulletTrain its groups are formed and reported, and all of them get the same nothing: the shares show how the other
//! methods' groups would look without adversarial training. That saves no work and costs the clean forward of each batch.

use super::single::Single;
use crate::attack::Pgd;
use crate::recipe::Recipe;

/// The attack has neither start nor steps: it copies.
pub fn of_recipe(recipe: &Recipe) -> Single {
    Single::of_recipe(recipe, |pgd| Pgd { start: None, steps: 0, ..pgd })
}
