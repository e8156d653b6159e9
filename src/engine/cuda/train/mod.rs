//! The train pass: batch statistics, forward and back to parameters and image.
//!
//! A convolution's epilogue leaves partial statistics of its output; the normalisation itself, with residual, ReLU and mask,
//! is one elementwise pass behind it. On the way back every gradient that reaches a BatchNorm is already masked by the ReLU
//! behind it.
//!
//! A pass may hold several sets of images, one behind the other in every buffer: to all but BatchNorm, which keeps statistics
//! for each, they are one batch. Both ways are recorded and replayed ([`Graphs`]).
//!
//! Called by engine.rs and paired_passes.rs; checked by tests/engine_agreement.rs against the reference engine, and by
//! tests/paired_passes.rs and tests/graphs.rs.

mod walk;

use std::rc::Rc;

use super::driver::nvtx::Range;
use super::driver::{Address, Buffer, Driver};
use super::graphs::Graphs;
use super::launch::attack;
use super::launch::conv::{self, ImageEpilogue};
use super::layout::STEM_CHANNELS;
use super::parameters::Parameters;
use super::scratch::Scratch;
use crate::engine::{Error, Result};
use crate::model::Block;
use crate::model::layers::IMAGE_SIDE;
use walk::{Residual, Walk};

/// What a backward pass computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    /// Parameter gradients; `Some(true)` adds them to those already there.
    pub parameters: Option<bool>,
    /// The image's gradient or what is made of it.
    pub image: Option<ImageEpilogue>,
}

/// Everything that a recorded pass bakes in.
#[derive(Clone, Debug, PartialEq)]
pub struct PassKey {
    /// Which pass: where its packed images lie.
    pass: Address,
    batch: usize,
    /// Of each set the images and the logits of a forward pass, or the gradients of the logits.
    operands: Vec<Address>,
    /// What a backward pass computes.
    wanted: Option<Wanted>,
}

/// An activation behind a ReLU, and which of its elements are positive.
struct Activation {
    values: Buffer,
    mask: Buffer,
}

impl Activation {
    fn new(driver: &Rc<dyn Driver>, elements: usize) -> Result<Self> {
        Ok(Self {
            values: Buffer::new(driver, "train activation", elements * 2)?,
            mask: Buffer::new(driver, "train mask", elements / 8)?,
        })
    }
}

/// Everything a backward pass needs from the forward pass of one batch, or of several.
pub struct TrainPass {
    driver: Rc<dyn Driver>,
    blocks: Vec<Block>,
    sets: usize,
    /// The stem's input: hi and lo bf16 parts of the image.
    packed: Buffer,
    /// Outputs of the convolutions, before BatchNorm.
    convolutions: Vec<Buffer>,
    /// For each convolution and set mean, 1/deviation, scale and shift of every channel.
    statistics: Buffer,
    /// Of the stem and of each block's output, and inside each block.
    outputs: Vec<Activation>,
    inner: Vec<Activation>,
    pooled: Buffer,
    /// Images of each set in the last forward pass.
    batch: Option<usize>,
}

impl TrainPass {
    /// For `sets` sets of up to `max_batch` images.
    pub fn new(
        driver: &Rc<dyn Driver>,
        parameters: &Parameters,
        sets: usize,
        max_batch: usize,
    ) -> Result<Self> {
        let layout = &parameters.layout;
        let blocks = layout.network.blocks();
        let images = sets * max_batch;
        let elements = |at: usize| layout.convs[at].shape(images).output_len();
        let image = images * IMAGE_SIDE * IMAGE_SIDE * STEM_CHANNELS;
        Ok(Self {
            packed: Buffer::new(driver, "packed images", image * 2)?,
            convolutions: (0..layout.convs.len())
                .map(|at| Buffer::new(driver, "convolution output", elements(at) * 2))
                .collect::<Result<_>>()?,
            statistics: Buffer::new(driver, "batch statistics", sets * layout.channels * 4 * 4)?,
            outputs: std::iter::once(0)
                .chain(blocks.iter().map(|block| block.conv2))
                .map(|at| Activation::new(driver, elements(at)))
                .collect::<Result<_>>()?,
            inner: blocks
                .iter()
                .map(|block| Activation::new(driver, elements(block.conv1)))
                .collect::<Result<_>>()?,
            pooled: Buffer::new(driver, "train features", images * layout.network.features() * 4)?,
            driver: driver.clone(),
            blocks,
            sets,
            batch: None,
        })
    }

    /// Images of each set in the last forward pass, and what its last layer saw: f32, `sets x batch x features`.
    pub fn features(&self) -> Option<(usize, Address)> {
        self.batch.map(|batch| (batch, self.pooled.address()))
    }

    /// For each set the logits (`batch x classes`) of its images; updates the running statistics, by one set after another.
    pub fn forward(
        &mut self,
        graphs: &mut Graphs<PassKey>,
        parameters: &Parameters,
        scratch: &Scratch,
        batch: usize,
        images: &[Address],
        logits: &[Address],
    ) -> Result<()> {
        let _range = Range::new("forward");
        self.batch = None;
        let key = self.key(batch, [images, logits].concat(), None);
        graphs.run(&*self.driver, key, || self.launch_forward(parameters, scratch, batch, images, logits))?;
        self.batch = Some(batch);
        Ok(())
    }

    fn key(&self, batch: usize, operands: Vec<Address>, wanted: Option<Wanted>) -> PassKey {
        PassKey { pass: self.packed.address(), batch, operands, wanted }
    }

    fn launch_forward(
        &self,
        parameters: &Parameters,
        scratch: &Scratch,
        batch: usize,
        images: &[Address],
        logits: &[Address],
    ) -> Result<()> {
        for (set, images) in images.iter().enumerate() {
            let packed = self
                .packed
                .address()
                .offset::<u16>(set * parameters.layout.convs[0].shape(batch).input_len());
            attack::image_pack(&*self.driver, batch, *images, packed)?;
        }
        let network = Walk { pass: self, parameters, scratch, batch };
        network.convolve(0, self.packed.address())?;
        network.normalise(0, Residual::None, &self.outputs[0])?;
        for (number, block) in self.blocks.iter().enumerate() {
            let input = self.outputs[number].values.address();
            network.convolve(block.conv1, input)?;
            network.normalise(block.conv1, Residual::None, &self.inner[number])?;
            network.convolve(block.conv2, self.inner[number].values.address())?;
            let residual = match block.shortcut {
                Some(at) => {
                    network.convolve(at, input)?;
                    Residual::Normalised(at)
                }
                None => Residual::Activation(input),
            };
            network.normalise(block.conv2, residual, &self.outputs[number + 1])?;
        }
        self.driver.layer(None);
        network.head_forward(logits)
    }

    /// From the gradients of the logits of the last forward pass, one for each set, to whatever is wanted, over all sets.
    pub fn backward(
        &self,
        graphs: &mut Graphs<PassKey>,
        parameters: &Parameters,
        scratch: &Scratch,
        batch: usize,
        logit_gradients: &[Address],
        wanted: &Wanted,
    ) -> Result<()> {
        if self.batch != Some(batch) {
            let of = self.batch.map_or("none".into(), |batch| format!("one of {batch} images"));
            return Err(Error::Invalid(format!(
                "gradients of {batch} images in a train pass: the last forward pass was {of}"
            )));
        }
        let _range = Range::new("backward");
        let key = self.key(batch, logit_gradients.to_vec(), Some(*wanted));
        graphs.run(&*self.driver, key, || {
            self.launch_backward(parameters, scratch, batch, logit_gradients, wanted)
        })
    }

    fn launch_backward(
        &self,
        parameters: &Parameters,
        scratch: &Scratch,
        batch: usize,
        logit_gradients: &[Address],
        wanted: &Wanted,
    ) -> Result<()> {
        let network = Walk { pass: self, parameters, scratch, batch };
        network.head_backward(logit_gradients, wanted.parameters, scratch.block(self.blocks.len()))?;
        let convolution = &scratch.convolution;
        for (number, block) in self.blocks.iter().enumerate().rev() {
            let output = scratch.block(number + 1);
            let (input, inner) = (&self.outputs[number], &self.inner[number]);

            network.normalise_backward(block.conv2, output, convolution, wanted.parameters)?;
            network.weight_gradient(block.conv2, inner.values.address(), convolution, wanted.parameters)?;
            network.input_gradient(block.conv2, convolution, None, Some(&inner.mask), &scratch.inner)?;

            // The shortcut comes before conv1, whose epilogue adds its gradient; it leaves `scratch.inner` alone.
            let residual = match block.shortcut {
                Some(at) => {
                    network.normalise_backward(at, output, convolution, wanted.parameters)?;
                    network.weight_gradient(at, input.values.address(), convolution, wanted.parameters)?;
                    network.input_gradient(at, convolution, None, None, &scratch.compact)?;
                    &scratch.compact
                }
                None => output,
            };
            network.normalise_backward(block.conv1, &scratch.inner, convolution, wanted.parameters)?;
            network.weight_gradient(block.conv1, input.values.address(), convolution, wanted.parameters)?;
            let target = scratch.block(number);
            network.input_gradient(block.conv1, convolution, Some(residual), Some(&input.mask), target)?;
        }
        network.normalise_backward(0, scratch.block(0), convolution, wanted.parameters)?;
        network.weight_gradient(0, self.packed.address(), convolution, wanted.parameters)?;
        if let Some(image) = &wanted.image {
            self.driver.layer(Some(0));
            let (shape, weights) = (network.shape(0), network.weights(0));
            conv::image_gradient(&*self.driver, &shape, convolution.address(), weights, image)?;
        }
        self.driver.layer(None);
        Ok(())
    }
}
