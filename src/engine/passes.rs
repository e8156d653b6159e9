//! Passes of the network: which, and what a backward pass computes.

use super::{Error, Result, Tensor};

/// Which weights and statistics a pass uses, and which activations it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Running statistics, folded into the weights by [`Engine::fold_batch_norm`](super::Engine::fold_batch_norm). An image's
    /// logits and gradient do not depend on its batch.
    Eval,
    /// As [`Pass::Eval`], whose activations it shares; a long sum may be cut where a batch is too small to fill the device, so that
    /// the rounding of an image's logits and gradient depends on the size of its batch. For the attacks of training.
    EvalSplit,
    /// As [`Pass::Eval`], forward alone; in f32 where a CPU computes in bf16 by choice. For the predictions that count.
    EvalF32,
    /// Batch statistics; updates the running statistics. Slot 0 or 1: two train passes may be kept at a time.
    Train { slot: usize },
    /// Two train passes of equal size as one, clean and adversarial images, each normalised with batch statistics of its own.
    /// The running statistics move by the first set, then by the second. Kept besides the train slots.
    Pair,
}

impl Pass {
    /// Train slots.
    pub const SLOTS: usize = 2;

    /// Sets of images that it takes.
    pub fn sets(self) -> usize {
        if self == Self::Pair { 2 } else { 1 }
    }
    /// Whether it uses folded running statistics.
    pub fn is_eval(self) -> bool {
        matches!(self, Self::Eval | Self::EvalSplit | Self::EvalF32)
    }
    /// Whether long sums may be cut into parts.
    pub fn splits_sums(self) -> bool {
        !matches!(self, Self::Eval | Self::EvalF32)
    }
    /// # Errors
    /// For a train slot that there is not.
    pub(super) fn check(self) -> Result<()> {
        match self {
            Self::Train { slot } if slot >= Self::SLOTS => {
                Err(Error::Invalid(format!("train slot {slot}: expected 0 or 1")))
            }
            _ => Ok(()),
        }
    }
    /// Index of the activations that it keeps; passes that share them share it.
    pub(super) fn index(self) -> usize {
        match self {
            Self::Eval | Self::EvalSplit | Self::EvalF32 => 0,
            Self::Train { slot } => 1 + slot,
            Self::Pair => 1 + Self::SLOTS,
        }
    }
}

impl std::fmt::Display for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Eval | Self::EvalSplit => f.write_str("evaluation pass"),
            Self::EvalF32 => f.write_str("evaluation pass in f32"),
            Self::Train { slot } => write!(f, "train pass {slot}"),
            Self::Pair => f.write_str("pair of train passes"),
        }
    }
}

/// The tensors of a pass: one, or for [`Pass::Pair`] two.
#[derive(Clone, Copy, Debug)]
pub enum Sets<'a> {
    One([&'a Tensor<f32>; 1]),
    Two([&'a Tensor<f32>; 2]),
}

impl<'a> Sets<'a> {
    pub fn as_slice(&self) -> &[&'a Tensor<f32>] {
        match self {
            Self::One(one) => one,
            Self::Two(two) => two,
        }
    }
}

impl<'a> From<&'a Tensor<f32>> for Sets<'a> {
    fn from(tensor: &'a Tensor<f32>) -> Self {
        Self::One([tensor])
    }
}

impl<'a> From<[&'a Tensor<f32>; 2]> for Sets<'a> {
    fn from(tensors: [&'a Tensor<f32>; 2]) -> Self {
        Self::Two(tensors)
    }
}

/// What a backward pass computes.
#[derive(Clone, Copy, Debug)]
pub struct GradRequest<'a> {
    /// The gradient of every parameter, over all sets; not of an evaluation pass.
    pub parameters: Option<ParameterGradient>,
    /// What becomes of the images' gradient; not of a pair.
    pub images: Option<ImageGradient<'a>>,
}

/// What becomes of the parameters' gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParameterGradient {
    /// They replace those already there.
    Set,
    /// They are added to those already there.
    Add,
}

/// What becomes of the images' gradient.
#[derive(Clone, Copy, Debug)]
pub enum ImageGradient<'a> {
    /// Written, `batch x 32 x 32 x 3`.
    Write(&'a Tensor<f32>),
    /// One [`SignStep`] of `perturbed`, the images of the pass's last forward, in the ball around `images`.
    Step { step: SignStep, images: &'a Tensor<f32>, perturbed: &'a Tensor<f32> },
}

impl<'a> GradRequest<'a> {
    /// The gradient of every parameter, in place of those already there.
    pub const PARAMETERS: Self = Self { parameters: Some(ParameterGradient::Set), images: None };
    /// The gradient of every parameter, added to those already there.
    pub const ADD_PARAMETERS: Self = Self { parameters: Some(ParameterGradient::Add), images: None };

    /// The gradient of the images.
    pub fn images(gradient: &'a Tensor<f32>) -> Self {
        Self { parameters: None, images: Some(ImageGradient::Write(gradient)) }
    }
    /// A step of an attack.
    pub fn step(step: SignStep, images: &'a Tensor<f32>, perturbed: &'a Tensor<f32>) -> Self {
        Self { parameters: None, images: Some(ImageGradient::Step { step, images, perturbed }) }
    }
    /// The same, and the gradient of every parameter in place of those already there.
    pub fn and_parameters(self) -> Self {
        Self { parameters: Some(ParameterGradient::Set), ..self }
    }
}

/// One ascent step: `x' <- clip01(proj(x' + step_size * sign(gradient)))`, proj onto the L-inf ball around x.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignStep {
    pub step_size: f32,
    /// Radius of the ball; `f32::INFINITY` projects onto [0, 1] only.
    pub epsilon: f32,
}

/// The loss that an attack ascends, of the logits z' of the moved images. A positive factor would change no step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AscentLoss {
    /// Softmax cross-entropy against hard labels.
    CrossEntropy,
    /// KL(p||q) of q = softmax(z') from p = softmax(z), z the logits of the clean images.
    Divergence,
    /// The largest wrong logit less the label's: [`crate::ops::Margin::BestWrong`].
    Margin,
}

impl AscentLoss {
    /// Whether it is of the clean images' logits, and not of the labels.
    pub fn needs_clean_logits(self) -> bool {
        match self {
            Self::Divergence => true,
            Self::CrossEntropy | Self::Margin => false,
        }
    }
}
