//! The evaluation pass: the network with BatchNorm folded into its convolutions, forward and back to the image.
//!
//! This is the inner loop of every attack, so nothing elementwise stands alone in it: bias, residual, ReLU and its mask are
//! the epilogue of a convolution, mask and residual gradient that of an input gradient, and the last input gradient ends in
//! the attack's step.

mod layers;
mod micro_batch;

use std::num::NonZeroUsize;
use std::rc::Rc;

use layers::{EvalLaunches, Start};
pub use micro_batch::{in_cache, micro_batch};

use super::driver::nvtx::Range;
use super::driver::{Address, Buffer, Driver};
use super::launch::conv::{ImageEpilogue, Reduction};
use super::parameters::Parameters;
use super::scratch::Scratch;
use crate::engine::{AscentLoss, Error, Result};

/// What the evaluation pass keeps of a batch: a mask for every ReLU, and the features. Activations lie where the gradients will:
/// on the way back only masks are asked for, so what an attack touches is no larger than one of its passes.
pub struct EvalPass {
    driver: Rc<dyn Driver>,
    /// ReLU masks, one a layer.
    masks: Vec<Buffer>,
    pooled: Buffer,
    /// Images that the first stage takes at a time.
    chunk: usize,
    /// Images of the last forward pass.
    batch: Option<usize>,
}

/// The images of a pass.
#[derive(Clone, Copy, Debug)]
pub struct EvalBatch {
    /// The stem's input.
    pub packed: Address,
    pub images: usize,
    pub reduction: Reduction,
}

/// What a step of an attack ascends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ascent {
    pub loss: AscentLoss,
    /// Labels, or the clean logits where the loss needs them.
    pub operand: Address,
}

impl EvalPass {
    /// For batches of up to `max_batch` images, of which the first stage takes [`in_cache`] at a time.
    pub fn new(driver: &Rc<dyn Driver>, parameters: &Parameters, max_batch: usize) -> Result<Self> {
        let layout = &parameters.layout;
        let mask = |layer| Buffer::new(driver, "eval mask", max_batch * layout.activation_len(layer) / 8);
        Ok(Self {
            masks: (0..layout.layers.len()).map(mask).collect::<Result<_>>()?,
            pooled: Buffer::new(driver, "eval features", max_batch * layout.network.features() * 4)?,
            chunk: driver
                .options()
                .first_stage_images
                .map_or_else(|| in_cache(layout.network, driver.info().cache), NonZeroUsize::get),
            driver: driver.clone(),
            batch: None,
        })
    }

    /// Images of the last forward pass, and what its last layer saw: f32, `batch x features`.
    pub fn features(&self) -> Option<(usize, Address)> {
        self.batch.map(|batch| (batch, self.pooled.address()))
    }

    /// The last forward pass is of other weights or images.
    pub fn forget(&mut self) {
        self.batch = None;
    }

    /// Logits (`images x classes`) of the packed images.
    pub fn forward(
        &mut self,
        parameters: &Parameters,
        scratch: &Scratch,
        batch: EvalBatch,
        logits: Address,
    ) -> Result<()> {
        let _range = Range::new("forward");
        let linear = parameters.folded_linear()?;
        self.batch = None;
        self.launches(parameters, scratch, linear, batch).forward(batch.packed, Some(logits))?;
        self.batch = Some(batch.images);
        Ok(())
    }

    /// From the gradient of the logits of the last forward pass to the image.
    pub fn backward(
        &self,
        parameters: &Parameters,
        scratch: &Scratch,
        batch: EvalBatch,
        logit_gradient: Address,
        image: &ImageEpilogue,
    ) -> Result<()> {
        let images = batch.images;
        if self.batch != Some(images) {
            let of = self.batch.map_or("none".into(), |batch| format!("one of {batch} images"));
            return Err(Error::Invalid(format!(
                "input gradient of {images} images in an evaluation pass: the last forward pass was {of}"
            )));
        }
        let _range = Range::new("backward");
        let linear = parameters.folded_linear()?;
        let launches = self.launches(parameters, scratch, linear, batch);
        launches.backward(Start::LogitGradient(logit_gradient), image)
    }

    /// A step of an attack: from the packed images forward and back to what `image` makes of their gradient. Leaves no forward pass
    /// to go back from.
    pub fn attack_step(
        &self,
        parameters: &Parameters,
        scratch: &Scratch,
        batch: EvalBatch,
        ascent: &Ascent,
        image: &ImageEpilogue,
    ) -> Result<()> {
        let launches = self.launches(parameters, scratch, parameters.folded_linear()?, batch);
        {
            let _range = Range::new("forward");
            launches.forward(batch.packed, None)?;
        }
        let _range = Range::new("backward");
        launches.backward(Start::Ascent(*ascent), image)
    }

    fn launches<'a>(
        &'a self,
        parameters: &'a Parameters,
        scratch: &'a Scratch,
        linear: (Address, Address),
        EvalBatch { images, reduction, .. }: EvalBatch,
    ) -> EvalLaunches<'a> {
        EvalLaunches { pass: self, parameters, scratch, linear, reduction, batch: images }
    }
}
