//! FGSM-RS, "Fast is better than free" (Wong et al., ICLR 2020): one step of 1.25 eps from a uniform start, projected
//! onto the ball; L = CE(z', y). Watch for catastrophic overfitting.

use super::single::Single;
use crate::recipe::Recipe;

/// The one step and its size are the recipe's.
pub fn of_recipe(recipe: &Recipe) -> Single {
    Single::of_recipe(recipe, |pgd| pgd)
}
