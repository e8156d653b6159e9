//! The steps of APGD (Croce and Hein, 2020): a momentum step whose size each image halves for itself.
//!
//! Everything that the attack remembers of an image lies on the device ([`AdaptiveState`]), and one call an iteration keeps
//! the books of all images and moves them: no image is looked at by the host. A part of [`Engine`]. Called by
//! `attack::Apgd`; checked by `tests/kernel_apgd.rs` (kernels) and `tests/apgd.rs` (both engines against an f64
//! re-implementation of the published algorithm, step by step).

use std::ops::Range;

use super::{Engine, Result, Tensor};
use crate::model::layers::IMAGE_LEN;
use crate::philox::Key;

/// One call of [`AdaptiveSteps::adaptive_step`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaptiveStep {
    /// Radius of the ball.
    pub epsilon: f32,
    pub phase: AdaptivePhase,
}

/// Where in the attack a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdaptivePhase {
    /// The network has seen the start: begins the books and takes the first step, of size 2 epsilon, without momentum.
    First,
    /// The network has seen the point of an iteration: keeps the books and takes a step with momentum.
    Within,
    /// The same at a checkpoint, the end of a window of so many iterations: before the step, images that make no headway
    /// halve their step size and return to their best point.
    Checkpoint { window: u32 },
    /// The network has seen the last point: closes the books and moves `perturbed` to a wrongly predicted point where one
    /// was met.
    Last,
}

/// What APGD remembers of a batch; [`AdaptivePhase::First`] sets all but the gradient.
#[derive(Clone, Debug)]
pub struct AdaptiveState {
    pub step_size: Tensor<f32>,
    pub best_loss: Tensor<f32>,
    /// The best loss at the last checkpoint.
    pub checked_loss: Tensor<f32>,
    /// The loss one iteration ago, 0 before the first one: the published code compares the first loss with a row of its
    /// zero-filled table.
    pub last_loss: Tensor<f32>,
    /// Iterations of the window whose loss exceeds that of the iteration before.
    pub increases: Tensor<u32>,
    /// 1 where the last checkpoint halved the step size; 1 before the first checkpoint.
    pub halved: Tensor<u32>,
    /// 1 where some point was predicted wrong.
    pub broken: Tensor<u32>,
    /// `batch x 32 x 32 x 3`, as those below: the gradient of the loss at the present point; the caller's to fill.
    pub gradient: Tensor<f32>,
    /// The point before the last step.
    pub previous: Tensor<f32>,
    /// The point of the best loss, and the gradient there.
    pub best: Tensor<f32>,
    pub best_gradient: Tensor<f32>,
    /// The last wrongly predicted point; unspecified where none was met.
    pub adversarial: Tensor<f32>,
}

/// The present point of each image and what the network said of it.
#[derive(Clone, Copy, Debug)]
pub struct AdaptivePoint<'a> {
    /// The centres of the balls.
    pub images: &'a Tensor<f32>,
    pub labels: &'a Tensor<u32>,
    /// Loss and prediction at `perturbed`.
    pub losses: &'a Tensor<f32>,
    pub predictions: &'a Tensor<u32>,
    /// The point; moved.
    pub perturbed: &'a Tensor<f32>,
}

/// The operations of APGD on a batch.
pub trait AdaptiveSteps {
    /// `perturbed = clip01(images + epsilon * t / |t|_inf)`, t uniform on [-1, 1): element `e` of a sample uses word
    /// `e % 4` of block `e / 4`. At least one pixel of each image starts on the ball's surface.
    fn adaptive_start(
        &mut self,
        epsilon: f32,
        key: Key,
        samples: &Tensor<u32>,
        images: &Tensor<f32>,
        perturbed: &Tensor<f32>,
    ) -> Result<()>;

    /// Keeps the books and steps, in this order:
    ///
    /// 1. a wrong prediction marks the image broken and keeps the point;
    /// 2. a loss above the last one counts as an increase; a loss above the best one makes this point the best;
    /// 3. at a checkpoint of window k: if increases <= 0.75 k, or if the last checkpoint did not halve and the best loss has
    ///    not risen since, the step size is halved and point and gradient become those of the best point;
    /// 4. with u = proj(x' + size * sign(gradient)): `x' <- proj(x' + a (u - x') + (1 - a) (x' - previous))`, a = 1 at the first
    ///    step and 0.75 later; proj is onto the ball, then onto [0, 1]; sign(0) = 0.
    fn adaptive_step(
        &mut self,
        step: &AdaptiveStep,
        point: AdaptivePoint,
        state: &AdaptiveState,
    ) -> Result<()>;
}

impl AdaptiveState {
    /// Room for `len` images.
    pub fn alloc(engine: &dyn Engine, len: usize) -> Result<Self> {
        Ok(Self {
            step_size: engine.alloc("APGD step sizes", len)?,
            best_loss: engine.alloc("APGD best losses", len)?,
            checked_loss: engine.alloc("APGD losses at the last checkpoint", len)?,
            last_loss: engine.alloc("APGD last losses", len)?,
            increases: engine.alloc("APGD increases", len)?,
            halved: engine.alloc("APGD halvings", len)?,
            broken: engine.alloc("APGD broken images", len)?,
            gradient: engine.alloc("APGD gradient", len * IMAGE_LEN)?,
            previous: engine.alloc("APGD previous points", len * IMAGE_LEN)?,
            best: engine.alloc("APGD best points", len * IMAGE_LEN)?,
            best_gradient: engine.alloc("APGD gradient at the best points", len * IMAGE_LEN)?,
            adversarial: engine.alloc("APGD adversarial images", len * IMAGE_LEN)?,
        })
    }

    /// Images that there is room for.
    pub fn len(&self) -> usize {
        self.step_size.len()
    }

    pub fn is_empty(&self) -> bool {
        self.step_size.is_empty()
    }

    /// Images `range`: the same memory, narrowed.
    ///
    /// # Panics
    /// If the range does not lie inside the state.
    pub fn rows(&self, range: Range<usize>) -> Self {
        let image = |tensor: &Tensor<f32>| tensor.rows(range.clone(), IMAGE_LEN);
        Self {
            step_size: self.step_size.slice(range.clone()),
            best_loss: self.best_loss.slice(range.clone()),
            checked_loss: self.checked_loss.slice(range.clone()),
            last_loss: self.last_loss.slice(range.clone()),
            increases: self.increases.slice(range.clone()),
            halved: self.halved.slice(range.clone()),
            broken: self.broken.slice(range.clone()),
            gradient: image(&self.gradient),
            previous: image(&self.previous),
            best: image(&self.best),
            best_gradient: image(&self.best_gradient),
            adversarial: image(&self.adversarial),
        }
    }
}
