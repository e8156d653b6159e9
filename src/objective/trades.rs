//! TRADES (Zhang et al., ICML 2019): L = CE(z, t) + beta KL(p || q), its attack ascending KL; the target t is the label,
//! smoothed if wanted.
//!
//! dL/dz = (p - t) + beta p (log p - log q - KL), dL/dz' = beta (q - p). The target p of the attack is computed once
//! a step, under the attack's BatchNorm; the train passes give x and x' batch statistics of their own.

use super::paired::Paired;
use crate::attack::DivergenceAscent;
use crate::ops::PairedForm;
use crate::recipe::Recipe;

/// TRADES with the attack, its acceleration, the smoothing and the beta of a recipe; 6 in the paper.
pub fn of_recipe(recipe: &Recipe) -> Paired<DivergenceAscent> {
    let smoothing = recipe.objective.label_smoothing as f32;
    Paired::of_recipe(recipe, PairedForm::Trades { smoothing }, DivergenceAscent)
}
