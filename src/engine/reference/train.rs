//! The network in train mode: batch statistics, activations kept in slots, parameter and input gradients.
//!
//! Checked by `tests/reference_pytorch.rs` (logits, all gradients, running statistics); called by the engine.

use super::arena::{Arena, Layout};
use super::conv::PackedConv;
use super::conv_weight::weight_gradient;
use super::eval::{input_len, output_len};
use super::head;
use super::memory::Aligned;
use super::norm::{BatchNorm, Residual};
use super::numbers::Numbers;
use crate::model::{Block, Conv, ResNet};

/// What one forward pass keeps.
#[derive(Default)]
struct Slot {
    images: Aligned,
    /// Each convolution's output before its BatchNorm.
    outputs: Vec<Aligned>,
    /// Behind the ReLU; empty for shortcuts.
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
/// Those behind them: of the two passes of a pair.
pub const PAIR: [usize; 2] = [SLOTS, SLOTS + 1];

/// Packed weights and the slots.
pub struct TrainPass {
    classes: usize,
    numbers: Numbers,
    blocks: Vec<Block>,
    convs: Vec<PackedConv>,
    linear_weight: Vec<f32>,
    linear_bias: Vec<f32>,
    slots: [Slot; SLOTS + PAIR.len()],
    /// Gradients: of a block's output, inside the block, of its input, and before a BatchNorm.
    gradients: [Aligned; 4],
    partials: Aligned,
}

impl TrainPass {
    pub fn new(network: ResNet, numbers: Numbers) -> Self {
        let convs: Vec<Conv> = network.convs();
        let slot = |_| Slot {
            outputs: vec![Aligned::default(); convs.len()],
            activations: vec![Aligned::default(); convs.len()],
            norms: vec![BatchNorm::default(); convs.len()],
            ..Slot::default()
        };
        Self {
            classes: network.classes,
            numbers,
            blocks: network.blocks(),
            convs: convs.iter().map(|conv| PackedConv::new(conv, numbers)).collect(),
            linear_weight: Vec::new(),
            linear_bias: Vec::new(),
            slots: std::array::from_fn(slot),
            gradients: Default::default(),
            partials: Aligned::default(),
        }
    }

    /// Takes over the weights of `arena`.
    pub fn pack(&mut self, layout: &Layout, arena: &Arena) {
        for (conv, place) in self.convs.iter_mut().zip(&layout.convs) {
            conv.pack(&arena.parameters[place.weight.clone()], None);
        }
        self.linear_weight = arena.parameters[layout.linear_weight.clone()].to_vec();
        self.linear_bias = arena.parameters[layout.linear_bias.clone()].to_vec();
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
        arena: &mut Arena,
        batch: usize,
        images: &[f32],
        logits: &mut [f32],
    ) {
        let Self { blocks, convs, numbers, .. } = self;
        let format = numbers.format;
        let slot = &mut self.slots[slot];
        slot.images.reserve(images.len());
        slot.images[..images.len()].copy_from_slice(images);
        for (at, conv) in convs.iter().enumerate() {
            let len = batch * output_len(conv.conv());
            slot.outputs[at].reserve(len);
            if conv.conv().kernel == 3 {
                slot.activations[at].reserve(len);
            }
        }
        let Slot { outputs, activations, norms, .. } = slot;
        let mut convolve = |at: usize, x: &[f32], y: &mut Aligned| {
            let y = &mut y[..batch * output_len(convs[at].conv())];
            convs[at].forward(x, y, false, |_, y| format.round_all(y));
            let place = &layout.convs[at];
            let Arena { parameters, statistics } = &mut *arena;
            // The two running tensors of a convolution are neighbours.
            let (front, back) = statistics.split_at_mut(place.running_var.start);
            let running = (&mut front[place.running_mean.clone()], &mut back[..place.running_var.len()]);
            let (weight, bias) = (&parameters[place.bn_weight.clone()], &parameters[place.bn_bias.clone()]);
            BatchNorm::measure(y, batch, weight, bias, running)
        };
        let apply = |norm: &BatchNorm, at: usize, y: &Aligned, residual: Residual, z: &mut Aligned| {
            let len = batch * output_len(convs[at].conv());
            norm.apply(format, &y[..len], residual, &mut z[..len], batch);
        };
        norms[0] = convolve(0, images, &mut outputs[0]);
        apply(&norms[0], 0, &outputs[0], Residual::None, &mut activations[0]);
        let mut input = 0;
        for &Block { conv1, conv2, shortcut } in blocks.iter() {
            let (before, rest) = activations.split_at_mut(conv1);
            let (middle, after) = rest.split_at_mut(1);
            let (x, middle, out) = (&before[input], &mut middle[0], &mut after[0]);
            norms[conv1] = convolve(conv1, x, &mut outputs[conv1]);
            apply(&norms[conv1], conv1, &outputs[conv1], Residual::None, middle);
            norms[conv2] = convolve(conv2, middle, &mut outputs[conv2]);
            let residual = match shortcut {
                None => Residual::Identity(x),
                Some(at) => {
                    norms[at] = convolve(at, x, &mut outputs[at]);
                    Residual::Projected(&norms[at], &outputs[at])
                }
            };
            apply(&norms[conv2], conv2, &outputs[conv2], residual, out);
            input = conv2;
        }
        let channels = self.linear_weight.len() / self.classes;
        slot.features.resize(batch * channels, 0.0);
        head::average_pool(&activations[input][..batch * 16 * channels], &mut slot.features, channels);
        head::linear(&slot.features, &self.linear_weight, &self.linear_bias, logits);
    }

    /// Backward through the slot's last forward pass of `batch` images.
    pub fn backward(
        &mut self,
        slot: usize,
        layout: &Layout,
        batch: usize,
        dlogits: &[f32],
        mut wanted: Wanted,
    ) {
        let Self { numbers, blocks, convs, gradients, partials, .. } = self;
        let (numbers, format) = (*numbers, numbers.format);
        let Slot { images, outputs, activations, norms, features } = &self.slots[slot];
        let largest = batch * output_len(convs[0].conv());
        gradients.iter_mut().for_each(|gradient| gradient.reserve(largest));
        let [dz, dt, next, dy] = gradients;
        let last = blocks.last().expect("eight blocks").conv2;
        let len = batch * output_len(convs[last].conv());
        if let Some((gradients, accumulate)) = &mut wanted.parameters {
            let (front, back) = gradients.split_at_mut(layout.linear_bias.start);
            let (weight, bias) =
                (&mut front[layout.linear_weight.clone()], &mut back[..layout.linear_bias.len()]);
            head::parameter_gradient(dlogits, features, weight, bias, *accumulate);
        }
        let linear = &self.linear_weight;
        head::input_gradient(format, dlogits, linear, self.classes, &activations[last], &mut dz[..len]);

        // From the gradient behind a BatchNorm to the one before it; parameter gradients on the way.
        let mut through_norm = |at: usize, x: &[f32], dz: &[f32], dy: &mut Aligned| {
            let conv = convs[at].conv();
            let len = batch * output_len(conv);
            let dy = &mut dy[..len];
            let (weight, bias) = norms[at].backward(format, &outputs[at][..len], &dz[..len], dy, batch);
            if let Some((gradients, accumulate)) = &mut wanted.parameters {
                let place = &layout.convs[at];
                set_or_add(&mut gradients[place.bn_weight.clone()], &weight, *accumulate);
                set_or_add(&mut gradients[place.bn_bias.clone()], &bias, *accumulate);
                let gradient = &mut gradients[place.weight.clone()];
                weight_gradient(conv, numbers, batch, x, dy, partials, gradient, *accumulate);
            }
        };
        let masked = |by: usize| {
            let activations = &activations[by];
            move |first: usize, out: &mut [f32]| head::mask(format, out, &activations[first..])
        };
        for (b, &Block { conv1, conv2, shortcut }) in blocks.iter().enumerate().rev() {
            let input = if b == 0 { 0 } else { blocks[b - 1].conv2 };
            let x = &activations[input];
            let in_len = batch * input_len(convs[conv1].conv());
            let out_len = batch * output_len(convs[conv2].conv());
            through_norm(conv2, &activations[conv1], dz, dy);
            convs[conv2].input_gradient(&dy[..out_len], &mut dt[..out_len], false, masked(conv1));
            let dx = &mut next[..in_len];
            match shortcut {
                None => dx.copy_from_slice(&dz[..in_len]),
                Some(at) => {
                    through_norm(at, x, dz, dy);
                    convs[at].input_gradient(&dy[..out_len], dx, false, |_, dx| format.round_all(dx));
                }
            }
            through_norm(conv1, x, dt, dy);
            convs[conv1].input_gradient(&dy[..out_len], dx, true, masked(input));
            std::mem::swap(dz, next);
        }
        through_norm(0, images, dz, dy);
        if let Some(dx) = wanted.images {
            convs[0].input_gradient(&dy[..largest], dx, false, |_, _| {});
        }
    }
}

fn set_or_add(target: &mut [f32], values: &[f32], accumulate: bool) {
    for (slot, value) in target.iter_mut().zip(values) {
        *slot = if accumulate { *slot + value } else { *value };
    }
}
