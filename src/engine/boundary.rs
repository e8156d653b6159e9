//! Operations of a search along the decision boundary between an image's label and a target class.
//!
//! Formulas: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack" (2020), in the
//! maximum norm. Called by `attack/fab.rs`. Checked by `tests/kernel_boundary.rs` (the kernels) and `tests/fab.rs` (both
//! engines).

use super::{Result, Tensor};

/// How a [`BoundarySteps::boundary_step`] moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoundaryStep {
    /// The most that the way from the clean image weighs against the way from x': `alpha_max`.
    pub largest_share: f32,
    /// Factor on both ways, to land behind the boundary: `eta`.
    pub overshoot: f32,
}

/// The images of a search.
#[derive(Clone, Copy, Debug)]
pub struct BoundaryState<'a> {
    pub labels: &'a Tensor<u32>,
    /// The class whose boundary with the label is sought.
    pub targets: &'a Tensor<u32>,
    /// The clean images x, `batch x 32 x 32 x 3`.
    pub images: &'a Tensor<f32>,
    /// Where the search stands: x', likewise.
    pub current: &'a Tensor<f32>,
    /// The closest image that is predicted wrongly, likewise.
    pub closest: &'a Tensor<f32>,
    /// Its distance from x in the maximum norm, infinity before the first.
    pub distances: &'a Tensor<f32>,
}

/// What a search along decision boundaries needs of a device, besides passes through the network.
pub trait BoundarySteps {
    /// `targets[i]`: the class with the `rank`-th largest logit (1 for the largest) among the classes that are not the
    /// label, the lowest index first among equals.
    ///
    /// # Errors
    /// A rank that is not 1 to classes - 1.
    fn ranked_targets(
        &mut self,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        rank: usize,
        targets: &Tensor<u32>,
    ) -> Result<()>;

    /// `e_target - e_label`: the logit gradient of `z_target - z_label`.
    fn class_difference(
        &mut self,
        labels: &Tensor<u32>,
        targets: &Tensor<u32>,
        logit_gradient: &Tensor<f32>,
    ) -> Result<()>;

    /// One step of x' towards the boundary, where `gradient` is that of `z_target - z_label` at x' and `logits` are those
    /// of x'.
    ///
    /// With w the gradient, the linearised boundary is `w . (t - x') + z_target - z_label = 0`. Let d be the way of least
    /// maximum norm from x' to it inside of [0, 1], and e that from x; where the box does not reach the boundary, the way
    /// to the corner of the box that is nearest to it; elements without gradient do not move. With
    /// `a = min(|d| / (|d| + |e|), largest_share)`, both norms 1e-8 at least:
    /// `x' <- clip01((1 - a) (x' + overshoot d) + a (x + overshoot e))`.
    fn boundary_step(
        &mut self,
        step: &BoundaryStep,
        logits: &Tensor<f32>,
        gradient: &Tensor<f32>,
        state: &BoundaryState,
    ) -> Result<()>;

    /// Where the prediction by `logits`, those of x', is wrong: keeps x' if it is closer to x than the closest so far,
    /// and goes back, `x' <- x + backward (x' - x)`.
    fn boundary_keep(&mut self, backward: f32, logits: &Tensor<f32>, state: &BoundaryState) -> Result<()>;
}
