//! What an evaluation pass launches for each layer, the first stage chunk by chunk.
//!
//! Where a micro-batch is larger than the cache ([`super::micro_batch()`]), the first stage, which moves the most bytes for its
//! products, takes its images in chunks: all its layers for one chunk, then all for the next. Chunks share the memory
//! of what lies inside the stage. Each image's results are the same bits in any chunk.

use super::{Ascent, EvalPass};
use crate::cuda::driver::nvtx::Range;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::conv::{
    self, ConvShape, ForwardEpilogue, ImageEpilogue, InputGradientEpilogue, Mask, MaskOrder, Product,
    Reduction,
};
use crate::cuda::launch::head::{self, HeadAscentParams, HeadBackwardParams, HeadForwardParams};
use crate::cuda::layout::{self, Layout};
use crate::cuda::parameters::Parameters;
use crate::cuda::scratch::Scratch;
use crate::engine::{Error, Result};
use crate::model::pass::{self, Backward, Forward};
use crate::model::{Layer, Residual};

/// Images of the batch, the first of them and how many.
#[derive(Clone, Copy)]
struct Chunk {
    first: usize,
    images: usize,
}

/// From where a backward pass begins.
#[derive(Clone, Copy)]
pub enum Start {
    /// The gradient of the logits.
    LogitGradient(Address),
    /// The last activation, which goes through the loss.
    Ascent(Ascent),
}

/// One pass over the network.
#[derive(Clone, Copy)]
pub struct EvalLaunches<'a> {
    pub pass: &'a EvalPass,
    pub parameters: &'a Parameters,
    pub scratch: &'a Scratch,
    /// Weight and bias of the linear layer.
    pub linear: (Address, Address),
    pub reduction: Reduction,
    pub batch: usize,
}

impl EvalLaunches<'_> {
    /// The last activation for the packed images, every mask, and where asked for the logits (`images x classes`).
    pub fn forward(self, logits: Option<Address>) -> Result<()> {
        let _range = Range::new("forward");
        let (layers, first) = (&self.layout().layers, self.layout().network.first_stage());
        let on = |chunk| EvalForward { of: OnChunk { all: self, chunk }, logits };
        for chunk in self.chunks() {
            pass::forward(layers, first.clone(), &mut on(chunk))?;
        }
        pass::forward(layers, first.end..layers.len(), &mut on(self.whole()))
    }

    /// From the last activation or the gradient of the logits to the image.
    pub fn backward(self, start: Start, image: &ImageEpilogue) -> Result<()> {
        let _range = Range::new("backward");
        let (layers, first) = (&self.layout().layers, self.layout().network.first_stage());
        let on = |chunk| EvalBackward { of: OnChunk { all: self, chunk }, start, image };
        pass::backward(layers, first.end..layers.len(), &mut on(self.whole()))?;
        for chunk in self.chunks() {
            pass::backward(layers, first.clone(), &mut on(chunk))?;
        }
        self.pass.driver.layer(None);
        Ok(())
    }

    fn layout(&self) -> &Layout {
        &self.parameters.layout
    }

    fn whole(&self) -> Chunk {
        Chunk { first: 0, images: self.batch }
    }

    /// The whole batch, as the first stage takes it.
    fn chunks(&self) -> impl Iterator<Item = Chunk> + use<> {
        let (batch, images) = (self.batch, self.pass.chunk);
        (0..batch).step_by(images).map(move |first| Chunk { first, images: images.min(batch - first) })
    }
}

/// The same on some of the images.
struct OnChunk<'a> {
    all: EvalLaunches<'a>,
    chunk: Chunk,
}

impl OnChunk<'_> {
    fn driver(&self) -> &dyn Driver {
        &*self.all.pass.driver
    }
    fn layer(&self, index: usize) -> &Layer {
        &self.all.layout().layers[index]
    }
    fn shape(&self, at: usize) -> ConvShape {
        layout::shape(self.all.layout(), at, self.chunk.images)
    }
    fn weights(&self, at: usize) -> Address {
        self.all.parameters.folded.address().offset::<u16>(layout::packed_offset(self.all.layout(), at))
    }
    fn bias(&self, at: usize) -> Address {
        self.all.parameters.bias.address().offset::<f32>(self.all.layout().convs[at].channel)
    }
    /// The chunk's bits in the mask of a layer, in the best order for the convolution that reads it; the head reads a plain one.
    fn mask(&self, layer: usize) -> Mask {
        let layout = self.all.layout();
        let address =
            self.all.pass.masks[layer].address() + self.chunk.first * layout.activation_len(layer) / 8;
        let reader = layout.layers.iter().find(|reader| reader.input == Some(layer));
        let order = reader.map_or(MaskOrder::Plain, |reader| {
            MaskOrder::between(self.driver(), &self.shape(self.layer(layer).conv), &self.shape(reader.conv))
        });
        Mask { address, order }
    }

    /// The chunk's activation of a layer, or its gradient. The buffer in which the first stage ends holds all chunks, one after the
    /// other; the others need to hold only one at a time.
    fn activation(&self, layer: usize) -> Address {
        let layout = self.all.layout();
        let ends_in = self.layer(layout.network.first_stage().end - 1).buffer;
        let layer = self.layer(layer);
        let before = if layer.buffer == ends_in { self.chunk.first } else { 0 };
        let address = self.all.scratch.layer(layer).address();
        address.offset::<u16>(before * layout.activation_len(layer.index))
    }

    fn convolve(&self, at: usize, from: Address, epilogue: &ForwardEpilogue, to: Address) -> Result<()> {
        self.driver().layer(Some(at));
        let product = Product { shape: &self.shape(at), from, weights: self.weights(at), to };
        conv::forward(self.driver(), self.all.reduction, product, epilogue)
    }

    fn gradient(
        &self,
        at: usize,
        from: Address,
        epilogue: &InputGradientEpilogue,
        to: Address,
    ) -> Result<()> {
        self.driver().layer(Some(at));
        let product = Product { shape: &self.shape(at), from, weights: self.weights(at), to };
        conv::input_gradient(self.driver(), self.all.reduction, product, epilogue)
    }
}

struct EvalForward<'a> {
    of: OnChunk<'a>,
    logits: Option<Address>,
}

impl Forward for EvalForward<'_> {
    type Error = Error;

    fn convolution(&mut self, _: &Layer) -> Result<()> {
        // One launch with the activation.
        Ok(())
    }

    fn projection(&mut self, _: &Layer, conv: usize, input: usize) -> Result<()> {
        let (from, to) = (self.of.activation(input), self.of.all.scratch.convolution.address());
        self.of.convolve(conv, from, &ForwardEpilogue::Bias { bias: self.of.bias(conv) }, to)
    }

    fn activation(&mut self, layer: &Layer) -> Result<()> {
        let of = &self.of;
        let input = match layer.input {
            Some(input) => of.activation(input),
            None => {
                let before = layout::shape(of.all.layout(), layer.conv, of.chunk.first);
                of.all.pass.packed.address().offset::<u16>(before.input_len())
            }
        };
        let residual = match layer.residual {
            Residual::None => None,
            Residual::Identity(from) => Some(of.activation(from)),
            Residual::Projection { .. } => Some(of.all.scratch.convolution.address()),
        };
        let mask = of.mask(layer.index);
        let epilogue = ForwardEpilogue::Relu { bias: of.bias(layer.conv), residual, mask };
        of.convolve(layer.conv, input, &epilogue, of.activation(layer.index))
    }

    fn head(&mut self) -> Result<()> {
        let of = &self.of;
        of.driver().layer(None);
        let Some(logits) = self.logits else { return Ok(()) };
        let network = of.all.layout().network;
        let params = HeadForwardParams {
            activation: of.activation(of.all.layout().layers.len() - 1),
            weight: of.all.linear.0,
            bias: of.all.linear.1,
            pooled: of.all.pass.features.address(),
            logits,
            features: network.features() as u32,
            classes: network.classes as u32,
        };
        head::head_forward(of.driver(), of.chunk.images, &params)
    }
}

struct EvalBackward<'a> {
    of: OnChunk<'a>,
    start: Start,
    image: &'a ImageEpilogue,
}

impl Backward for EvalBackward<'_> {
    type Error = Error;

    fn head(&mut self) -> Result<()> {
        let of = &self.of;
        let (weight, bias) = of.all.linear;
        let network = of.all.layout().network;
        let (features, classes) = (network.features() as u32, network.classes as u32);
        let last = of.all.layout().layers.len() - 1;
        let gradient = of.activation(last);
        match self.start {
            Start::LogitGradient(logit_gradient) => {
                let mask = of.mask(last).address;
                let params = HeadBackwardParams { logit_gradient, weight, mask, gradient, features, classes };
                head::head_input_gradient(of.driver(), of.chunk.images, &params)
            }
            Start::Ascent(Ascent { loss, operand }) => {
                let (labels, target_logits) = match loss.needs_clean_logits() {
                    true => (Address::NULL, operand),
                    false => (operand, Address::NULL),
                };
                let params = HeadAscentParams {
                    activation: gradient,
                    weight,
                    bias,
                    labels,
                    target_logits,
                    gradient,
                    features,
                    classes,
                };
                head::head_ascent(of.driver(), loss, of.chunk.images, &params)
            }
        }
    }

    fn normalisation(&mut self, _: &Layer, _: usize, _: Option<usize>) -> Result<()> {
        // Folded into the convolution.
        Ok(())
    }

    fn input_gradient(&mut self, layer: &Layer, input: usize) -> Result<()> {
        let of = &self.of;
        let residual = layer.skip.map(|join| match of.layer(join).residual {
            Residual::Projection { .. } => of.all.scratch.compact.address(),
            _ => of.activation(join),
        });
        let epilogue = InputGradientEpilogue { residual, mask: Some(of.mask(input)) };
        of.gradient(layer.conv, of.activation(layer.index), &epilogue, of.activation(input))
    }

    fn projection_gradient(&mut self, layer: &Layer, conv: usize, _: usize) -> Result<()> {
        let to = self.of.all.scratch.compact.address();
        self.of.gradient(conv, self.of.activation(layer.index), &InputGradientEpilogue::default(), to)
    }

    fn image_gradient(&mut self) -> Result<()> {
        let of = &self.of;
        of.driver().layer(Some(0));
        let before = layout::shape(of.all.layout(), 0, of.chunk.first);
        let image = self.image.after(&before);
        conv::image_gradient(of.driver(), &of.shape(0), of.activation(0), of.weights(0), &image)
    }
}
