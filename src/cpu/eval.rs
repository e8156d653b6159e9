//! The network in eval mode: BatchNorm folded into the weights; forward and input gradient, no weight gradients.
//!
//! This is what an attack spends its time in. A thread takes a few images through the whole network, so that their activations stay
//! in its cache and no layer waits for another thread. The activations kept for the backward pass serve only through their signs.

use std::convert::Infallible;

use rayon::prelude::*;

use super::arena::Layout;
use super::conv::PackedConv;
use super::epilogue::{Added, Epilogue, Gate};
use super::maps::Maps;
use super::memory::Aligned;
use super::numbers::Numbers;
use super::{head, norm};
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use crate::model::pass::{self, Backward, Forward};
use crate::model::{Layer, ResNet, Residual};

/// Images of a task at most: enough to read the weights for.
const TASK: usize = 16;

/// Images of a task of `batch`: two tasks a thread or more. No bit depends on it.
pub fn task_images(batch: usize) -> usize {
    batch.div_ceil(2 * rayon::current_num_threads()).clamp(1, TASK)
}

/// Folded weights and the state of the last forward pass.
pub struct EvalPass {
    folded: Folded,
    tasks: Vec<Task>,
    /// Images of each task but the last.
    task_images: usize,
    features: Vec<f32>,
}

/// What a task keeps of its images.
#[derive(Default)]
struct Task {
    /// One a layer.
    activations: Vec<Aligned>,
    gradients: Gradients,
}

/// Gradients on their way back: for each [`Layer::buffer`] one of each shape.
#[derive(Default)]
pub struct Gradients(Vec<Aligned>);

impl Gradients {
    /// Makes room for `batch` images in the buffers of these layers.
    pub fn reserve(&mut self, layers: impl Iterator<Item = (usize, Maps)>, batch: usize) {
        for (buffer, maps) in layers {
            let at = Self::slot(buffer, maps);
            self.0.resize_with(self.0.len().max(at + 1), Aligned::default);
            maps.reserve(&mut self.0[at], batch);
        }
    }

    /// Shapes have different sides, each half of the one before.
    fn slot(buffer: usize, maps: Maps) -> usize {
        buffer + Layer::BUFFERS * (IMAGE_SIDE / maps.side).ilog2() as usize
    }

    pub fn get(&self, buffer: usize, maps: Maps) -> &[f32] {
        &self.0[Self::slot(buffer, maps)]
    }

    pub fn get_mut(&mut self, buffer: usize, maps: Maps) -> &mut [f32] {
        &mut self.0[Self::slot(buffer, maps)]
    }

    /// Different ones.
    pub fn disjoint<const N: usize>(&mut self, buffers: [(usize, Maps); N]) -> [&mut Aligned; N] {
        let slots = buffers.map(|(buffer, maps)| Self::slot(buffer, maps));
        self.0.get_disjoint_mut(slots).expect("layers next to each other have buffers of their own")
    }
}

/// The network with BatchNorm folded into its convolutions.
struct Folded {
    layout: Layout,
    numbers: Numbers,
    convs: Vec<PackedConv>,
    biases: Vec<Vec<f32>>,
    linear_weight: Vec<f32>,
    linear_bias: Vec<f32>,
}

impl Folded {
    /// Of a layer's activation.
    fn maps(&self, layer: usize) -> Maps {
        self.convs[self.layout.layers[layer].conv].output()
    }
}

impl EvalPass {
    pub fn new(network: ResNet, numbers: Numbers) -> Self {
        let layout = Layout::new(network);
        Self {
            tasks: Vec::new(),
            task_images: 1,
            features: Vec::new(),
            folded: Folded {
                numbers,
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
        let Self { folded, tasks, task_images: size, features } = self;
        let (layers, network) = (&folded.layout.layers, folded.layout.network);
        features.resize(batch * network.features(), 0.0);
        *size = task_images(batch);
        tasks.resize_with(batch.div_ceil(*size).max(tasks.len()), Task::default);
        let inputs = images.par_chunks(*size * IMAGE_LEN).zip(tasks.par_iter_mut());
        let outputs = features
            .par_chunks_mut(*size * network.features())
            .zip(logits.par_chunks_mut(*size * network.classes));
        inputs.zip(outputs).for_each(|((images, task), (features, logits))| {
            task.activations.resize_with(layers.len(), Aligned::default);
            for (layer, activation) in task.activations.iter_mut().enumerate() {
                folded.maps(layer).reserve(activation, *size);
            }
            let (batch, activations) = (images.len() / IMAGE_LEN, &mut task.activations[..]);
            let mut pass = EvalForward { folded, batch, images, activations, features, logits };
            let Ok(()) = pass::forward(layers, 0..layers.len(), &mut pass);
        });
    }

    /// Gradient with respect to the images of the last forward pass.
    pub fn input_gradient(&mut self, dlogits: &[f32], dx: &mut [f32]) {
        let Self { folded, tasks, task_images, .. } = self;
        let layers = &folded.layout.layers;
        let inputs =
            dlogits.par_chunks(*task_images * folded.layout.network.classes).zip(tasks.par_iter_mut());
        inputs.zip(dx.par_chunks_mut(*task_images * IMAGE_LEN)).for_each(|((dlogits, task), dx)| {
            let Task { activations, gradients } = task;
            let buffers = layers.iter().map(|layer| (layer.buffer, folded.maps(layer.index)));
            gradients.reserve(buffers, *task_images);
            let batch = dx.len() / IMAGE_LEN;
            let mut pass = EvalBackward { folded, batch, activations, gradients, dlogits, dx };
            let Ok(()) = pass::backward(layers, 0..layers.len(), &mut pass);
        });
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
        let Folded { convs, biases, .. } = self.folded;
        let (before, rest) = self.activations.split_at_mut(layer.index);
        let epilogue = Epilogue { bias: Some(&biases[conv]), ..Epilogue::default() };
        convs[conv].forward(self.batch, &before[input], &mut rest[0], &epilogue);
        Ok(())
    }

    fn activation(&mut self, layer: &Layer) -> Result<(), Infallible> {
        let Folded { convs, biases, .. } = self.folded;
        let (before, rest) = self.activations.split_at_mut(layer.index);
        let added = match layer.residual {
            Residual::None => Added::Nothing,
            Residual::Identity(from) => Added::Maps(&before[from]),
            Residual::Projection { .. } => Added::Present,
        };
        let epilogue = Epilogue { bias: Some(&biases[layer.conv]), added, gate: Gate::Relu };
        let x = layer.input.map_or(self.images, |input| &before[input]);
        convs[layer.conv].forward(self.batch, x, &mut rest[0], &epilogue);
        Ok(())
    }

    fn head(&mut self) -> Result<(), Infallible> {
        let Folded { layout, numbers, linear_weight, linear_bias, .. } = self.folded;
        let last = layout.layers.len() - 1;
        head::average_pool(*numbers, self.folded.maps(last), &self.activations[last], self.features);
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

impl Backward for EvalBackward<'_> {
    type Error = Infallible;

    fn head(&mut self) -> Result<(), Infallible> {
        let Folded { layout, numbers, linear_weight, .. } = self.folded;
        let last = layout.layers[layout.layers.len() - 1];
        let (maps, activations) = (self.folded.maps(last.index), &self.activations[last.index]);
        let dz = self.gradients.get_mut(last.buffer, maps);
        head::input_gradient(*numbers, maps, self.dlogits, linear_weight, activations, dz);
        Ok(())
    }

    fn normalisation(&mut self, _: &Layer, _: usize, _: Option<usize>) -> Result<(), Infallible> {
        // Folded into the convolution.
        Ok(())
    }

    fn input_gradient(&mut self, layer: &Layer, input: usize) -> Result<(), Infallible> {
        let Folded { layout, convs, .. } = self.folded;
        let ([dy, dx], added) = gradients_of(self.gradients, layout, &convs[..], layer, input);
        let epilogue = Epilogue { bias: None, added, gate: Gate::Mask(&self.activations[input]) };
        convs[layer.conv].input_gradient(self.batch, dy, dx, &epilogue);
        Ok(())
    }

    fn projection_gradient(&mut self, layer: &Layer, conv: usize, input: usize) -> Result<(), Infallible> {
        let Folded { layout, convs, .. } = self.folded;
        let (from, to) =
            ((layer.buffer, convs[conv].output()), (layout.layers[input].buffer, convs[conv].input()));
        let [dy, dx] = self.gradients.disjoint([from, to]);
        convs[conv].input_gradient(self.batch, dy, dx, &Epilogue::default());
        Ok(())
    }

    fn image_gradient(&mut self) -> Result<(), Infallible> {
        let Folded { layout, convs, .. } = self.folded;
        let dy = self.gradients.get(layout.layers[0].buffer, convs[0].output());
        convs[0].image_gradient(self.batch, dy, self.dx);
        Ok(())
    }
}

/// The gradients of a layer and of its input, and what the second adds: the gradient of the residual that begins there. A projection
/// left it in place; that of an identity is the gradient of the layer that added it.
pub fn gradients_of<'a>(
    gradients: &'a mut Gradients,
    layout: &Layout,
    convs: &[PackedConv],
    layer: &Layer,
    input: usize,
) -> ([&'a mut Aligned; 2], Added<'a>) {
    let conv = &convs[layer.conv];
    let (from, to) = ((layer.buffer, conv.output()), (layout.layers[input].buffer, conv.input()));
    let Some(join) = layer.skip.map(|join| layout.layers[join]) else {
        return (gradients.disjoint([from, to]), Added::Nothing);
    };
    match join.residual {
        Residual::Identity(_) => {
            let [dy, dx, dz] = gradients.disjoint([from, to, (join.buffer, conv.input())]);
            ([dy, dx], Added::Maps(&dz[..]))
        }
        _ => (gradients.disjoint([from, to]), Added::Present),
    }
}
