//! The network in eval mode: BatchNorm folded into the weights; forward and input gradient, no weight gradients.
//!
//! This is what an attack spends its time in. A block's projection shortcut accumulates into the same outputs as its
//! second convolution; biases, residuals and ReLU follow while a task's outputs are in cache. The
//! activations kept for the backward pass serve only through their signs.

use std::convert::Infallible;

use super::arena::Layout;
use super::conv::PackedConv;
use super::memory::Aligned;
use super::numbers::{Format, Numbers};
use super::{head, norm};
use crate::model::pass::{self, Backward, Forward};
use crate::model::{Layer, ResNet, Residual};

/// Folded weights and the state of the last forward pass.
pub struct EvalPass {
    folded: Folded,
    /// One a layer.
    activations: Vec<Aligned>,
    features: Vec<f32>,
    gradients: Gradients,
}

/// Gradients on their way back: [`Layer::buffer`].
pub type Gradients = [Aligned; Layer::BUFFERS];

/// The network with BatchNorm folded into its convolutions.
struct Folded {
    layout: Layout,
    format: Format,
    convs: Vec<PackedConv>,
    biases: Vec<Vec<f32>>,
    linear_weight: Vec<f32>,
    linear_bias: Vec<f32>,
}

impl EvalPass {
    pub fn new(network: ResNet, numbers: Numbers) -> Self {
        let layout = Layout::new(network);
        Self {
            activations: vec![Aligned::default(); layout.layers.len()],
            features: Vec::new(),
            gradients: Default::default(),
            folded: Folded {
                format: numbers.format,
                convs: layout.convs.iter().map(|slot| PackedConv::new(&slot.conv, numbers)).collect(),
                biases: layout.convs.iter().map(|slot| vec![0.0; slot.conv.out_channels]).collect(),
                linear_weight: Vec::new(),
                linear_bias: Vec::new(),
                layout,
            },
        }
    }

    /// What the last layer saw in the last forward pass.
    pub fn features(&self) -> &[f32] {
        &self.features
    }

    /// Folds the running statistics of `arena` into its weights.
    pub fn fold(&mut self, layout: &Layout, arena: &[f32]) {
        let Folded { convs, biases, linear_weight, linear_bias, .. } = &mut self.folded;
        for ((conv, bias), slot) in convs.iter_mut().zip(biases).zip(&layout.convs) {
            let channels = |offset: usize| &arena[offset..][..slot.conv.out_channels];
            let (scale, shift) = norm::fold(
                channels(slot.bn_weight),
                channels(slot.bn_bias),
                channels(slot.running_mean),
                channels(slot.running_var),
            );
            conv.pack(&arena[slot.weight..][..slot.conv.weight_len()], Some(&scale));
            *bias = shift;
        }
        let (weight, bias) = layout.linear(arena);
        (*linear_weight, *linear_bias) = (weight.to_vec(), bias.to_vec());
    }

    /// Logits of `batch` images.
    pub fn forward(&mut self, batch: usize, images: &[f32], logits: &mut [f32]) {
        let Self { folded, activations, features, .. } = self;
        let layout = &folded.layout;
        for (layer, activation) in activations.iter_mut().enumerate() {
            activation.reserve(batch * layout.activation_len(layer));
        }
        features.resize(batch * layout.network.features(), 0.0);
        let mut pass = EvalForward { folded, batch, images, activations, features, logits };
        let Ok(()) = pass::forward(&layout.layers, 0..layout.layers.len(), &mut pass);
    }

    /// Gradient with respect to the images of the last forward pass.
    pub fn input_gradient(&mut self, batch: usize, dlogits: &[f32], dx: &mut [f32]) {
        let Self { folded, activations, gradients, .. } = self;
        let layout = &folded.layout;
        let largest = batch * layout.largest_activation();
        gradients.iter_mut().for_each(|gradient| gradient.reserve(largest));
        let mut pass = EvalBackward { folded, batch, activations, gradients, dlogits, dx };
        let Ok(()) = pass::backward(&layout.layers, 0..layout.layers.len(), &mut pass);
    }
}

struct EvalForward<'a> {
    folded: &'a Folded,
    batch: usize,
    images: &'a [f32],
    activations: &'a mut [Aligned],
    features: &'a mut [f32],
    logits: &'a mut [f32],
}

impl Forward for EvalForward<'_> {
    type Error = Infallible;

    fn convolution(&mut self, _: &Layer) -> Result<(), Infallible> {
        // One with the activation.
        Ok(())
    }

    fn projection(&mut self, layer: &Layer, conv: usize, input: usize) -> Result<(), Infallible> {
        let Folded { format, convs, biases, .. } = self.folded;
        let (conv, bias) = (&convs[conv], &biases[conv]);
        let (before, rest) = self.activations.split_at_mut(layer.index);
        let x = &before[input][..self.batch * conv.conv().input_len()];
        let out = &mut rest[0][..self.batch * conv.conv().output_len()];
        conv.forward(x, out, false, |_, out| project(*format, out, bias));
        Ok(())
    }

    fn activation(&mut self, layer: &Layer) -> Result<(), Infallible> {
        let Folded { format, convs, biases, .. } = self.folded;
        let (format, conv, bias) = (*format, &convs[layer.conv], &biases[layer.conv]);
        let (before, rest) = self.activations.split_at_mut(layer.index);
        let in_len = self.batch * conv.conv().input_len();
        let x = layer.input.map_or(self.images, |input| &before[input][..in_len]);
        let out = &mut rest[0][..self.batch * conv.conv().output_len()];
        match layer.residual {
            Residual::None => conv.forward(x, out, false, |_, out| add_bias(format, out, bias)),
            Residual::Identity(from) => {
                let from = &before[from];
                conv.forward(x, out, false, |first, out| add_residual(format, out, bias, &from[first..]));
            }
            Residual::Projection { .. } => conv.forward(x, out, true, |_, out| add_bias(format, out, bias)),
        }
        Ok(())
    }

    fn head(&mut self) -> Result<(), Infallible> {
        let Folded { layout, linear_weight, linear_bias, .. } = self.folded;
        let last = layout.layers.len() - 1;
        let x = &self.activations[last][..self.batch * layout.activation_len(last)];
        head::average_pool(x, self.features, layout.network.features());
        head::linear(self.features, linear_weight, linear_bias, self.logits);
        Ok(())
    }
}

struct EvalBackward<'a> {
    folded: &'a Folded,
    batch: usize,
    activations: &'a [Aligned],
    gradients: &'a mut Gradients,
    dlogits: &'a [f32],
    /// Of the images.
    dx: &'a mut [f32],
}

impl EvalBackward<'_> {
    /// Gradient of the input of `conv` from that of `layer`.
    fn back(
        &mut self,
        conv: usize,
        layer: &Layer,
        input: usize,
        add: bool,
        finish: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let conv = &self.folded.convs[conv];
        let [dy, dx] = two(self.gradients, layer.buffer, self.folded.layout.layers[input].buffer);
        let dy = &dy[..self.batch * conv.conv().output_len()];
        conv.input_gradient(dy, &mut dx[..self.batch * conv.conv().input_len()], add, finish);
    }
}

impl Backward for EvalBackward<'_> {
    type Error = Infallible;

    fn head(&mut self) -> Result<(), Infallible> {
        let Folded { layout, format, linear_weight, .. } = self.folded;
        let last = layout.layers[layout.layers.len() - 1];
        let dz = &mut self.gradients[last.buffer][..self.batch * layout.activation_len(last.index)];
        let (classes, activations) = (layout.network.classes, &self.activations[last.index]);
        head::input_gradient(*format, self.dlogits, linear_weight, classes, activations, dz);
        Ok(())
    }

    fn normalisation(&mut self, _: &Layer, _: usize, _: Option<usize>) -> Result<(), Infallible> {
        // Folded into the convolution.
        Ok(())
    }

    fn input_gradient(&mut self, layer: &Layer, input: usize) -> Result<(), Infallible> {
        let (format, activations) = (self.folded.format, self.activations);
        let add = begin_with_skip(self.gradients, &self.folded.layout, layer, self.batch);
        let mask = |first: usize, dx: &mut [f32]| head::mask(format, dx, &activations[input][first..]);
        self.back(layer.conv, layer, input, add, mask);
        Ok(())
    }

    fn projection_gradient(&mut self, layer: &Layer, conv: usize, input: usize) -> Result<(), Infallible> {
        let format = self.folded.format;
        self.back(conv, layer, input, false, |_, dx| format.round_all(dx));
        Ok(())
    }

    fn image_gradient(&mut self) -> Result<(), Infallible> {
        let Folded { layout, convs, .. } = self.folded;
        let dy = &self.gradients[layout.layers[0].buffer][..self.batch * layout.activation_len(0)];
        convs[0].input_gradient(dy, self.dx, false, |_, _| {});
        Ok(())
    }
}

/// Two different buffers.
fn two(gradients: &mut Gradients, a: usize, b: usize) -> [&mut Aligned; 2] {
    gradients.get_disjoint_mut([a, b]).expect("layers next to each other have buffers of their own")
}

/// Whether the gradient of a residual is there to which the layer's input gradient is to be added. A projection left it there; that
/// of an identity is the gradient of the layer that added it.
pub fn begin_with_skip(gradients: &mut Gradients, layout: &Layout, layer: &Layer, batch: usize) -> bool {
    let Some(join) = layer.skip.map(|join| layout.layers[join]) else { return false };
    if let Residual::Identity(from) = join.residual {
        let [dz, dx] = two(gradients, join.buffer, layout.layers[from].buffer);
        let len = batch * layout.activation_len(from);
        dx[..len].copy_from_slice(&dz[..len]);
    }
    true
}

/// `out = out + bias`.
fn project(format: Format, out: &mut [f32], bias: &[f32]) {
    for pixel in out.chunks_exact_mut(bias.len()) {
        pixel.iter_mut().zip(bias).for_each(|(out, bias)| *out = format.round(*out + bias));
    }
}

/// `out = relu(out + bias)`.
fn add_bias(format: Format, out: &mut [f32], bias: &[f32]) {
    for pixel in out.chunks_exact_mut(bias.len()) {
        pixel.iter_mut().zip(bias).for_each(|(out, bias)| *out = format.round(norm::relu(*out + bias)));
    }
}

/// `out = relu(out + bias + x)`.
fn add_residual(format: Format, out: &mut [f32], bias: &[f32], x: &[f32]) {
    for (out, x) in out.chunks_exact_mut(bias.len()).zip(x.chunks_exact(bias.len())) {
        for ((out, x), bias) in out.iter_mut().zip(x).zip(bias) {
            *out = format.round(norm::relu(*out + bias + x));
        }
    }
}
