//! The convolutions of an evaluation pass, forward and back, the first stage part by part.
//!
//! Where a micro-batch is larger than the cache ([`super::micro_batch()`]), the first stage, which moves the most bytes for its
//! products, takes its images part by part: all its convolutions for one part, then all for the next. Parts share the memory
//! of what lies inside the stage. Each image's results are the same bits in any part. Checked by `tests/first_stage.rs`.

use super::EvalPass;
use crate::engine::Result;
use crate::engine::cuda::driver::{Address, Buffer};
use crate::engine::cuda::launch::conv::{
    self, ConvShape, ForwardEpilogue, ImageEpilogue, InputGradientEpilogue,
};
use crate::engine::cuda::parameters::Parameters;
use crate::engine::cuda::scratch::Scratch;

/// Images of the batch, the first of them and how many.
#[derive(Clone, Copy)]
struct Part {
    first: usize,
    images: usize,
}

/// One pass over the network.
pub struct Walk<'a> {
    pub pass: &'a EvalPass,
    pub parameters: &'a Parameters,
    pub scratch: &'a Scratch,
    pub batch: usize,
}

impl Walk<'_> {
    /// The output of the last block for the packed images, and every mask.
    pub fn forward(&self, packed: Address) -> Result<Address> {
        let first_stage = self.first_stage_blocks();
        for part in self.parts() {
            let images = packed.offset::<u16>(self.shape(0, part.first).input_len());
            let epilogue = self.relu(0, None, &self.pass.output_masks[0], part);
            self.convolve(0, part, images, epilogue, self.block(0, part))?;
            (0..first_stage).try_for_each(|number| self.block_forward(number, part))?;
        }
        let whole = self.whole();
        (first_stage..self.pass.blocks.len()).try_for_each(|number| self.block_forward(number, whole))?;
        self.pass.driver.layer(None);
        Ok(self.block(self.pass.blocks.len(), whole))
    }

    /// From the gradient of the last block's output to the image.
    pub fn backward(&self, image: &ImageEpilogue) -> Result<()> {
        let first_stage = self.first_stage_blocks();
        let whole = self.whole();
        (first_stage..self.pass.blocks.len())
            .rev()
            .try_for_each(|number| self.block_backward(number, whole))?;
        for part in self.parts() {
            (0..first_stage).rev().try_for_each(|number| self.block_backward(number, part))?;
            self.pass.driver.layer(Some(0));
            let shape = self.shape(0, part.images);
            let (gradient, image) = (self.block(0, part), image.from_image(part.first));
            conv::image_gradient(&*self.pass.driver, &shape, gradient, self.weights(0), &image)?;
        }
        self.pass.driver.layer(None);
        Ok(())
    }

    fn block_forward(&self, number: usize, part: Part) -> Result<()> {
        let block = &self.pass.blocks[number];
        let (input, inner) = (self.block(number, part), self.scratch.inner.address());
        let epilogue = self.relu(block.conv1, None, &self.pass.inner_masks[number], part);
        self.convolve(block.conv1, part, input, epilogue, inner)?;
        let residual = match block.shortcut {
            Some(at) => {
                let output = self.scratch.convolution.address();
                self.convolve(at, part, input, ForwardEpilogue::Bias { bias: self.bias(at) }, output)?;
                output
            }
            None => input,
        };
        let epilogue = self.relu(block.conv2, Some(residual), &self.pass.output_masks[number + 1], part);
        self.convolve(block.conv2, part, inner, epilogue, self.block(number + 1, part))
    }

    fn block_backward(&self, number: usize, part: Part) -> Result<()> {
        let block = &self.pass.blocks[number];
        let (output, inner) = (self.block(number + 1, part), self.scratch.inner.address());
        let mask = Some(self.mask(&self.pass.inner_masks[number], block.conv1, part));
        self.gradient(block.conv2, part, output, InputGradientEpilogue { residual: None, mask }, inner)?;
        let residual = match block.shortcut {
            Some(at) => {
                let compact = self.scratch.compact.address();
                self.gradient(at, part, output, InputGradientEpilogue::default(), compact)?;
                compact
            }
            None => output,
        };
        let mask = Some(self.mask(&self.pass.output_masks[number], self.ends_in(number), part));
        let epilogue = InputGradientEpilogue { residual: Some(residual), mask };
        self.gradient(block.conv1, part, inner, epilogue, self.block(number, part))
    }

    fn convolve(
        &self,
        at: usize,
        part: Part,
        input: Address,
        epilogue: ForwardEpilogue,
        output: Address,
    ) -> Result<()> {
        self.pass.driver.layer(Some(at));
        let shape = self.shape(at, part.images);
        conv::forward(&*self.pass.driver, &shape, input, self.weights(at), &epilogue, output)
    }

    fn gradient(
        &self,
        at: usize,
        part: Part,
        from: Address,
        epilogue: InputGradientEpilogue,
        to: Address,
    ) -> Result<()> {
        self.pass.driver.layer(Some(at));
        let shape = self.shape(at, part.images);
        conv::input_gradient(&*self.pass.driver, &shape, from, self.weights(at), &epilogue, to)
    }

    /// Blocks of the first stage: those before the first that has a shortcut.
    fn first_stage_blocks(&self) -> usize {
        let blocks = &self.pass.blocks;
        blocks.iter().position(|block| block.shortcut.is_some()).unwrap_or(blocks.len())
    }

    fn whole(&self) -> Part {
        Part { first: 0, images: self.batch }
    }

    /// The whole batch, as the first stage takes it.
    fn parts(&self) -> impl Iterator<Item = Part> {
        let (batch, images) = (self.batch, self.pass.part);
        (0..batch).step_by(images).map(move |first| Part { first, images: images.min(batch - first) })
    }

    fn shape(&self, at: usize, images: usize) -> ConvShape {
        self.parameters.layout.convs[at].shape(images)
    }
    fn weights(&self, at: usize) -> Address {
        self.parameters.folded.address().offset::<u16>(self.parameters.layout.convs[at].packed)
    }
    fn bias(&self, at: usize) -> Address {
        self.parameters.bias.address().offset::<f32>(self.parameters.layout.convs[at].channel)
    }
    fn relu(&self, at: usize, residual: Option<Address>, mask: &Buffer, part: Part) -> ForwardEpilogue {
        ForwardEpilogue::Relu { bias: self.bias(at), residual, mask: self.mask(mask, at, part) }
    }
    /// Where a part's bits lie in the mask of the output of convolution `at`.
    fn mask(&self, mask: &Buffer, at: usize, part: Part) -> Address {
        mask.address() + self.shape(at, part.first).output_len() / 8
    }

    /// The convolution whose output is that of block `number - 1`; number 0 is the stem.
    fn ends_in(&self, number: usize) -> usize {
        if number == 0 { 0 } else { self.pass.blocks[number - 1].conv2 }
    }
    /// Where a part's output of block `number - 1`, or its gradient, lies. The first stage begins and ends in the buffer of even
    /// numbers, which holds all parts one behind the other; the other has room for what no other part will ask for.
    fn block(&self, number: usize, part: Part) -> Address {
        let before = if number.is_multiple_of(2) { part.first } else { 0 };
        let address = self.scratch.block(number).address();
        address.offset::<u16>(self.shape(self.ends_in(number), before).output_len())
    }
}
