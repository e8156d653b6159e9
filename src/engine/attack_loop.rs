//! The steps of a sign-step attack on one micro-batch, as one operation: a device that knows what comes next can fuse what stands
//! between two passes, and do all the steps as one piece of work.
//!
//! A part of [`Engine`].

use super::{CrossEntropy, Engine, LossOutputs, Margin, Pass, Phase, Result, SignStep, Tensor};

/// The loss that an attack ascends, of the logits z' of the moved images. A positive factor would change no step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AscentLoss {
    /// Softmax cross-entropy against hard labels.
    CrossEntropy,
    /// KL(p||q) of q = softmax(z') from p = softmax(z), z the logits of the clean images.
    Divergence,
    /// [`Margin::BestWrong`].
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

/// Sign steps on the images of a batch.
#[derive(Clone, Copy, Debug)]
pub struct AttackSteps<'a> {
    pub pass: Pass,
    pub loss: AscentLoss,
    /// Unused where the loss needs clean logits.
    pub labels: &'a Tensor<u32>,
    /// Unused where the loss needs none.
    pub clean_logits: &'a Tensor<f32>,
    pub step: SignStep,
    pub steps: u32,
    /// The clean images x, around which the ball lies.
    pub images: &'a Tensor<f32>,
    /// The images x' that move.
    pub perturbed: &'a Tensor<f32>,
    /// Room for the logits and what the loss writes; unspecified afterwards.
    pub logits: &'a Tensor<f32>,
    pub outputs: LossOutputs<'a>,
}

/// The inner loop of sign-step attacks.
pub trait AttackLoop {
    /// Takes the steps, each of them said as a [`Phase::AttackStep`]. Afterwards there is no forward pass that could go backward:
    /// the last one is of images that have moved since.
    ///
    /// [`Pass::Eval`] needs [`Engine::fold_batch_norm`] after the last change of the weights.
    ///
    /// # Errors
    /// Where the network has fewer classes than the loss needs.
    fn ascend(&mut self, attack: &AttackSteps) -> Result<()>;
}

/// [`AttackLoop::ascend`] by the operations that it is made of, one after another.
pub fn ascend_step_by_step(engine: &mut dyn Engine, attack: &AttackSteps) -> Result<()> {
    let AttackSteps { pass, loss, labels, step, images, perturbed, logits, outputs, .. } = *attack;
    for number in 1..=attack.steps {
        engine.phase(Phase::AttackStep(number));
        engine.forward(pass, perturbed, logits)?;
        // Scale 1 and not 1 / batch: only the sign matters, and small factors would waste the range of bf16.
        match loss {
            AscentLoss::CrossEntropy => {
                let loss = CrossEntropy { smoothing: 0.0, scale: 1.0 };
                engine.cross_entropy(&loss, logits, labels, None, outputs)?;
            }
            AscentLoss::Divergence => {
                engine.divergence(attack.clean_logits, logits, 1.0, outputs)?;
            }
            AscentLoss::Margin => {
                engine.margin_loss(Margin::BestWrong, logits, labels, outputs)?;
            }
        }
        engine.attack_step(pass, outputs.logit_gradient, &step, images, perturbed)?;
    }
    Ok(())
}
