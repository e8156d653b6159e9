//! The evaluation pass: the network with BatchNorm folded into its convolutions, forward and back to the image.
//!
//! This is the inner loop of every attack, so nothing elementwise stands alone in it: bias, residual, ReLU and its mask are
//! the epilogue of a convolution, mask and residual gradient that of an input gradient, and the last input gradient ends in
//! the attack's step. Called by engine.rs; checked by tests/engine_agreement.rs against the reference engine.

use std::rc::Rc;

use super::driver::nvtx::Range;
use super::driver::{Address, Buffer, Driver};
use super::launch::conv::{self, ForwardEpilogue, ImageEpilogue, InputGradientEpilogue};
use super::launch::head::{self, Ascended, HeadAscentParams, HeadBackwardParams, HeadForwardParams};
use super::parameters::Parameters;
use super::scratch::Scratch;
use crate::engine::{Error, Result};
use crate::model::layers::IMAGE_SIDE;
use crate::model::{Block, ResNet18};

/// The cache of a device that does not say.
const CACHE_BYTES: u64 = 40 << 20;

/// Fewer images leave most multiprocessors of a big GPU without a tile in the last stages.
const FEWEST_IMAGES: usize = 64;

/// On a Hopper a tile of the last stage is 16 images by 128 channels: these many make 128 tiles for 132 multiprocessors. What no
/// longer stays in the cache costs 6.2 MB an image and step from memory, 1.4 us beside 3.7 us of products at 600 TFLOP/s.
const HOPPER_IMAGES: usize = 512;

/// What the evaluation pass keeps of a batch: a mask for every ReLU, and the features. Activations lie where the gradients will:
/// on the way back only masks are asked for, so what an attack touches is no larger than one of its passes.
pub struct EvalPass {
    driver: Rc<dyn Driver>,
    blocks: Vec<Block>,
    /// ReLU masks: of the stem and of each block's output, and inside each block.
    output_masks: Vec<Buffer>,
    inner_masks: Vec<Buffer>,
    pooled: Buffer,
    /// Images of the last forward pass.
    batch: Option<usize>,
}

/// What a step of an attack ascends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ascent {
    pub ascended: Ascended,
    /// Labels, or for the divergence the target logits.
    pub operand: Address,
}

/// Images of an attack's micro-batch on a device whose cache has so many bytes (40 MiB where unknown), before the limit that the
/// engine was opened with: the power of two nearest to what fits, and 64 at least, for less leaves multiprocessors idle.
///
/// With T the bytes of an activation of the widest stage (128 KiB at width 64), an image touches in every step
/// * three activations: a block's input, inner one and output, and on the way back their gradients in the same memory: 3 T;
/// * a mask bit an element of 17 ReLUs, T/16 each in the widest stage and half of that in each of the next: 17/32 T;
/// * 40 bytes a pixel: hi and lo parts in eight bf16 channels, x and x' in three f32: 40 KiB.
///
/// At width 64 that is 492 KiB. Weights (21 MiB of bf16) are left out: each is read twice a step, which for 128 images is about
/// a fiftieth of the time even from memory.
///
/// Where wgmma serves the network its tiles are larger, and to fill the grid comes before the cache: [`HOPPER_IMAGES`].
pub fn micro_batch(network: ResNet18, cache: Option<u64>, has_wgmma: bool) -> usize {
    if has_wgmma && network.width.is_multiple_of(64) {
        return HOPPER_IMAGES;
    }
    let pixels = IMAGE_SIDE * IMAGE_SIDE;
    let widest = pixels * network.width * 2;
    let fits = cache.unwrap_or(CACHE_BYTES) as usize / (3 * widest + widest * 17 / 32 + 40 * pixels);
    let below = (fits + 1).next_power_of_two() / 2;
    let nearest = if fits * fits >= 2 * below * below { 2 * below } else { below };
    nearest.max(FEWEST_IMAGES)
}

impl EvalPass {
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
            activation: self.convolutions(parameters, scratch, packed, batch)?,
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
        self.input_gradients(parameters, scratch, batch, image)
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
        let (labels, target_logits) = match ascent.ascended {
            Ascended::Divergence => (Address::NULL, ascent.operand),
            Ascended::CrossEntropy | Ascended::Margin => (ascent.operand, Address::NULL),
        };
        let activation = {
            let _range = Range::new("forward");
            self.convolutions(parameters, scratch, packed, batch)?
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
        head::head_ascent(&*self.driver, ascent.ascended, batch, &params)?;
        let _range = Range::new("backward");
        self.input_gradients(parameters, scratch, batch, image)
    }

    /// The output of the last block for the packed images, and every mask.
    fn convolutions(
        &self,
        parameters: &Parameters,
        scratch: &Scratch,
        packed: Address,
        batch: usize,
    ) -> Result<Address> {
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

        convolve(0, packed, relu(0, None, &self.output_masks[0]), scratch.block(0))?;
        for (number, block) in self.blocks.iter().enumerate() {
            let (input, inner) = (scratch.block(number).address(), &scratch.inner);
            convolve(block.conv1, input, relu(block.conv1, None, &self.inner_masks[number]), inner)?;
            let residual = match block.shortcut {
                Some(at) => {
                    let epilogue = ForwardEpilogue::Bias { bias: bias(at) };
                    convolve(at, input, epilogue, &scratch.convolution)?;
                    scratch.convolution.address()
                }
                None => input,
            };
            let epilogue = relu(block.conv2, Some(residual), &self.output_masks[number + 1]);
            convolve(block.conv2, inner.address(), epilogue, scratch.block(number + 1))?;
        }
        self.driver.layer(None);
        Ok(scratch.block(self.blocks.len()).address())
    }

    /// From the gradient of the last block's output to the image.
    fn input_gradients(
        &self,
        parameters: &Parameters,
        scratch: &Scratch,
        batch: usize,
        image: &ImageEpilogue,
    ) -> Result<()> {
        let layout = &parameters.layout;
        let weights = |at: usize| parameters.folded.address().offset::<u16>(layout.convs[at].packed);
        let gradient_of = |at: usize, from: Address, epilogue: InputGradientEpilogue, to: &Buffer| {
            self.driver.layer(Some(at));
            let shape = layout.convs[at].shape(batch);
            conv::input_gradient(&*self.driver, &shape, from, weights(at), &epilogue, to.address())
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_micro_batch_fits_the_cache() {
        let network = |width| ResNet18 { width, classes: 10 };
        // On mma: an H100 and an H200 name 50 MiB and 60 MB, an RTX 4090 72 MiB, an RTX 4060 24 MiB.
        for (width, cache, wanted) in [
            (64, Some(50 << 20), 128),
            (64, Some(60_000_000), 128),
            (64, Some(72 << 20), 128),
            (64, Some(24 << 20), 64),
            (64, None, 64),
            (16, Some(50 << 20), 256),
            (16, None, 256),
            (64, Some(0), 64),
        ] {
            assert_eq!(micro_batch(network(width), cache, false), wanted, "width {width}, cache {cache:?}");
        }
        assert_eq!(micro_batch(network(64), Some(50 << 20), true), 512);
        assert_eq!(micro_batch(network(16), Some(50 << 20), true), 256);
    }
}
