//! The network in train mode: batch statistics, activations kept in slots, parameter and input gradients.

use std::convert::Infallible;

use rayon::prelude::*;

use super::arena::Layout;
use super::conv::PackedConv;
use super::conv_weight::weight_gradient;
use super::epilogue::{Epilogue, Gate};
use super::eval::{Gradients, gradients_of};
use super::head;
use super::maps::Maps;
use super::memory::Aligned;
use super::norm::{self, BatchNorm, in_tasks};
use super::numbers::Numbers;
use crate::model::layers::IMAGE_LEN;
use crate::model::pass::{self, Backward, Forward};
use crate::model::{Conv, Layer, ResNet, Residual};

/// What one forward pass keeps.
#[derive(Default)]
struct Slot {
    images: Aligned,
    /// Each convolution's output before its BatchNorm.
    outputs: Vec<Aligned>,
    /// One a layer.
    activations: Vec<Aligned>,
    norms: Vec<BatchNorm>,
    features: Vec<f32>,
}

/// What a backward pass computes.
pub struct Wanted<'a> {
    /// The gradient of every parameter; set, or added where the flag says so.
    pub parameters: Option<(&'a mut [f32], bool)>,
    /// The gradient of the images.
    pub images: Option<&'a mut [f32]>,
}

/// The slots of [`Pass::Train`](crate::engine::Pass::Train).
pub const SLOTS: usize = 2;
/// Those after them: of the two passes of a pair.
pub const PAIR: [usize; 2] = [SLOTS, SLOTS + 1];

/// Packed weights and the slots.
pub struct TrainPass {
    packed: Packed,
    slots: [Slot; SLOTS + PAIR.len()],
    gradients: Gradients,
    /// Gradients before a BatchNorm, all in buffer 0.
    dy: Gradients,
    partials: Aligned,
}

struct Packed {
    numbers: Numbers,
    convs: Vec<PackedConv>,
    linear_weight: Vec<f32>,
    linear_bias: Vec<f32>,
}

impl Packed {
    /// Of a layer's activation.
    fn maps(&self, layer: &Layer) -> Maps {
        self.convs[layer.conv].output()
    }
}

impl TrainPass {
    pub fn new(network: ResNet, numbers: Numbers) -> Self {
        let convs: Vec<Conv> = network.convs();
        let layers = network.layers().len();
        let slot = |_| Slot {
            outputs: vec![Aligned::default(); convs.len()],
            activations: vec![Aligned::default(); layers],
            norms: vec![BatchNorm::default(); convs.len()],
            ..Slot::default()
        };
        Self {
            slots: std::array::from_fn(slot),
            gradients: Default::default(),
            dy: Gradients::default(),
            partials: Aligned::default(),
            packed: Packed {
                numbers,
                convs: convs.iter().map(|conv| PackedConv::new(conv, numbers)).collect(),
                linear_weight: Vec::new(),
                linear_bias: Vec::new(),
            },
        }
    }

    /// Takes over the weights of `arena`.
    pub fn pack(&mut self, layout: &Layout, arena: &[f32]) {
        let Packed { convs, linear_weight, linear_bias, .. } = &mut self.packed;
        for (conv, slot) in convs.iter_mut().zip(&layout.convs) {
            conv.pack(&arena[slot.weight..][..slot.conv.weight_len()], None);
        }
        let (weight, bias) = layout.linear(arena);
        (*linear_weight, *linear_bias) = (weight.to_vec(), bias.to_vec());
    }

    /// What the last layer saw in the slot's last forward pass.
    pub fn features(&self, slot: usize) -> &[f32] {
        &self.slots[slot].features
    }

    /// Logits of `batch` images with batch statistics; moves the running statistics of `arena`.
    pub fn forward(
        &mut self,
        slot: usize,
        layout: &Layout,
        arena: &mut [f32],
        batch: usize,
        images: &[f32],
        logits: &mut [f32],
    ) {
        let slot = &mut self.slots[slot];
        slot.images.reserve(images.len());
        slot.images[..images.len()].copy_from_slice(images);
        for (output, conv) in slot.outputs.iter_mut().zip(&self.packed.convs) {
            conv.output().reserve(output, batch);
        }
        for (layer, activation) in layout.layers.iter().zip(&mut slot.activations) {
            self.packed.maps(layer).reserve(activation, batch);
        }
        slot.features.resize(batch * layout.network.features(), 0.0);
        let mut pass = TrainForward { packed: &self.packed, slot, layout, arena, batch, logits };
        // On a thread of the pool, which no layer then has to wake.
        let Ok(()) = rayon::scope(|_| pass::forward(&layout.layers, 0..layout.layers.len(), &mut pass));
    }

    /// Backward through the slot's last forward pass of `batch` images.
    pub fn backward(
        &mut self,
        slot: usize,
        layout: &Layout,
        batch: usize,
        dlogits: &[f32],
        expected: Wanted,
    ) {
        let Self { packed, slots, gradients, dy, partials } = self;
        let maps = |layer: &Layer| packed.maps(layer);
        gradients.reserve(layout.layers.iter().map(|layer| (layer.buffer, maps(layer))), batch);
        dy.reserve(layout.layers.iter().map(|layer| (0, maps(layer))), batch);
        let slot = &slots[slot];
        let mut pass =
            TrainBackward { packed, slot, layout, batch, dlogits, gradients, dy, partials, expected };
        let Ok(()) = rayon::scope(|_| pass::backward(&layout.layers, 0..layout.layers.len(), &mut pass));
    }
}

struct TrainForward<'a> {
    packed: &'a Packed,
    slot: &'a mut Slot,
    layout: &'a Layout,
    arena: &'a mut [f32],
    batch: usize,
    logits: &'a mut [f32],
}

impl TrainForward<'_> {
    /// Convolution `at` and the statistics of its output.
    fn convolve(&mut self, at: usize, input: Option<usize>) {
        let Packed { numbers, convs, .. } = self.packed;
        let Slot { images, outputs, activations, norms, .. } = &mut *self.slot;
        let (placed, channels) = (&self.layout.convs[at], self.layout.convs[at].conv.out_channels);
        let (conv, y) = (&convs[at], &mut outputs[at]);
        // Whole images, or maps.
        let (x, image) = match input {
            Some(input) => (&activations[input][..], conv.input().image()),
            None => (&images[..], IMAGE_LEN),
        };
        let maps = conv.output();
        in_tasks(self.batch, maps, y, |first, y| {
            conv.forward(y.len() / maps.image(), &x[first * image..], y, &Epilogue::default());
        });

        let (parameters, statistics) = self.arena.split_at_mut(self.layout.trainable);
        let (means, variances) = statistics.split_at_mut(self.layout.channels);
        let of = |arena: usize| arena..arena + channels;
        let running = (&mut means[of(placed.channel)], &mut variances[of(placed.channel)]);
        let (weight, bias) = (&parameters[of(placed.bn_weight)], &parameters[of(placed.bn_bias)]);
        norms[at] = BatchNorm::measure(*numbers, maps, y, self.batch, (weight, bias), running);
    }
}

impl Forward for TrainForward<'_> {
    type Error = Infallible;

    fn convolution(&mut self, layer: &Layer) -> Result<(), Infallible> {
        self.convolve(layer.conv, layer.input);
        Ok(())
    }

    fn projection(&mut self, _: &Layer, conv: usize, input: usize) -> Result<(), Infallible> {
        self.convolve(conv, Some(input));
        Ok(())
    }

    fn activation(&mut self, layer: &Layer) -> Result<(), Infallible> {
        let Slot { outputs, activations, norms, .. } = &mut *self.slot;
        let (before, rest) = activations.split_at_mut(layer.index);
        let residual = match layer.residual {
            Residual::None => norm::Residual::Nothing,
            Residual::Identity(from) => norm::Residual::Activation(&before[from]),
            Residual::Projection { conv, .. } => norm::Residual::Normalised(&norms[conv], &outputs[conv]),
        };
        let maps = self.packed.maps(layer);
        let (y, z) = (&outputs[layer.conv], &mut rest[0]);
        norms[layer.conv].apply(self.packed.numbers, maps, self.batch, y, residual, z);
        Ok(())
    }

    fn head(&mut self) -> Result<(), Infallible> {
        let Packed { numbers, linear_weight, linear_bias, .. } = self.packed;
        let Slot { activations, features, .. } = &mut *self.slot;
        let last = &self.layout.layers[self.layout.layers.len() - 1];
        head::average_pool(*numbers, self.packed.maps(last), &activations[last.index], features);
        head::linear(features, linear_weight, linear_bias, self.logits);
        Ok(())
    }
}

struct TrainBackward<'a> {
    packed: &'a Packed,
    slot: &'a Slot,
    layout: &'a Layout,
    batch: usize,
    dlogits: &'a [f32],
    gradients: &'a mut Gradients,
    dy: &'a mut Gradients,
    partials: &'a mut Aligned,
    expected: Wanted<'a>,
}

impl Backward for TrainBackward<'_> {
    type Error = Infallible;

    fn head(&mut self) -> Result<(), Infallible> {
        let Packed { numbers, linear_weight, .. } = self.packed;
        if let Some((gradients, accumulate)) = &mut self.expected.parameters {
            let (weight, bias) = self.layout.linear_mut(gradients);
            head::parameter_gradient(self.dlogits, &self.slot.features, weight, bias, *accumulate);
        }
        let last = self.layout.layers[self.layout.layers.len() - 1];
        let activations = &self.slot.activations[last.index];
        let maps = self.packed.maps(&last);
        let dz = self.gradients.get_mut(last.buffer, maps);
        head::input_gradient(*numbers, maps, self.dlogits, linear_weight, activations, dz);
        Ok(())
    }

    fn normalisation(&mut self, layer: &Layer, at: usize, input: Option<usize>) -> Result<(), Infallible> {
        let Slot { images, outputs, activations, norms, .. } = self.slot;
        let (numbers, placed) = (self.packed.numbers, &self.layout.convs[at]);
        let maps = self.packed.maps(layer);
        let (dz, dy) = (self.gradients.get(layer.buffer, maps), self.dy.get_mut(0, maps));
        let (weight, bias) = norms[at].backward(numbers, maps, self.batch, &outputs[at], dz, dy);
        if let Some((gradients, accumulate)) = &mut self.expected.parameters {
            set_or_add(&mut gradients[placed.bn_weight..], &weight, *accumulate);
            set_or_add(&mut gradients[placed.bn_bias..], &bias, *accumulate);
            let x = input.map_or(images, |input| &activations[input]);
            let gradient = &mut gradients[placed.weight..][..placed.conv.weight_len()];
            weight_gradient(&placed.conv, numbers, self.batch, x, dy, self.partials, gradient, *accumulate);
        }
        Ok(())
    }

    fn input_gradient(&mut self, layer: &Layer, input: usize) -> Result<(), Infallible> {
        let (conv, maps) = (&self.packed.convs[layer.conv], self.packed.convs[layer.conv].input());
        // What the layer's own convolution sees is the gradient before its BatchNorm.
        let ([_, dx], added) = gradients_of(self.gradients, self.layout, &self.packed.convs, layer, input);
        let epilogue = Epilogue { bias: None, added, gate: Gate::Mask(&self.slot.activations[input]) };
        let (dy, image) = (self.dy.get(0, conv.output()), conv.output().image());
        in_tasks(self.batch, maps, dx, |first, dx| {
            let images = dx.len() / maps.image();
            conv.input_gradient(images, &dy[first * image..], dx, &epilogue.from(first * maps.image()));
        });
        Ok(())
    }

    fn projection_gradient(&mut self, _: &Layer, conv: usize, input: usize) -> Result<(), Infallible> {
        let (conv, maps) = (&self.packed.convs[conv], self.packed.convs[conv].input());
        let dx = self.gradients.get_mut(self.layout.layers[input].buffer, maps);
        let (dy, image) = (self.dy.get(0, conv.output()), conv.output().image());
        in_tasks(self.batch, maps, dx, |first, dx| {
            conv.input_gradient(dx.len() / maps.image(), &dy[first * image..], dx, &Epilogue::default());
        });
        Ok(())
    }

    fn image_gradient(&mut self) -> Result<(), Infallible> {
        if let Some(dx) = &mut self.expected.images {
            let conv = &self.packed.convs[0];
            let (dy, image) = (self.dy.get(0, conv.output()), conv.output().image());
            dx.par_chunks_mut(IMAGE_LEN).enumerate().for_each(|(n, dx)| {
                conv.image_gradient(1, &dy[n * image..], dx);
            });
        }
        Ok(())
    }
}

fn set_or_add(target: &mut [f32], values: &[f32], accumulate: bool) {
    for (slot, value) in target.iter_mut().zip(values) {
        *slot = if accumulate { *slot + value } else { *value };
    }
}
