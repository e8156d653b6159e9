//! MART (Wang et al., ICLR 2020): boosted cross-entropy of x' and a divergence weighted by the doubt about x,
//! L = -log q_y - log(1.0001 - q_k + 1e-12) + lambda (1.0000001 - p_y) KL(p || q + 1e-12), k the best wrong class of q.
//!
//! Its attack ascends the cross-entropy from the start of TRADES. The gradients stand at
//! [`PairedForm::Mart`].

use super::paired::Paired;
use crate::attack::CrossEntropyAscent;
use crate::ops::PairedForm;
use crate::recipe::Recipe;

/// Misclassification-aware adversarial training with the attack, its acceleration and the lambda of a recipe
/// (`objective.beta`); 5 in the official code for ResNet-18.
pub fn of_recipe(recipe: &Recipe) -> Paired<CrossEntropyAscent> {
    Paired::of_recipe(recipe, PairedForm::Mart, CrossEntropyAscent)
}
