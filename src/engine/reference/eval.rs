//! The network in eval mode: BatchNorm folded into the weights; forward and input gradient, no weight gradients.
//!
//! This is what an attack spends its time in. A block's projection shortcut accumulates into the same outputs as its
//! second convolution, biases and residuals are what outputs start from, ReLU is the end of the last product. The
//! activations kept for the backward pass serve only through their signs. Checked by `tests/reference_pytorch.rs`
//! and `tests/reference_engine.rs`; called by the engine.

use pulp::Arch;

use super::arena::{Arena, Layout};
use super::conv::PackedConv;
use super::memory::Aligned;
use super::stem::StemGradient;
use super::{head, norm};
use crate::model::{Block, Conv, ResNet18};

/// Folded weights and the state of the last forward pass.
pub struct EvalPass {
    arch: Arch,
    classes: usize,
    blocks: Vec<Block>,
    convs: Vec<PackedConv>,
    biases: Vec<Vec<f32>>,
    stem: StemGradient,
    linear_weight: Vec<f32>,
    linear_bias: Vec<f32>,
    /// Behind the ReLU of each convolution; empty for shortcuts.
    activations: Vec<Aligned>,
    features: Vec<f32>,
    /// Gradients: of a block's output, inside the block, of its input.
    gradients: [Aligned; 3],
}

impl EvalPass {
    pub fn new(arch: Arch, network: ResNet18) -> Self {
        let convs: Vec<Conv> = network.convs();
        Self {
            arch,
            classes: network.classes,
            blocks: network.blocks(),
            biases: convs.iter().map(|conv| vec![0.0; conv.out_channels]).collect(),
            stem: StemGradient::new(network.width),
            linear_weight: Vec::new(),
            linear_bias: Vec::new(),
            activations: vec![Aligned::default(); convs.len()],
            convs: convs.iter().map(PackedConv::new).collect(),
            features: Vec::new(),
            gradients: Default::default(),
        }
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
            let weights = &parameters[place.weight.clone()];
            conv.pack(weights, Some(&scale));
            if conv.conv().in_channels == 3 {
                self.stem.pack(weights, Some(&scale));
            }
            *bias = shift;
        }
        self.linear_weight = parameters[layout.linear_weight.clone()].to_vec();
        self.linear_bias = parameters[layout.linear_bias.clone()].to_vec();
    }

    /// Logits of `batch` images.
    pub fn forward(&mut self, batch: usize, images: &[f32], logits: &mut [f32]) {
        let Self { arch, blocks, convs, biases, activations, .. } = self;
        for (conv, activation) in convs.iter().zip(activations.iter_mut()) {
            if conv.conv().kernel == 3 {
                activation.reserve(batch * output_len(conv.conv()));
            }
        }
        let start_from = |bias: &[f32], out: &mut [f32]| {
            out.chunks_exact_mut(bias.len()).for_each(|pixel| pixel.copy_from_slice(bias));
        };
        let plain = |convs: &[PackedConv], at: usize, x: &[f32], out: &mut Aligned| {
            let (len, bias) = (batch * output_len(convs[at].conv()), &biases[at]);
            convs[at].forward(*arch, x, &mut out[..len], true, |_, out| start_from(bias, out), |_, _| {});
        };
        plain(convs, 0, images, &mut activations[0]);
        let mut input = 0;
        for block in blocks.iter() {
            let (before, rest) = activations.split_at_mut(block.conv1);
            let (middle, after) = rest.split_at_mut(1);
            let (x, middle, out) = (&before[input], &mut middle[0], &mut after[0]);
            plain(convs, block.conv1, x, middle);
            let conv = &convs[block.conv2];
            let image = output_len(conv.conv());
            let out = &mut out[..batch * image];
            match block.shortcut {
                None => {
                    let residual = |first: usize, out: &mut [f32]| {
                        let x = &x[first * image..][..out.len()];
                        let bias = &biases[block.conv2];
                        for (out, x) in out.chunks_exact_mut(bias.len()).zip(x.chunks_exact(bias.len())) {
                            for ((out, x), bias) in out.iter_mut().zip(x).zip(bias) {
                                *out = x + bias;
                            }
                        }
                    };
                    conv.forward(*arch, middle, out, true, residual, |_, _| {});
                }
                Some(shortcut) => {
                    let both: Vec<f32> =
                        biases[block.conv2].iter().zip(&biases[shortcut]).map(|(a, b)| a + b).collect();
                    convs[shortcut].forward(*arch, x, out, false, |_, out| start_from(&both, out), |_, _| {});
                    conv.forward(*arch, middle, out, true, |_, _| {}, |_, _| {});
                }
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
        let Self { arch, blocks, convs, activations, gradients, .. } = self;
        let largest = batch * output_len(convs[0].conv());
        gradients.iter_mut().for_each(|gradient| gradient.reserve(largest));
        let [dz, dt, next] = gradients;
        let last = blocks.last().expect("eight blocks").conv2;
        let len = batch * output_len(convs[last].conv());
        head::input_gradient(dlogits, &self.linear_weight, self.classes, &activations[last], &mut dz[..len]);
        let zero = |_: usize, out: &mut [f32]| out.fill(0.0);
        for (b, block) in blocks.iter().enumerate().rev() {
            let input = if b == 0 { 0 } else { blocks[b - 1].conv2 };
            let masked = |by: usize, image: usize| {
                let activations = &activations[by];
                move |first: usize, out: &mut [f32]| {
                    head::mask(out, &activations[first * image..][..out.len()]);
                }
            };
            let (outer, inner) = (convs[block.conv1].conv(), convs[block.conv2].conv());
            let (in_image, out_image) = (input_len(outer), output_len(inner));
            let (in_len, out_len) = (batch * in_image, batch * out_image);
            let finish = masked(block.conv1, out_image);
            convs[block.conv2].input_gradient(*arch, &dz[..out_len], &mut dt[..out_len], zero, finish);
            let dx = &mut next[..in_len];
            let finish = masked(input, in_image);
            match block.shortcut {
                None => {
                    let residual = |first: usize, out: &mut [f32]| {
                        out.copy_from_slice(&dz[first * in_image..][..out.len()])
                    };
                    convs[block.conv1].input_gradient(*arch, &dt[..out_len], dx, residual, finish);
                }
                Some(shortcut) => {
                    convs[shortcut].input_gradient(*arch, &dz[..out_len], dx, zero, |_, _| {});
                    convs[block.conv1].input_gradient(*arch, &dt[..out_len], dx, |_, _| {}, finish);
                }
            }
            std::mem::swap(dz, next);
        }
        self.stem.input_gradient(*arch, &dz[..largest], dx);
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
