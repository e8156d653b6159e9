//! The losses of a training step, with the passes that they need: of the adversarial images alone, or of the clean and the
//! adversarial ones as a pair, each with its own batch statistics. Each sample counts with its weight in the batch.

use crate::batch::Batch;
use crate::engine::{Engine, GradRequest, Pass, Result};
use crate::ops::{CrossEntropy, PairedForm, PairedLoss};

/// The train pass of losses with one.
pub const ONLY: Pass = Pass::Train { slot: 0 };

/// Of logits z' of the adversarial images, and z of the clean ones.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// CE(z', t), dL/dz' = q - t, with the target t = `(1 - smoothing) * one_hot + smoothing / classes`.
    CrossEntropy { smoothing: f32 },
    /// A form of both; `divergence` is its factor on the divergence.
    Paired { form: PairedForm, divergence: f32 },
}

impl Loss {
    /// Whether it passes the clean images too.
    pub fn is_paired(self) -> bool {
        matches!(self, Self::Paired { .. })
    }

    /// Train passes forward, the losses, and the gradient of their mean over the whole minibatch with respect to the logits.
    pub fn forward(self, engine: &mut Engine, batch: &Batch) -> Result<()> {
        let (images, logits) = ([&batch.images, &batch.perturbed], [&batch.clean_logits, &batch.logits]);
        match self.is_paired() {
            true => engine.forward(Pass::Pair, images, logits)?,
            false => engine.forward(ONLY, images[1], logits[1])?,
        }
        self.of_logits(engine, batch, 1.0 / batch.share.images as f32)
    }

    /// From the gradient of the logits, after [`Loss::forward`], to that of the parameters, over the shares of all ranks.
    pub fn backward(self, engine: &mut Engine, batch: &Batch) -> Result<()> {
        let (clean, adversarial) = (&batch.clean_gradient, &batch.logit_gradient);
        match self.is_paired() {
            true => engine.backward(Pass::Pair, [clean, adversarial], GradRequest::PARAMETERS)?,
            false => engine.backward(ONLY, adversarial, GradRequest::PARAMETERS)?,
        }
        engine.sum_gradients()
    }

    /// The losses of the logits that the batch holds, and the gradients of these logits times `scale`.
    pub fn of_logits(self, engine: &mut Engine, batch: &Batch, scale: f32) -> Result<()> {
        let weights = batch.weights.as_ref();
        match self {
            Self::CrossEntropy { smoothing } => {
                engine.run(&CrossEntropy { smoothing, weights, ..batch.cross_entropy(scale) })
            }
            Self::Paired { form, divergence } => engine.run(&PairedLoss {
                form,
                divergence,
                scale,
                clean_logits: &batch.clean_logits,
                adversarial_logits: &batch.logits,
                labels: &batch.labels,
                weights,
                outputs: batch.paired_outputs(),
            }),
        }
    }
}
