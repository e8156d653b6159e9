//! The network in eval mode: BatchNorm folded into the weights; forward and input gradient, no weight gradients.
//!
//! This is what an attack spends its time in. A block's projection shortcut accumulates into the same outputs as its
//! second convolution; biases, residuals and ReLU follow while a task's outputs are in cache. The
//! activations kept for the backward pass serve only through their signs. Checked by `tests/reference_pytorch.rs`
//! and `tests/reference_engine.rs`; called by the engine.

use super::arena::{Arena, Layout};
use super::conv::PackedConv;
use super::memory::Aligned;
use super::numbers::{Format, Numbers};
use super::{head, norm};
use crate::model::{Block, Conv, ResNet};

/// Folded weights and the state of the last forward pass.
pub struct EvalPass {
    classes: usize,
    format: Format,
    blocks: Vec<Block>,
    convs: Vec<PackedConv>,
    biases: Vec<Vec<f32>>,
    linear_weight: Vec<f32>,
    linear_bias: Vec<f32>,
    /// Behind the ReLU of each convolution; empty for shortcuts.
    activations: Vec<Aligned>,
    features: Vec<f32>,
    /// Gradients: of a block's output, inside the block, of its input.
    gradients: [Aligned; 3],
}

impl EvalPass {
    pub fn new(network: ResNet, numbers: Numbers) -> Self {
        let convs: Vec<Conv> = network.convs();
        Self {
            classes: network.classes,
            format: numbers.format,
            blocks: network.blocks(),
            biases: convs.iter().map(|conv| vec![0.0; conv.out_channels]).collect(),
            linear_weight: Vec::new(),
            linear_bias: Vec::new(),
            activations: vec![Aligned::default(); convs.len()],
            convs: convs.iter().map(|conv| PackedConv::new(conv, numbers)).collect(),
            features: Vec::new(),
            gradients: Default::default(),
        }
    }

    /// What the last layer saw in the last forward pass.
    pub fn features(&self) -> &[f32] {
        &self.features
    }

    /// Folds the running statistics of `arena` into its weights.
    pub fn fold(&mut self, layout: &Layout, arena: &Arena) {
        let (parameters, statistics) = (&arena.parameters, &arena.statistics);
        for ((conv, bias), place) in self.convs.iter_mut().zip(&mut self.biases).zip(&layout.convs) {
            let (scale, shift) = norm::fold(
                &parameters[place.bn_weight.clone()],
                &parameters[place.bn_bias.clone()],
                &statistics[place.running_mean.clone()],
                &statistics[place.running_var.clone()],
            );
            conv.pack(&parameters[place.weight.clone()], Some(&scale));
            *bias = shift;
        }
        self.linear_weight = parameters[layout.linear_weight.clone()].to_vec();
        self.linear_bias = parameters[layout.linear_bias.clone()].to_vec();
    }

    /// Logits of `batch` images.
    pub fn forward(&mut self, batch: usize, images: &[f32], logits: &mut [f32]) {
        let Self { blocks, convs, biases, activations, format, .. } = self;
        let format = *format;
        for (conv, activation) in convs.iter().zip(activations.iter_mut()) {
            if conv.conv().kernel == 3 {
                activation.reserve(batch * output_len(conv.conv()));
            }
        }
        let plain = |convs: &[PackedConv], at: usize, x: &[f32], out: &mut Aligned| {
            let len = batch * output_len(convs[at].conv());
            convs[at].forward(x, &mut out[..len], false, |_, out| add_bias(format, out, &biases[at]));
        };
        plain(convs, 0, images, &mut activations[0]);
        let mut input = 0;
        for block in blocks.iter() {
            let (before, rest) = activations.split_at_mut(block.conv1);
            let (middle, after) = rest.split_at_mut(1);
            let (x, middle, out) = (&before[input], &mut middle[0], &mut after[0]);
            let out = &mut out[..batch * output_len(convs[block.conv2].conv())];
            let in_len = batch * input_len(convs[block.conv1].conv());
            plain(convs, block.conv1, &x[..in_len], middle);
            if let Some(shortcut) = block.shortcut {
                let bias = &biases[shortcut];
                convs[shortcut].forward(&x[..in_len], out, false, |_, out| project(format, out, bias));
            }
            let (conv, bias) = (&convs[block.conv2], &biases[block.conv2]);
            let middle = &middle[..out.len()];
            match block.shortcut {
                None => {
                    let finish = |first: usize, out: &mut [f32]| add_residual(format, out, bias, &x[first..]);
                    conv.forward(middle, out, false, finish);
                }
                Some(_) => conv.forward(middle, out, true, |_, out| add_bias(format, out, bias)),
            }
            input = block.conv2;
        }
        let channels = self.linear_weight.len() / self.classes;
        self.features.resize(batch * channels, 0.0);
        head::average_pool(&activations[input][..batch * 16 * channels], &mut self.features, channels);
        head::linear(&self.features, &self.linear_weight, &self.linear_bias, logits);
    }

    /// Gradient with respect to the images of the last forward pass.
    pub fn input_gradient(&mut self, batch: usize, dlogits: &[f32], dx: &mut [f32]) {
        let Self { blocks, convs, activations, gradients, format, .. } = self;
        let format = *format;
        let largest = batch * output_len(convs[0].conv());
        gradients.iter_mut().for_each(|gradient| gradient.reserve(largest));
        let [dz, dt, next] = gradients;
        let last = blocks.last().expect("eight blocks").conv2;
        let len = batch * output_len(convs[last].conv());
        let linear = &self.linear_weight;
        head::input_gradient(format, dlogits, linear, self.classes, &activations[last], &mut dz[..len]);
        for (b, block) in blocks.iter().enumerate().rev() {
            let input = if b == 0 { 0 } else { blocks[b - 1].conv2 };
            let masked = |by: usize| {
                let activations = &activations[by];
                move |first: usize, out: &mut [f32]| head::mask(format, out, &activations[first..])
            };
            let in_len = batch * input_len(convs[block.conv1].conv());
            let out_len = batch * output_len(convs[block.conv2].conv());
            convs[block.conv2].input_gradient(&dz[..out_len], &mut dt[..out_len], false, masked(block.conv1));
            let dx = &mut next[..in_len];
            match block.shortcut {
                None => dx.copy_from_slice(&dz[..in_len]),
                Some(shortcut) => {
                    convs[shortcut].input_gradient(&dz[..out_len], dx, false, |_, out| format.round_all(out));
                }
            }
            convs[block.conv1].input_gradient(&dt[..out_len], dx, true, masked(input));
            std::mem::swap(dz, next);
        }
        convs[0].input_gradient(&dz[..largest], dx, false, |_, _| {});
    }
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

/// Elements of one image's output.
pub fn output_len(conv: &Conv) -> usize {
    conv.out_side() * conv.out_side() * conv.out_channels
}

/// Elements of one image's input.
pub fn input_len(conv: &Conv) -> usize {
    conv.in_side * conv.in_side * conv.in_channels
}
