//! The train pass: batch statistics, forward and back to parameters and image.
//!
//! A convolution's epilogue leaves partial statistics of its output; the normalisation itself, with residual, ReLU and mask,
//! is one elementwise pass behind it. On the way back every gradient that reaches a BatchNorm is already masked by the ReLU
//! behind it.
//!
//! A pass may hold several sets of images, one behind the other in every buffer: to all but BatchNorm, which keeps statistics
//! for each, they are one batch. Called by engine.rs and paired_passes.rs; checked by tests/engine_agreement.rs against the
//! reference engine, and by tests/paired_passes.rs.

use std::rc::Rc;

use super::driver::nvtx::Range;
use super::driver::{Address, Buffer, Driver};
use super::launch::attack;
use super::launch::conv::{self, ConvShape, ForwardEpilogue, ImageEpilogue, InputGradientEpilogue};
use super::launch::head::{self, HeadBackwardParams, HeadForwardParams, HeadWeightGradientParams};
use super::launch::norm::{
    self, ApplyParams, NormBackwardParams, NormFinishParams, NormSumsParams, StatisticsParams,
};
use super::layout::STEM_CHANNELS;
use super::parameters::Parameters;
use super::scratch::Scratch;
use crate::engine::{Error, Result};
use crate::model::Block;
use crate::model::layers::{BN_EPSILON, BN_MOMENTUM, IMAGE_SIDE};

/// What a backward pass computes.
pub struct Wanted<'a> {
    /// Parameter gradients; `Some(true)` adds them to those already there.
    pub parameters: Option<bool>,
    /// The image's gradient or what is made of it.
    pub image: Option<&'a ImageEpilogue>,
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

    /// The weights changed: the last forward pass is of others.
    pub fn forget(&mut self) {
        self.batch = None;
    }

    /// For each set the logits (`batch x classes`) of its images; updates the running statistics, by one set after another.
    pub fn forward(
        &mut self,
        parameters: &mut Parameters,
        scratch: &Scratch,
        batch: usize,
        images: &[Address],
        logits: &[Address],
    ) -> Result<()> {
        let _range = Range::new("forward");
        self.batch = None;
        parameters.unfold();
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
        network.head_forward(logits)?;
        self.batch = Some(batch);
        Ok(())
    }

    /// From the gradients of the logits of the last forward pass, one for each set, to whatever is wanted, over all sets.
    pub fn backward(
        &self,
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
        if let Some(image) = wanted.image {
            self.driver.layer(Some(0));
            let (shape, weights) = (network.shape(0), network.weights(0));
            conv::image_gradient(&*self.driver, &shape, convolution.address(), weights, image)?;
        }
        self.driver.layer(None);
        Ok(())
    }
}

/// What is added to a normalised convolution.
enum Residual {
    None,
    /// The block's input.
    Activation(Address),
    /// The convolution of the shortcut, normalised on the way.
    Normalised(usize),
}

/// One pass over the network, layer by layer.
struct Walk<'a> {
    pass: &'a TrainPass,
    parameters: &'a Parameters,
    scratch: &'a Scratch,
    /// Images of a set.
    batch: usize,
}

impl Walk<'_> {
    fn driver(&self) -> &dyn Driver {
        &*self.pass.driver
    }
    /// Of all sets together.
    fn shape(&self, at: usize) -> ConvShape {
        self.parameters.layout.convs[at].shape(self.pass.sets * self.batch)
    }
    fn set_shape(&self, at: usize) -> ConvShape {
        self.parameters.layout.convs[at].shape(self.batch)
    }
    /// As the launches count them.
    fn sets(&self) -> u32 {
        self.pass.sets as u32
    }
    fn weights(&self, at: usize) -> Address {
        self.parameters.copies.address().offset::<u16>(self.parameters.layout.convs[at].packed)
    }
    fn statistics(&self, at: usize) -> Address {
        let channels = self.pass.sets * self.parameters.layout.convs[at].channel;
        self.pass.statistics.address().offset::<f32>(4 * channels)
    }
    fn gradient(&self, element: usize) -> Address {
        self.parameters.gradients.address().offset::<f32>(element)
    }

    /// Convolution `at` of `input`, and the statistics of its output.
    fn convolve(&self, at: usize, input: Address) -> Result<()> {
        self.driver().layer(Some(at));
        let (set, slot) = (self.set_shape(at), &self.parameters.layout.convs[at]);
        let (rows, channels) = (set.output_rows(), set.out_channels);
        let tile_rows = |shape: &ConvShape| conv::statistics_tile_rows(self.driver(), shape);
        // One launch, or one for each set where a tile of partial statistics would lie in two of them.
        let (launches, shape) = match self.shape(at) {
            all if rows.is_multiple_of(tile_rows(&all)) => (1, all),
            _ => (self.pass.sets, set),
        };
        let tile_rows = tile_rows(&shape);
        let tiles = rows.div_ceil(tile_rows);
        let (partials, output) = (self.scratch.partials.address(), self.pass.convolutions[at].address());
        for set in 0..launches {
            let partials = partials.offset::<f32>(set * tiles * 2 * channels);
            let epilogue = ForwardEpilogue::Statistics { partials };
            let input = input.offset::<u16>(set * shape.input_len());
            let output = output.offset::<u16>(set * shape.output_len());
            conv::forward(self.driver(), &shape, input, self.weights(at), &epilogue, output)?;
        }
        let live = |element| self.parameters.live.address().offset::<f32>(element);
        let params = StatisticsParams {
            partials,
            gamma: live(slot.bn_weight),
            beta: live(slot.bn_bias),
            running_mean: live(slot.running_mean),
            running_variance: live(slot.running_var),
            statistics: self.statistics(at),
            sets: self.sets(),
            rows: rows as u32,
            tile_rows: tile_rows as u32,
            tiles: tiles as u32,
            channels: channels as u32,
            epsilon: BN_EPSILON,
            momentum: BN_MOMENTUM,
            padding: 0,
        };
        norm::batch_norm_statistics(self.driver(), &params)
    }

    /// Normalises the output of convolution `at`, adds the residual, applies the ReLU.
    fn normalise(&self, at: usize, residual: Residual, to: &Activation) -> Result<()> {
        self.driver().layer(Some(at));
        let set = self.set_shape(at);
        let (residual, residual_statistics) = match residual {
            Residual::None => (Address::NULL, Address::NULL),
            Residual::Activation(values) => (values, Address::NULL),
            Residual::Normalised(at) => (self.pass.convolutions[at].address(), self.statistics(at)),
        };
        let params = ApplyParams {
            y: self.pass.convolutions[at].address(),
            statistics: self.statistics(at),
            residual,
            residual_statistics,
            out: to.values.address(),
            mask: to.mask.address(),
            vectors: (set.output_len() / 8) as u32,
            channels: set.out_channels as u32,
        };
        norm::batch_norm_relu(self.driver(), self.sets(), &params)
    }

    /// From the gradient behind a BatchNorm to that of the convolution's output.
    fn normalise_backward(
        &self,
        at: usize,
        from: &Buffer,
        to: &Buffer,
        parameters: Option<bool>,
    ) -> Result<()> {
        self.driver().layer(Some(at));
        let (set, slot) = (self.set_shape(at), &self.parameters.layout.convs[at]);
        let (rows, channels) = (set.output_rows() as u32, set.out_channels as u32);
        let (g, y) = (from.address(), self.pass.convolutions[at].address());
        let (statistics, partials) = (self.statistics(at), self.scratch.partials.address());
        let coefficients = self.scratch.coefficients.address();
        let vectors = rows * channels / 8;

        let rows_per_block = norm::backward_rows_per_block(channels);
        let sums = NormSumsParams { g, y, statistics, partials, rows, rows_per_block, channels, padding: 0 };
        norm::batch_norm_backward_sums(self.driver(), self.sets(), &sums)?;

        let wanted = |element| if parameters.is_some() { self.gradient(element) } else { Address::NULL };
        let finish = NormFinishParams {
            partials,
            statistics,
            gamma: self.parameters.live.address().offset::<f32>(slot.bn_weight),
            gamma_gradient: wanted(slot.bn_weight),
            beta_gradient: wanted(slot.bn_bias),
            coefficients,
            sets: self.sets(),
            blocks: norm::backward_blocks(rows, channels),
            rows,
            channels,
            accumulate: parameters.unwrap_or(false).into(),
            padding: 0,
        };
        norm::batch_norm_backward_finish(self.driver(), &finish)?;

        let apply =
            NormBackwardParams { g, y, statistics, coefficients, dy: to.address(), vectors, channels };
        norm::batch_norm_backward_apply(self.driver(), self.sets(), &apply)
    }

    fn weight_gradient(
        &self,
        at: usize,
        input: Address,
        output_gradient: &Buffer,
        parameters: Option<bool>,
    ) -> Result<()> {
        let Some(accumulate) = parameters else { return Ok(()) };
        self.driver().layer(Some(at));
        let target = self.gradient(self.parameters.layout.convs[at].weight);
        let workspace = self.scratch.partials.address();
        let from = output_gradient.address();
        conv::weight_gradient(self.driver(), &self.shape(at), input, from, workspace, target, accumulate)
    }

    fn input_gradient(
        &self,
        at: usize,
        from: &Buffer,
        residual: Option<&Buffer>,
        mask: Option<&Buffer>,
        to: &Buffer,
    ) -> Result<()> {
        self.driver().layer(Some(at));
        let epilogue = InputGradientEpilogue {
            residual: residual.map(Buffer::address),
            mask: mask.map(Buffer::address),
        };
        let (from, to) = (from.address(), to.address());
        conv::input_gradient(self.driver(), &self.shape(at), from, self.weights(at), &epilogue, to)
    }

    /// Of a set: elements of the last activation, and of its average.
    fn head_lens(&self) -> [usize; 2] {
        let network = self.parameters.layout.network;
        let last = self.pass.blocks[self.pass.blocks.len() - 1].conv2;
        [self.set_shape(last).output_len(), self.batch * network.features()]
    }

    /// The logits of each set.
    fn head_forward(&self, logits: &[Address]) -> Result<()> {
        let network = self.parameters.layout.network;
        let (weight, bias) = self.parameters.live_linear();
        let [activation, pooled] = self.head_lens();
        for (set, logits) in logits.iter().enumerate() {
            let last = self.pass.outputs[self.pass.blocks.len()].values.address();
            let params = HeadForwardParams {
                activation: last.offset::<u16>(set * activation),
                weight,
                bias,
                pooled: self.pass.pooled.address().offset::<f32>(set * pooled),
                logits: *logits,
                features: network.features() as u32,
                classes: network.classes as u32,
            };
            head::head_forward(self.driver(), self.batch, &params)?;
        }
        Ok(())
    }

    /// From the gradients of the logits of each set to that of the last activation.
    fn head_backward(
        &self,
        logit_gradients: &[Address],
        parameters: Option<bool>,
        to: &Buffer,
    ) -> Result<()> {
        let layout = &self.parameters.layout;
        let (features, classes) = (layout.network.features() as u32, layout.network.classes as u32);
        let [activation, pooled] = self.head_lens();
        for (set, &logit_gradient) in logit_gradients.iter().enumerate() {
            if let Some(accumulate) = parameters {
                let params = HeadWeightGradientParams {
                    logit_gradient,
                    pooled: self.pass.pooled.address().offset::<f32>(set * pooled),
                    weight_gradient: self.gradient(layout.linear_weight),
                    bias_gradient: self.gradient(layout.linear_bias),
                    batch: self.batch as u32,
                    features,
                    classes,
                    accumulate: (accumulate || set > 0).into(),
                };
                head::head_weight_gradient(self.driver(), &params)?;
            }
            let mask = self.pass.outputs[self.pass.blocks.len()].mask.address();
            let params = HeadBackwardParams {
                logit_gradient,
                weight: self.parameters.live_linear().0,
                mask: mask + set * activation / 8,
                gradient: to.address().offset::<u16>(set * activation),
                features,
                classes,
            };
            head::head_input_gradient(self.driver(), self.batch, &params)?;
        }
        Ok(())
    }
}
