//! The train pass: batch statistics, forward and back to parameters and image.
//!
//! A convolution's epilogue leaves partial statistics of its output; the normalisation itself, with residual, ReLU and mask,
//! is one elementwise pass behind it. On the way back every gradient that reaches a BatchNorm is already masked by the ReLU
//! behind it. Called by engine.rs; checked by tests/engine_agreement.rs against the reference engine.

use std::rc::Rc;

use super::driver::nvtx::Range;
use super::driver::{Address, Buffer, Driver};
use super::launch::conv::{self, ForwardEpilogue, ImageEpilogue, InputGradientEpilogue};
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

/// What a backward pass of a train slot computes.
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

/// Everything a backward pass needs from the forward pass of one batch.
pub struct TrainPass {
    driver: Rc<dyn Driver>,
    blocks: Vec<Block>,
    /// The stem's input: hi and lo bf16 parts of the image.
    pub packed: Buffer,
    /// Outputs of the convolutions, before BatchNorm.
    convolutions: Vec<Buffer>,
    /// Mean, 1/deviation, scale and shift of every channel.
    statistics: Buffer,
    /// Of the stem and of each block's output, and inside each block.
    outputs: Vec<Activation>,
    inner: Vec<Activation>,
    pooled: Buffer,
    batch: Option<usize>,
}

impl TrainPass {
    pub fn new(driver: &Rc<dyn Driver>, parameters: &Parameters, max_batch: usize) -> Result<Self> {
        let layout = &parameters.layout;
        let blocks = layout.network.blocks();
        let elements = |at: usize| {
            let conv = &layout.convs[at].conv;
            max_batch * conv.out_side() * conv.out_side() * conv.out_channels
        };
        let image = max_batch * IMAGE_SIDE * IMAGE_SIDE * STEM_CHANNELS;
        Ok(Self {
            packed: Buffer::new(driver, "packed images", image * 2)?,
            convolutions: (0..layout.convs.len())
                .map(|at| Buffer::new(driver, "convolution output", elements(at) * 2))
                .collect::<Result<_>>()?,
            statistics: Buffer::new(driver, "batch statistics", layout.channels * 4 * 4)?,
            outputs: std::iter::once(0)
                .chain(blocks.iter().map(|block| block.conv2))
                .map(|at| Activation::new(driver, elements(at)))
                .collect::<Result<_>>()?,
            inner: blocks
                .iter()
                .map(|block| Activation::new(driver, elements(block.conv1)))
                .collect::<Result<_>>()?,
            pooled: Buffer::new(driver, "train features", max_batch * layout.network.features() * 4)?,
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

    /// Logits (`batch x classes`) of the packed images; updates the running statistics.
    pub fn forward(
        &mut self,
        parameters: &mut Parameters,
        scratch: &Scratch,
        batch: usize,
        logits: Address,
    ) -> Result<()> {
        let _range = Range::new("forward");
        self.batch = None;
        parameters.unfold();
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
        let last = self.outputs[self.blocks.len()].values.address();
        let (weight, bias) = parameters.live_linear();
        let network = parameters.layout.network;
        let params = HeadForwardParams {
            activation: last,
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

    /// From the gradient of the logits of the last forward pass to whatever is wanted.
    pub fn backward(
        &self,
        parameters: &Parameters,
        scratch: &Scratch,
        batch: usize,
        logit_gradient: Address,
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
        network.head_backward(logit_gradient, wanted.parameters, scratch.block(self.blocks.len()))?;
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
            let shape = parameters.layout.convs[0].shape(batch);
            let weights = network.weights(0);
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
    batch: usize,
}

impl Walk<'_> {
    fn driver(&self) -> &dyn Driver {
        &*self.pass.driver
    }
    fn shape(&self, at: usize) -> conv::ConvShape {
        self.parameters.layout.convs[at].shape(self.batch)
    }
    fn weights(&self, at: usize) -> Address {
        self.parameters.copies.address().offset::<u16>(self.parameters.layout.convs[at].packed)
    }
    fn statistics(&self, at: usize) -> Address {
        self.pass.statistics.address().offset::<f32>(4 * self.parameters.layout.convs[at].channel)
    }
    fn gradient(&self, element: usize) -> Address {
        self.parameters.gradients.address().offset::<f32>(element)
    }

    /// Convolution `at` of `input`, and the statistics of its output.
    fn convolve(&self, at: usize, input: Address) -> Result<()> {
        self.driver().layer(Some(at));
        let (shape, slot) = (self.shape(at), &self.parameters.layout.convs[at]);
        let partials = self.scratch.partials.address();
        let epilogue = ForwardEpilogue::Statistics { partials };
        let output = self.pass.convolutions[at].address();
        conv::forward(self.driver(), &shape, input, self.weights(at), &epilogue, output)?;
        let live = |element| self.parameters.live.address().offset::<f32>(element);
        let tile_rows = conv::statistics_tile_rows(self.driver(), &shape);
        let params = StatisticsParams {
            partials,
            gamma: live(slot.bn_weight),
            beta: live(slot.bn_bias),
            running_mean: live(slot.running_mean),
            running_variance: live(slot.running_var),
            statistics: self.statistics(at),
            rows: shape.output_rows() as u32,
            tile_rows: tile_rows as u32,
            tiles: shape.output_rows().div_ceil(tile_rows) as u32,
            channels: shape.out_channels as u32,
            epsilon: BN_EPSILON,
            momentum: BN_MOMENTUM,
        };
        norm::batch_norm_statistics(self.driver(), &params)
    }

    /// Normalises the output of convolution `at`, adds the residual, applies the ReLU.
    fn normalise(&self, at: usize, residual: Residual, to: &Activation) -> Result<()> {
        self.driver().layer(Some(at));
        let shape = self.shape(at);
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
            vectors: (shape.output_rows() * shape.out_channels / 8) as u32,
            channels: shape.out_channels as u32,
        };
        norm::batch_norm_relu(self.driver(), &params)
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
        let (shape, slot) = (self.shape(at), &self.parameters.layout.convs[at]);
        let (rows, channels) = (shape.output_rows() as u32, shape.out_channels as u32);
        let (g, y) = (from.address(), self.pass.convolutions[at].address());
        let (statistics, partials) = (self.statistics(at), self.scratch.partials.address());
        let coefficients = self.scratch.coefficients.address();
        let vectors = rows * channels / 8;

        let rows_per_block = norm::backward_rows_per_block(channels);
        let sums = NormSumsParams { g, y, statistics, partials, rows, rows_per_block, channels, padding: 0 };
        norm::batch_norm_backward_sums(self.driver(), &sums)?;

        let wanted = |element| if parameters.is_some() { self.gradient(element) } else { Address::NULL };
        let finish = NormFinishParams {
            partials,
            statistics,
            gamma: self.parameters.live.address().offset::<f32>(slot.bn_weight),
            gamma_gradient: wanted(slot.bn_weight),
            beta_gradient: wanted(slot.bn_bias),
            coefficients,
            blocks: norm::backward_blocks(rows, channels),
            rows,
            channels,
            accumulate: parameters.unwrap_or(false).into(),
        };
        norm::batch_norm_backward_finish(self.driver(), &finish)?;

        let apply =
            NormBackwardParams { g, y, statistics, coefficients, dy: to.address(), vectors, channels };
        norm::batch_norm_backward_apply(self.driver(), &apply)
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

    fn head_backward(&self, logit_gradient: Address, parameters: Option<bool>, to: &Buffer) -> Result<()> {
        let layout = &self.parameters.layout;
        let (features, classes) = (layout.network.features() as u32, layout.network.classes as u32);
        if let Some(accumulate) = parameters {
            let params = HeadWeightGradientParams {
                logit_gradient,
                pooled: self.pass.pooled.address(),
                weight_gradient: self.gradient(layout.linear_weight),
                bias_gradient: self.gradient(layout.linear_bias),
                batch: self.batch as u32,
                features,
                classes,
                accumulate: accumulate.into(),
            };
            head::head_weight_gradient(self.driver(), &params)?;
        }
        let params = HeadBackwardParams {
            logit_gradient,
            weight: self.parameters.live_linear().0,
            mask: self.pass.outputs[self.pass.blocks.len()].mask.address(),
            gradient: to.address(),
            features,
            classes,
        };
        head::head_input_gradient(self.driver(), self.batch, &params)
    }
}
