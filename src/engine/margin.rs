//! Losses on differences of logits, which attacks of an evaluation ascend: they keep their slope where the softmax saturates.
//!
//! A part of [`Engine`](super::Engine). Called by the attacks; checked by `tests/kernel_margin.rs` (kernels) and
//! `tests/apgd.rs` (both engines against PyTorch's autograd).

use super::{Error, LossOutputs, Result, Tensor};

/// The forms of a margin loss, of logits z and label y.
#[derive(Clone, Copy, Debug)]
pub enum Margin<'a> {
    /// `max over c != y of z_c - z_y` (Carlini and Wagner, 2017); the lowest index among equal wrong classes. Needs two
    /// classes.
    BestWrong,
    /// The targeted difference-of-logits ratio (Croce and Hein, 2020) for a class t of each sample:
    /// `-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)`, z_(k) the k-th largest logit. Among equal logits the highest
    /// index ranks first, as where the published code sorts in ascending order. Needs four classes.
    TargetedDlr { targets: &'a Tensor<u32> },
}

impl Margin<'_> {
    /// Refuses a network with fewer classes than the form needs.
    pub(super) fn check(&self, classes: usize) -> Result<()> {
        let (name, wanted) = match self {
            Self::BestWrong => ("a margin loss", 2),
            Self::TargetedDlr { .. } => ("the targeted DLR loss", 4),
        };
        if classes >= wanted {
            return Ok(());
        }
        Err(Error::Invalid(format!("{name} needs {wanted} classes at least, the network has {classes}")))
    }
}

/// Refuses a rank that no wrong class of a network has.
pub(super) fn check_rank(rank: usize, classes: usize) -> Result<()> {
    if (1..classes).contains(&rank) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "wrong class of rank {rank}, expected 1 to {}: the network has {classes} classes",
        classes.saturating_sub(1)
    )))
}

/// Margin losses and the targets they need.
pub trait MarginLosses {
    /// Per-sample loss, prediction and logit gradient (of that loss, not of a mean) in one pass.
    ///
    /// # Errors
    /// Where the network has fewer classes than the form needs.
    fn margin_loss(
        &mut self,
        margin: Margin,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        outputs: LossOutputs,
    ) -> Result<()>;

    /// The wrong class of each sample whose logit is the `rank`-th largest of the wrong ones, counted from 1; among equal
    /// logits the highest index ranks first, as in [`Margin::TargetedDlr`].
    ///
    /// # Errors
    /// For a rank that is not one of the wrong classes.
    fn wrong_class(
        &mut self,
        rank: usize,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        classes: &Tensor<u32>,
    ) -> Result<()>;
}
