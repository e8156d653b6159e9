//! What a train pass launches for each layer, both ways.

use super::{BackwardRequest, TrainPass};
use crate::cuda::driver::{Address, Buffer, Driver};
use crate::cuda::launch::conv::{
    self, ConvShape, ForwardEpilogue, InputGradientEpilogue, Mask, Product, Reduction, SetStatistics,
};
use crate::cuda::launch::head::{self, HeadBackwardParams, HeadForwardParams, HeadWeightGradientParams};
use crate::cuda::launch::norm::{
    self, ApplyParams, NormBackwardParams, NormFinishParams, NormSumsParams, StatisticsParams,
};
use crate::cuda::layout::{self, Layout};
use crate::cuda::parameters::Parameters;
use crate::cuda::scratch::Scratch;
use crate::engine::{Error, Result};
use crate::model::layers::{BN_EPSILON, BN_MOMENTUM};
use crate::model::pass::{Backward, Forward};
use crate::model::{Layer, Residual};

/// What both ways launch with.
pub struct TrainLaunches<'a> {
    pub pass: &'a TrainPass,
    pub parameters: &'a Parameters,
    pub scratch: &'a Scratch,
    /// Images of a set.
    pub batch: usize,
}

impl TrainLaunches<'_> {
    fn driver(&self) -> &dyn Driver {
        &*self.pass.driver
    }
    fn layout(&self) -> &Layout {
        &self.parameters.layout
    }
    /// Of all sets together.
    fn shape(&self, at: usize) -> ConvShape {
        layout::shape(self.layout(), at, self.pass.sets * self.batch)
    }
    fn set_shape(&self, at: usize) -> ConvShape {
        layout::shape(self.layout(), at, self.batch)
    }
    /// As the launches count them.
    fn sets(&self) -> u32 {
        self.pass.sets as u32
    }
    fn weights(&self, at: usize) -> Address {
        self.parameters.copies.address().offset::<u16>(layout::packed_offset(self.layout(), at))
    }
    fn live(&self, element: usize) -> Address {
        self.parameters.live.address().offset::<f32>(element)
    }
    fn statistics(&self, at: usize) -> Address {
        let channels = self.pass.sets * self.layout().convs[at].channel;
        self.pass.statistics.address().offset::<f32>(4 * channels)
    }
    fn gradient(&self, element: usize) -> Address {
        self.parameters.gradients.address().offset::<f32>(element)
    }
    /// What a convolution reads.
    fn input(&self, input: Option<usize>) -> Address {
        input.map_or(&self.pass.packed, |input| &self.pass.activations[input].values).address()
    }
    /// Index of the last layer, and of a set the elements of its activation and of their average.
    fn last(&self) -> (usize, [usize; 2]) {
        let last = self.layout().layers.len() - 1;
        let activation = self.batch * self.layout().activation_len(last);
        (last, [activation, self.batch * self.layout().network.features()])
    }

    /// Convolution `at`, and the statistics of its output.
    fn convolve(&self, at: usize, input: Option<usize>) -> Result<()> {
        self.driver().layer(Some(at));
        let (set, slot) = (self.set_shape(at), &self.layout().convs[at]);
        let (rows, channels) = (set.output_rows(), set.out_channels);
        let SetStatistics { launches, shape, tile_rows, tiles } =
            SetStatistics::new(self.driver(), self.pass.sets, &set);
        let (partials, output) = (self.scratch.partials.address(), self.pass.convolutions[at].address());
        for set in 0..launches {
            let partials = partials.offset::<f32>(set * tiles * 2 * channels);
            let epilogue = ForwardEpilogue::Statistics { partials };
            let from = self.input(input).offset::<u16>(set * shape.input_len());
            let to = output.offset::<u16>(set * shape.output_len());
            let product = Product { shape: &shape, from, weights: self.weights(at), to };
            conv::forward(self.driver(), Reduction::Split, product, &epilogue)?;
        }
        let params = StatisticsParams {
            partials,
            gamma: self.live(slot.bn_weight),
            beta: self.live(slot.bn_bias),
            running_mean: self.live(slot.running_mean),
            running_variance: self.live(slot.running_var),
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

    /// From the gradient after a BatchNorm to that of the output of convolution `at`, in [`Scratch::convolution`].
    fn normalise_backward(&self, at: usize, from: &Buffer, parameters: Option<bool>) -> Result<()> {
        self.driver().layer(Some(at));
        let (set, slot) = (self.set_shape(at), &self.layout().convs[at]);
        let (rows, channels) = (set.output_rows() as u32, set.out_channels as u32);
        let (g, y) = (from.address(), self.pass.convolutions[at].address());
        let (statistics, partials) = (self.statistics(at), self.scratch.partials.address());
        let (coefficients, dy) = (self.scratch.coefficients.address(), self.scratch.convolution.address());
        let vectors = rows * channels / 8;

        let rows_per_block = norm::backward_rows_per_block(channels);
        let sums = NormSumsParams { g, y, statistics, partials, rows, rows_per_block, channels, padding: 0 };
        norm::batch_norm_backward_sums(self.driver(), self.sets(), &sums)?;

        let expected = |element| if parameters.is_some() { self.gradient(element) } else { Address::NULL };
        let finish = NormFinishParams {
            partials,
            statistics,
            gamma: self.live(slot.bn_weight),
            gamma_gradient: expected(slot.bn_weight),
            beta_gradient: expected(slot.bn_bias),
            coefficients,
            sets: self.sets(),
            blocks: norm::backward_blocks(rows, channels),
            rows,
            channels,
            accumulate: parameters.unwrap_or(false).into(),
            padding: 0,
        };
        norm::batch_norm_backward_finish(self.driver(), &finish)?;

        let apply = NormBackwardParams { g, y, statistics, coefficients, dy, vectors, channels };
        norm::batch_norm_backward_apply(self.driver(), self.sets(), &apply)
    }

    fn weight_gradient(&self, at: usize, input: Option<usize>, accumulate: bool) -> Result<()> {
        self.driver().layer(Some(at));
        let target = self.gradient(self.layout().convs[at].weight);
        let (input, from) = (self.input(input), self.scratch.convolution.address());
        let workspace = self.scratch.partials.address();
        conv::weight_gradient(self.driver(), &self.shape(at), input, from, workspace, target, accumulate)
    }

    fn input_gradient(&self, at: usize, epilogue: &InputGradientEpilogue, to: &Buffer) -> Result<()> {
        self.driver().layer(Some(at));
        let (from, to) = (self.scratch.convolution.address(), to.address());
        let product = Product { shape: &self.shape(at), from, weights: self.weights(at), to };
        conv::input_gradient(self.driver(), Reduction::Split, product, epilogue)
    }
}

pub struct TrainForward<'a> {
    pub with: TrainLaunches<'a>,
    /// Of each set.
    pub logits: &'a [Address],
}

impl Forward for TrainForward<'_> {
    type Error = Error;

    fn convolution(&mut self, layer: &Layer) -> Result<()> {
        self.with.convolve(layer.conv, layer.input)
    }

    fn projection(&mut self, _: &Layer, conv: usize, input: usize) -> Result<()> {
        self.with.convolve(conv, Some(input))
    }

    fn activation(&mut self, layer: &Layer) -> Result<()> {
        let with = &self.with;
        with.driver().layer(Some(layer.conv));
        let (set, to) = (with.set_shape(layer.conv), &with.pass.activations[layer.index]);
        let (residual, residual_statistics) = match layer.residual {
            Residual::None => (Address::NULL, Address::NULL),
            Residual::Identity(from) => (with.input(Some(from)), Address::NULL),
            Residual::Projection { conv, .. } => {
                (with.pass.convolutions[conv].address(), with.statistics(conv))
            }
        };
        let params = ApplyParams {
            y: with.pass.convolutions[layer.conv].address(),
            statistics: with.statistics(layer.conv),
            residual,
            residual_statistics,
            out: to.values.address(),
            mask: to.mask.address(),
            vectors: (set.output_len() / 8) as u32,
            channels: set.out_channels as u32,
        };
        norm::batch_norm_relu(with.driver(), with.sets(), &params)
    }

    fn head(&mut self) -> Result<()> {
        let with = &self.with;
        with.driver().layer(None);
        let network = with.layout().network;
        let (weight, bias) = with.parameters.live_linear();
        let (last, [activation, pooled]) = with.last();
        for (set, logits) in self.logits.iter().enumerate() {
            let params = HeadForwardParams {
                activation: with.input(Some(last)).offset::<u16>(set * activation),
                weight,
                bias,
                pooled: with.pass.features.address().offset::<f32>(set * pooled),
                logits: *logits,
                features: network.features() as u32,
                classes: network.classes as u32,
            };
            head::head_forward(with.driver(), with.batch, &params)?;
        }
        Ok(())
    }
}

pub struct TrainBackward<'a> {
    pub with: TrainLaunches<'a>,
    /// Of each set.
    pub logit_gradients: &'a [Address],
    pub expected: &'a BackwardRequest,
}

impl Backward for TrainBackward<'_> {
    type Error = Error;

    fn head(&mut self) -> Result<()> {
        let with = &self.with;
        let layout = with.layout();
        let (features, classes) = (layout.network.features() as u32, layout.network.classes as u32);
        let (last, [activation, pooled]) = with.last();
        let gradient = with.scratch.layer(&layout.layers[last]).address();
        for (set, &logit_gradient) in self.logit_gradients.iter().enumerate() {
            if let Some(accumulate) = self.expected.parameters {
                let params = HeadWeightGradientParams {
                    logit_gradient,
                    pooled: with.pass.features.address().offset::<f32>(set * pooled),
                    weight_gradient: with.gradient(layout.linear_weight),
                    bias_gradient: with.gradient(layout.linear_bias),
                    batch: with.batch as u32,
                    features,
                    classes,
                    accumulate: (accumulate || set > 0).into(),
                };
                head::head_weight_gradient(with.driver(), &params)?;
            }
            let params = HeadBackwardParams {
                logit_gradient,
                weight: with.parameters.live_linear().0,
                mask: with.pass.activations[last].mask.address() + set * activation / 8,
                gradient: gradient.offset::<u16>(set * activation),
                features,
                classes,
            };
            head::head_input_gradient(with.driver(), with.batch, &params)?;
        }
        Ok(())
    }

    fn normalisation(&mut self, layer: &Layer, conv: usize, input: Option<usize>) -> Result<()> {
        let (with, parameters) = (&self.with, self.expected.parameters);
        with.normalise_backward(conv, with.scratch.layer(layer), parameters)?;
        parameters.map_or(Ok(()), |accumulate| with.weight_gradient(conv, input, accumulate))
    }

    fn input_gradient(&mut self, layer: &Layer, input: usize) -> Result<()> {
        let (with, layers) = (&self.with, &self.with.layout().layers);
        let residual = layer.skip.map(|join| match layers[join].residual {
            Residual::Projection { .. } => with.scratch.compact.address(),
            _ => with.scratch.layer(&layers[join]).address(),
        });
        let mask = Some(Mask::plain(with.pass.activations[input].mask.address()));
        let epilogue = InputGradientEpilogue { residual, mask };
        with.input_gradient(layer.conv, &epilogue, with.scratch.layer(&layers[input]))
    }

    fn projection_gradient(&mut self, _: &Layer, conv: usize, _: usize) -> Result<()> {
        self.with.input_gradient(conv, &InputGradientEpilogue::default(), &self.with.scratch.compact)
    }

    fn image_gradient(&mut self) -> Result<()> {
        let Some(image) = &self.expected.image else { return Ok(()) };
        let with = &self.with;
        with.driver().layer(Some(0));
        let from = with.scratch.convolution.address();
        conv::image_gradient(with.driver(), &with.shape(0), from, with.weights(0), image)
    }
}
