//! The evaluation pass: the network with BatchNorm folded into its convolutions, forward and back to the image.
//!
//! This is the inner loop of every attack, so nothing elementwise stands alone in it: bias, residual, ReLU and its mask are
//! the epilogue of a convolution, mask and residual gradient that of an input gradient, and the last input gradient ends in
//! the attack's step. Called by engine.rs; checked by tests/engine_agreement.rs against the reference engine.

use std::rc::Rc;

use super::driver::nvtx::Range;
use super::driver::{Address, Buffer, Driver};
use super::launch::conv::{self, ForwardEpilogue, ImageEpilogue, InputGradientEpilogue};
use super::launch::head::{self, HeadBackwardParams, HeadForwardParams};
use super::parameters::Parameters;
use super::scratch::Scratch;
use crate::engine::{Error, Result};
use crate::model::Block;

/// Activations of a batch: two that alternate between blocks, those inside a block, and a mask for every ReLU.
pub struct EvalPass {
    driver: Rc<dyn Driver>,
    blocks: Vec<Block>,
    /// Outputs of blocks; block `i` reads number `i % 2` and writes the other.
    outputs: [Buffer; 2],
    inner: Buffer,
    shortcut: Buffer,
    /// ReLU masks: of the stem and of each block's output, and inside each block.
    output_masks: Vec<Buffer>,
    inner_masks: Vec<Buffer>,
    pooled: Buffer,
    /// Images of the last forward pass.
    batch: Option<usize>,
}

impl EvalPass {
    pub fn new(driver: &Rc<dyn Driver>, parameters: &Parameters, max_batch: usize) -> Result<Self> {
        let layout = &parameters.layout;
        let blocks = layout.network.blocks();
        let elements = |conv: usize| {
            let conv = &layout.convs[conv].conv;
            max_batch * conv.out_side() * conv.out_side() * conv.out_channels
        };
        let widest = elements(0);
        let activation = |name| Buffer::new(driver, name, widest * 2);
        let mask = |name, conv| Buffer::new(driver, name, elements(conv) / 8);
        Ok(Self {
            outputs: [activation("eval block output")?, activation("eval block output")?],
            inner: activation("eval inner activation")?,
            shortcut: Buffer::new(driver, "eval shortcut", widest)?,
            output_masks: std::iter::once(0)
                .chain(blocks.iter().map(|block| block.conv2))
                .map(|conv| mask("eval output mask", conv))
                .collect::<Result<_>>()?,
            inner_masks: blocks
                .iter()
                .map(|block| mask("eval inner mask", block.conv1))
                .collect::<Result<_>>()?,
            pooled: Buffer::new(driver, "eval features", max_batch * layout.network.features() * 4)?,
            driver: driver.clone(),
            blocks,
            batch: None,
        })
    }

    /// Images of the last forward pass, and what its last layer saw: f32, `batch x features`.
    pub fn features(&self) -> Option<(usize, Address)> {
        self.batch.map(|batch| (batch, self.pooled.address()))
    }

    /// The weights changed: the last forward pass is of others.
    pub fn forget(&mut self) {
        self.batch = None;
    }

    /// Logits (`batch x classes`) of the packed images.
    pub fn forward(
        &mut self,
        parameters: &Parameters,
        packed: Address,
        batch: usize,
        logits: Address,
    ) -> Result<()> {
        let _range = Range::new("forward");
        let (linear_weight, linear_bias) = parameters.folded_linear()?;
        self.batch = None;
        let layout = &parameters.layout;
        let convolve = |at: usize, input: Address, epilogue: ForwardEpilogue, output: &Buffer| {
            self.driver.layer(Some(at));
            let shape = layout.convs[at].shape(batch);
            let weights = parameters.folded.address().offset::<u16>(layout.convs[at].packed);
            conv::forward(&*self.driver, &shape, input, weights, &epilogue, output.address())
        };
        let bias = |at: usize| parameters.bias.address().offset::<f32>(layout.convs[at].channel);
        let relu = |at: usize, residual: Option<Address>, mask: &Buffer| ForwardEpilogue::Relu {
            bias: bias(at),
            residual,
            mask: mask.address(),
        };

        convolve(0, packed, relu(0, None, &self.output_masks[0]), &self.outputs[0])?;
        for (number, block) in self.blocks.iter().enumerate() {
            let (input, output) = (&self.outputs[number % 2], &self.outputs[(number + 1) % 2]);
            let input = input.address();
            convolve(block.conv1, input, relu(block.conv1, None, &self.inner_masks[number]), &self.inner)?;
            let residual = match block.shortcut {
                Some(at) => {
                    convolve(at, input, ForwardEpilogue::Bias { bias: bias(at) }, &self.shortcut)?;
                    self.shortcut.address()
                }
                None => input,
            };
            let epilogue = relu(block.conv2, Some(residual), &self.output_masks[number + 1]);
            convolve(block.conv2, self.inner.address(), epilogue, output)?;
        }
        self.driver.layer(None);
        let last = self.outputs[self.blocks.len() % 2].address();
        let params = HeadForwardParams {
            activation: last,
            weight: linear_weight,
            bias: linear_bias,
            pooled: self.pooled.address(),
            logits,
            features: layout.network.features() as u32,
            classes: layout.network.classes as u32,
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
        let (linear_weight, _) = parameters.folded_linear()?;
        let layout = &parameters.layout;
        let weights = |at: usize| parameters.folded.address().offset::<u16>(layout.convs[at].packed);
        let gradient_of = |at: usize, from: Address, epilogue: InputGradientEpilogue, to: &Buffer| {
            self.driver.layer(Some(at));
            let shape = layout.convs[at].shape(batch);
            conv::input_gradient(&*self.driver, &shape, from, weights(at), &epilogue, to.address())
        };

        let params = HeadBackwardParams {
            logit_gradient,
            weight: linear_weight,
            mask: self.output_masks[self.blocks.len()].address(),
            gradient: scratch.block(self.blocks.len()).address(),
            features: layout.network.features() as u32,
            classes: layout.network.classes as u32,
        };
        head::head_input_gradient(&*self.driver, batch, &params)?;
        for (number, block) in self.blocks.iter().enumerate().rev() {
            let output = scratch.block(number + 1).address();
            let mask = Some(self.inner_masks[number].address());
            gradient_of(block.conv2, output, InputGradientEpilogue { residual: None, mask }, &scratch.inner)?;
            let residual = match block.shortcut {
                Some(at) => {
                    gradient_of(at, output, InputGradientEpilogue::default(), &scratch.compact)?;
                    scratch.compact.address()
                }
                None => output,
            };
            let mask = Some(self.output_masks[number].address());
            let epilogue = InputGradientEpilogue { residual: Some(residual), mask };
            gradient_of(block.conv1, scratch.inner.address(), epilogue, scratch.block(number))?;
        }
        self.driver.layer(Some(0));
        let shape = layout.convs[0].shape(batch);
        conv::image_gradient(&*self.driver, &shape, scratch.block(0).address(), weights(0), image)?;
        self.driver.layer(None);
        Ok(())
    }
}
