//! The evaluation pass: the network with BatchNorm folded into its convolutions, forward and back to the image.
//!
//! This is the inner loop of every attack, so nothing elementwise stands alone in it: bias, residual, ReLU and its mask are
//! the epilogue of a convolution, mask and residual gradient that of an input gradient, and the last input gradient ends in
//! the attack's step.

mod layers;
mod micro_batch;

use std::num::NonZeroUsize;
use std::rc::Rc;

pub use layers::{EvalLaunches, Start};
pub use micro_batch::{in_cache, micro_batch};

use super::driver::{Address, Buffer, Driver};
use super::launch::conv::mask_bytes;
use super::layout;
use super::parameters::Parameters;
use super::scratch::Scratch;
use crate::engine::{AscentLoss, Pass, Result};
use crate::model::Layer;

/// What the evaluation pass keeps of a batch: a mask for every ReLU, and the features. Activations lie where the gradients will:
/// on the way back only masks are asked for, so what an attack touches is no larger than one of its passes.
pub struct EvalPass {
    driver: Rc<dyn Driver>,
    /// ReLU masks, one a layer.
    masks: Vec<Buffer>,
    /// What the last layer saw in the last forward pass: f32, `batch x features`.
    pub features: Buffer,
    /// The stem's input.
    pub packed: Buffer,
    /// Images that the first stage takes at a time.
    chunk: usize,
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
        let mask = |layer: &Layer| {
            Buffer::new(driver, "eval mask", mask_bytes(&layout::shape(layout, layer.conv, max_batch)))
        };
        Ok(Self {
            masks: layout.layers.iter().map(mask).collect::<Result<_>>()?,
            features: Buffer::new(driver, "eval features", max_batch * layout.network.features() * 4)?,
            packed: Buffer::new(
                driver,
                "packed images",
                layout::shape(layout, 0, max_batch).input_len() * 2,
            )?,
            chunk: driver
                .options()
                .first_stage_images
                .map_or_else(|| in_cache(layout.network, driver.info().cache), NonZeroUsize::get),
            driver: driver.clone(),
        })
    }

    /// What a pass over the packed images of a batch launches.
    pub fn launches<'a>(
        &'a self,
        parameters: &'a Parameters,
        scratch: &'a Scratch,
        pass: Pass,
        batch: usize,
    ) -> Result<EvalLaunches<'a>> {
        let linear = parameters.folded_linear()?;
        Ok(EvalLaunches { pass: self, parameters, scratch, linear, reduction: pass.into(), batch })
    }
}
