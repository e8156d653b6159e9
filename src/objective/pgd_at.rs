//! PGD-AT (Madry et al., 2018): the cross-entropy of the images that PGD found, L = CE(z', y).

use super::single::Single;
use crate::recipe::Recipe;

/// PGD-AT with the attack, its acceleration and the smoothing of a recipe.
pub fn of_recipe(recipe: &Recipe) -> Single {
    Single::of_recipe(recipe, |pgd| pgd)
}
