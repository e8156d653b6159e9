//! N-FGSM, "Make some noise" (de Jorge et al., NeurIPS 2022): strong noise, then one step that is not projected,
//! x' = clip01(clip01(x + U(-2 eps, 2 eps)) + eps sign g); L = CE(z', y).
//!
//! The training images lie outside the eps-ball by design, up to 3 eps from x.

use super::single::Single;
use crate::attack::Pgd;
use crate::engine::SignStep;
use crate::recipe::Recipe;

/// One step onto [0, 1] only; noise and step size are the recipe's.
pub fn of_recipe(recipe: &Recipe) -> Single {
    Single::of_recipe(recipe, |pgd| Pgd { step: SignStep { epsilon: f32::INFINITY, ..pgd.step }, ..pgd })
}
