//! The two train passes of an objective that compares clean and adversarial images, as one operation: a device can do both at
//! once, since all that tells them apart is their BatchNorm.
//!
//! A part of [`Engine`](super::Engine). Called by `objective::passes`; checked by `tests/paired_passes.rs` against two passes in
//! the train slots, one after the other.

use super::{Result, Tensor};

/// Two train passes of as many images.
pub trait PairedPasses {
    /// Logits of both sets of images, each normalised with batch statistics of its own. The running statistics move by the first
    /// set, then by the second. What the backward pass needs is kept until the next pair, beside what the train slots keep.
    fn forward_pair(&mut self, images: [&Tensor<f32>; 2], logits: [&Tensor<f32>; 2]) -> Result<()>;

    /// The features of one set of the last [`PairedPasses::forward_pair`], 0 or 1: `batch x features`, what its last layer saw.
    ///
    /// # Errors
    /// Where there was none on the present weights.
    fn pair_features(&mut self, set: usize, features: &Tensor<f32>) -> Result<()>;

    /// Parameter gradients of both passes, added up; what was there before is replaced.
    ///
    /// # Errors
    /// Where there was no [`PairedPasses::forward_pair`] of as many images on the present weights.
    fn pair_gradient(&mut self, logit_gradients: [&Tensor<f32>; 2]) -> Result<()>;
}
