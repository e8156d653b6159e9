//! The evaluation pass: the network with BatchNorm folded into its convolutions, forward and back to the image.
//!
//! This is the inner loop of every attack, so nothing elementwise stands alone in it: bias, residual, ReLU and its mask are
//! the epilogue of a convolution, mask and residual gradient that of an input gradient, and the last input gradient ends in
//! the attack's step. Called by engine.rs; checked by tests/engine_agreement.rs against the reference engine.

mod micro_batch;
mod walk;

use std::num::NonZeroUsize;
use std::rc::Rc;

pub use micro_batch::{in_cache, micro_batch};
use walk::Walk;

use super::driver::nvtx::Range;
use super::driver::{Address, Buffer, Driver};
use super::launch::conv::ImageEpilogue;
use super::launch::head::{self, HeadAscentParams, HeadBackwardParams, HeadForwardParams};
use super::parameters::Parameters;
use super::scratch::Scratch;
use crate::engine::{AscentLoss, Error, Result};
use crate::model::Block;

/// What the evaluation pass keeps of a batch: a mask for every ReLU, and the features. Activations lie where the gradients will:
/// on the way back only masks are asked for, so what an attack touches is no larger than one of its passes.
pub struct EvalPass {
    driver: Rc<dyn Driver>,
    blocks: Vec<Block>,
    /// ReLU masks: of the stem and of each block's output, and inside each block.
    output_masks: Vec<Buffer>,
    inner_masks: Vec<Buffer>,
    pooled: Buffer,
    /// Images that the first stage takes at a time.
    part: usize,
    /// Images of the last forward pass.
    batch: Option<usize>,
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
        let blocks = layout.network.blocks();
        let mask = |name, conv: usize| {
            let conv = &layout.convs[conv].conv;
            Buffer::new(driver, name, max_batch * conv.out_side() * conv.out_side() * conv.out_channels / 8)
        };
        Ok(Self {
            output_masks: std::iter::once(0)
                .chain(blocks.iter().map(|block| block.conv2))
                .map(|conv| mask("eval output mask", conv))
                .collect::<Result<_>>()?,
            inner_masks: blocks
                .iter()
                .map(|block| mask("eval inner mask", block.conv1))
                .collect::<Result<_>>()?,
            pooled: Buffer::new(driver, "eval features", max_batch * layout.network.features() * 4)?,
            part: driver
                .options()
                .first_stage_images
                .map_or_else(|| in_cache(layout.network, driver.info().cache), NonZeroUsize::get),
            driver: driver.clone(),
            blocks,
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

    /// Logits (`batch x classes`) of the packed images.
    pub fn forward(
        &mut self,
        parameters: &Parameters,
        scratch: &Scratch,
        packed: Address,
        batch: usize,
        logits: Address,
    ) -> Result<()> {
        let _range = Range::new("forward");
        let (weight, bias) = parameters.folded_linear()?;
        self.batch = None;
        let network = parameters.layout.network;
        let params = HeadForwardParams {
            activation: self.walk(parameters, scratch, batch).forward(packed)?,
            weight,
            bias,
            pooled: self.pooled.address(),
            logits,
            features: network.features() as u32,
            classes: network.classes as u32,
        };
        head::head_forward(&*self.driver, batch, &params)?;
        self.batch = Some(batch);
        Ok(())
    }

    /// From the gradient of the logits of the last forward pass to the image.
    pub fn backward(
        &self,
        parameters: &Parameters,
        scratch: &Scratch,
        batch: usize,
        logit_gradient: Address,
        image: &ImageEpilogue,
    ) -> Result<()> {
        if self.batch != Some(batch) {
            let of = self.batch.map_or("none".into(), |batch| format!("one of {batch} images"));
            return Err(Error::Invalid(format!(
                "input gradient of {batch} images in an evaluation pass: the last forward pass was {of}"
            )));
        }
        let _range = Range::new("backward");
        let network = parameters.layout.network;
        let params = HeadBackwardParams {
            logit_gradient,
            weight: parameters.folded_linear()?.0,
            mask: self.output_masks[self.blocks.len()].address(),
            gradient: scratch.block(self.blocks.len()).address(),
            features: network.features() as u32,
            classes: network.classes as u32,
        };
        head::head_input_gradient(&*self.driver, batch, &params)?;
        self.walk(parameters, scratch, batch).backward(image)
    }

    /// A step of an attack: from the packed images forward and back to what `image` makes of their gradient. Leaves no forward pass
    /// to go back from.
    pub fn attack_step(
        &self,
        parameters: &Parameters,
        scratch: &Scratch,
        packed: Address,
        batch: usize,
        ascent: &Ascent,
        image: &ImageEpilogue,
    ) -> Result<()> {
        let (weight, bias) = parameters.folded_linear()?;
        let network = parameters.layout.network;
        let (labels, target_logits) = match ascent.loss.needs_clean_logits() {
            true => (Address::NULL, ascent.operand),
            false => (ascent.operand, Address::NULL),
        };
        let activation = {
            let _range = Range::new("forward");
            self.walk(parameters, scratch, batch).forward(packed)?
        };
        let params = HeadAscentParams {
            activation,
            weight,
            bias,
            labels,
            target_logits,
            gradient: scratch.block(self.blocks.len()).address(),
            features: network.features() as u32,
            classes: network.classes as u32,
        };
        head::head_ascent(&*self.driver, ascent.loss, batch, &params)?;
        let _range = Range::new("backward");
        self.walk(parameters, scratch, batch).backward(image)
    }

    fn walk<'a>(&'a self, parameters: &'a Parameters, scratch: &'a Scratch, batch: usize) -> Walk<'a> {
        Walk { pass: self, parameters, scratch, batch }
    }
}
