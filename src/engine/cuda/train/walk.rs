//! The operations of a train pass on one layer: what each of the two walks over the network is made of.

use super::{Activation, TrainPass};
use crate::engine::Result;
use crate::engine::cuda::driver::{Address, Buffer, Driver};
use crate::engine::cuda::launch::conv::{
    self, ConvShape, ForwardEpilogue, InputGradientEpilogue, SetStatistics,
};
use crate::engine::cuda::launch::head::{
    self, HeadBackwardParams, HeadForwardParams, HeadWeightGradientParams,
};
use crate::engine::cuda::launch::norm::{
    self, ApplyParams, NormBackwardParams, NormFinishParams, NormSumsParams, StatisticsParams,
};
use crate::engine::cuda::parameters::Parameters;
use crate::engine::cuda::scratch::Scratch;
use crate::model::layers::{BN_EPSILON, BN_MOMENTUM};

/// What is added to a normalised convolution.
pub enum Residual {
    None,
    /// The block's input.
    Activation(Address),
    /// The convolution of the shortcut, normalised on the way.
    Normalised(usize),
}

/// One pass over the network, layer by layer.
pub struct Walk<'a> {
    pub pass: &'a TrainPass,
    pub parameters: &'a Parameters,
    pub scratch: &'a Scratch,
    /// Images of a set.
    pub batch: usize,
}

impl Walk<'_> {
    fn driver(&self) -> &dyn Driver {
        &*self.pass.driver
    }
    /// Of all sets together.
    pub fn shape(&self, at: usize) -> ConvShape {
        self.parameters.layout.convs[at].shape(self.pass.sets * self.batch)
    }
    fn set_shape(&self, at: usize) -> ConvShape {
        self.parameters.layout.convs[at].shape(self.batch)
    }
    /// As the launches count them.
    fn sets(&self) -> u32 {
        self.pass.sets as u32
    }
    pub fn weights(&self, at: usize) -> Address {
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
    pub fn convolve(&self, at: usize, input: Address) -> Result<()> {
        self.driver().layer(Some(at));
        let (set, slot) = (self.set_shape(at), &self.parameters.layout.convs[at]);
        let (rows, channels) = (set.output_rows(), set.out_channels);
        let SetStatistics { launches, shape, tile_rows, tiles } =
            SetStatistics::new(self.driver(), self.pass.sets, &set);
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
    pub fn normalise(&self, at: usize, residual: Residual, to: &Activation) -> Result<()> {
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
    pub fn normalise_backward(
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

    pub fn weight_gradient(
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

    pub fn input_gradient(
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
    pub fn head_forward(&self, logits: &[Address]) -> Result<()> {
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
    pub fn head_backward(
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
