//! Convolutions as sums over runs of neighbouring words: packed weights, forward pass and input gradient.
//!
//! Images are copied into a frame of zeros, so that no filter hangs over a border, and a line of its taps is one run of words. The
//! input gradient is the same loop over output gradients with mirrored weights; at a stride of two each of the four parities of input
//! pixels has taps of its own, so nothing is multiplied by zero. The bits of an image depend neither on the batch nor on the number
//! of threads.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::memory::{Aligned, with_scratch};
use super::numbers::{Format, Numbers, bf16, high_and_low, pair};
use super::tiles::{LANES, Pixel, Run};
use crate::model::Conv;

/// Operations of all convolutions of this process.
static FLOPS: AtomicU64 = AtomicU64::new(0);

/// Floating-point operations of all convolutions of this process, a multiply-add counted as two.
pub fn flops_so_far() -> u64 {
    FLOPS.load(Ordering::Relaxed)
}

/// Counts one pass of a convolution over `batch` images.
pub fn count_flops(conv: &Conv, batch: usize) {
    FLOPS.fetch_add(2 * (batch * conv.multiply_adds()) as u64, Ordering::Relaxed);
}

/// Images of one task: eight tasks or more where each still has enough pixels to read the weights for.
fn task_images(batch: usize, pixels: usize) -> usize {
    (batch * pixels / 8).next_power_of_two().clamp(128, 512).div_ceil(pixels)
}

/// A convolution with its weights laid out for both directions.
#[derive(Clone)]
pub struct PackedConv {
    conv: Conv,
    forward: Direction,
    backward: Direction,
}

impl PackedConv {
    /// Weights are zero until [`PackedConv::pack`].
    pub fn new(conv: &Conv, numbers: Numbers) -> Self {
        let backward =
            if conv.in_channels < LEAST { patches(conv, numbers) } else { backward(conv, numbers) };
        Self { conv: conv.clone(), forward: forward(conv, numbers), backward }
    }

    pub fn conv(&self) -> &Conv {
        &self.conv
    }

    /// Packs `weights` (K, C, R, S), each output channel times its `scale`, where there is one.
    pub fn pack(&mut self, weights: &[f32], scale: Option<&[f32]>) {
        let Conv { in_channels, kernel, .. } = self.conv;
        let weight = |k: usize, c: usize, (line, column): (usize, usize)| {
            let value = weights[((k * in_channels + c) * kernel + line) * kernel + column];
            scale.map_or(value, |scale| value * scale[k])
        };
        self.forward.pack(|tap, c, k| weight(k, c, tap));
        if in_channels < LEAST {
            let len = kernel * kernel * in_channels;
            self.backward.pack(|_, k, at| match at {
                at if at < len => {
                    let (tap, c) = (at / in_channels, at % in_channels);
                    weight(k, c, (tap / kernel, tap % kernel))
                }
                // Behind the patch, to the end of its last vector.
                _ => 0.0,
            });
        } else {
            self.backward.pack(|tap, k, c| weight(k, c, tap));
        }
    }

    /// `out = conv(x)`, or `out += conv(x)` where `add`.
    ///
    /// `finish(first element, outputs)` sees each task's outputs while they are in cache.
    pub fn forward(&self, x: &[f32], out: &mut [f32], add: bool, finish: impl Fn(usize, &mut [f32]) + Sync) {
        self.count(out.len(), self.forward.out_image());
        self.forward.run(x, out, add, finish);
    }

    /// `dx =` input gradient of `dy`, or `dx +=` where `add`; `finish` as in the forward pass.
    pub fn input_gradient(
        &self,
        dy: &[f32],
        dx: &mut [f32],
        add: bool,
        finish: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        self.count(dy.len(), self.backward.in_image());
        if self.conv.in_channels < LEAST {
            self.gradient_from_patches(dy, dx, add, finish);
        } else {
            self.backward.run(dy, dx, add, finish);
        }
    }

    /// Fewer channels than a vector has lanes: the gradients of whole patches, which are then added where the patches came from.
    fn gradient_from_patches(
        &self,
        dy: &[f32],
        dx: &mut [f32],
        add: bool,
        finish: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let (side, channels, row) = (self.conv.in_side, self.conv.in_channels, self.backward.outputs);
        let image = side * side * channels;
        let line = self.conv.kernel * channels;
        let images = dx.par_chunks_mut(image).zip(dy.par_chunks(self.backward.in_image()));
        images.enumerate().for_each(|(n, (dx, dy))| {
            with_scratch(self.backward.out_image(), |patches| {
                self.backward.run_images(dy, patches, false);
                if !add {
                    dx.fill(0.0);
                }
                // A line of a patch: three pixels that are neighbours in memory, or two at a border.
                for (pixel, patch) in patches.chunks_exact(row).enumerate() {
                    let (y, x) = (pixel / side, pixel % side);
                    let skip = if x == 0 { channels } else { 0 };
                    let keep = if x + 1 == side { line - channels } else { line };
                    for tap in usize::from(y == 0)..self.conv.kernel.min(side + 1 - y) {
                        let start = ((y + tap - 1) * side + x) * channels + skip - channels;
                        let part = &patch[tap * line..][skip..keep];
                        dx[start..][..part.len()].iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                    }
                }
            });
            finish(n * image, dx);
        });
    }

    fn count(&self, len: usize, image: usize) {
        count_flops(&self.conv, len / image);
    }
}

/// Input channels from which on they are summed in vectors and, in bf16, in pairs; an image has fewer.
pub const LEAST: usize = LANES;

/// One direction of a convolution, from images of `inputs` channels to images of `outputs`.
#[derive(Clone)]
struct Direction {
    numbers: Numbers,
    operands: Operands,
    inputs: usize,
    outputs: usize,
    in_side: usize,
    out_side: usize,
    /// Lines and columns of zeros around an input image.
    frame: usize,
    phases: Vec<Phase>,
    /// (line, column) of every tap, as they are packed.
    taps: Vec<(usize, usize)>,
    /// Channels of a block of packed weights.
    block: usize,
    /// Blocks of (tap, input word) x output channel.
    weights: Aligned,
}

/// The output pixels that see the same taps.
#[derive(Clone)]
struct Phase {
    runs: Vec<Run>,
    pixels: Vec<Pixel>,
}

fn forward(conv: &Conv, numbers: Numbers) -> Direction {
    let Conv { in_channels, out_channels, kernel, stride, in_side, .. } = *conv;
    let (frame, out_side) = (conv.padding(), conv.out_side());
    let pitch = in_side + 2 * frame;
    let operands = Operands::new(numbers.format, in_channels);
    let words = operands.words(in_channels);
    let line = kernel * words;
    let run = |tap: usize| Run { input: tap * pitch * words, row: tap * line, words: line };
    let pixel = |at: usize| Pixel {
        input: (at / out_side * stride * pitch + at % out_side * stride) * words,
        output: at * out_channels,
    };
    let phase =
        Phase { runs: (0..kernel).map(run).collect(), pixels: (0..out_side * out_side).map(pixel).collect() };
    let taps = (0..kernel * kernel).map(|tap| (tap / kernel, tap % kernel)).collect();
    Direction::new(numbers, (in_channels, in_side, frame), (out_channels, out_side), vec![phase], taps)
}

fn backward(conv: &Conv, numbers: Numbers) -> Direction {
    let Conv { in_channels, out_channels, stride, in_side, .. } = *conv;
    let words = Operands::new(numbers.format, out_channels).words(out_channels);
    let (frame, out_side) = (conv.padding(), conv.out_side());
    let pitch = out_side + 2 * frame;
    let mut taps = Vec::new();
    let mut phases = Vec::new();
    for parity in (0..stride * stride).map(|phase| (phase / stride, phase % stride)) {
        let (lines, columns) = (mirrored(conv, parity.0), mirrored(conv, parity.1));
        let mut runs = Vec::new();
        if let Some(&(_, first)) = columns.first() {
            for &(line, offset) in &lines {
                runs.push(Run {
                    input: (offset * pitch + first) * words,
                    row: taps.len() * words,
                    words: columns.len() * words,
                });
                taps.extend(columns.iter().map(|&(column, _)| (line, column)));
            }
        }
        let across = in_side / stride;
        let pixel = |at: usize| {
            let (y, x) = (at / across, at % across);
            Pixel {
                input: (y * pitch + x) * words,
                output: ((y * stride + parity.0) * in_side + x * stride + parity.1) * in_channels,
            }
        };
        phases.push(Phase { runs, pixels: (0..across * across).map(pixel).collect() });
    }
    Direction::new(numbers, (out_channels, out_side, frame), (in_channels, in_side), phases, taps)
}

/// Along one axis: the taps that reach input positions of this parity, each with its output's offset in the frame, offsets ascending.
fn mirrored(conv: &Conv, parity: usize) -> Vec<(usize, usize)> {
    // Output o sees input o * stride + tap - padding; the frame is as wide as the padding.
    let above = |tap: usize| parity + conv.padding() + conv.stride * conv.padding() - tap;
    (0..conv.kernel)
        .rev()
        .filter(|&tap| above(tap).is_multiple_of(conv.stride))
        .map(|tap| (tap, above(tap) / conv.stride))
        .collect()
}

/// From the gradient of a pixel to that of its patch, (line, column, channel).
fn patches(conv: &Conv, numbers: Numbers) -> Direction {
    let (inputs, side) = (conv.out_channels, conv.out_side());
    // Rows of whole blocks; what is beyond the patch stays zero.
    let len = (conv.kernel * conv.kernel * conv.in_channels).next_multiple_of(LEAST);
    let words = Operands::new(numbers.format, inputs).words(inputs);
    let pixel = |at: usize| Pixel { input: at * words, output: at * len };
    let phase =
        Phase { runs: vec![Run { input: 0, row: 0, words }], pixels: (0..side * side).map(pixel).collect() };
    Direction::new(numbers, (inputs, side, 0), (len, side), vec![phase], vec![(0, 0)])
}

impl Direction {
    /// Of inputs (channels, side, frame) and outputs (channels, side).
    fn new(
        numbers: Numbers,
        (inputs, in_side, frame): (usize, usize, usize),
        (outputs, out_side): (usize, usize),
        phases: Vec<Phase>,
        taps: Vec<(usize, usize)>,
    ) -> Self {
        let operands = Operands::new(numbers.format, inputs);
        let weights = Aligned::zeros(taps.len() * operands.words(inputs) * outputs);
        let block = numbers.products().block(outputs);
        Self { numbers, operands, inputs, outputs, in_side, out_side, frame, phases, taps, block, weights }
    }

    fn in_image(&self) -> usize {
        self.in_side * self.in_side * self.inputs
    }

    fn out_image(&self) -> usize {
        self.out_side * self.out_side * self.outputs
    }

    /// Rows of a block of weights.
    fn rows(&self) -> usize {
        self.taps.len() * self.words()
    }

    /// Words of an input pixel.
    fn words(&self) -> usize {
        self.operands.words(self.inputs)
    }

    /// Packs `weight(tap, input channel, output channel)`.
    fn pack(&mut self, weight: impl Fn((usize, usize), usize, usize) -> f32 + Sync) {
        let (words, block, rows) = (self.words(), self.block, self.rows());
        let (taps, operands) = (&self.taps, self.operands);
        self.weights.par_chunks_exact_mut(rows * block).enumerate().for_each(|(at, weights)| {
            for word in 0..words {
                for (tap, &of) in taps.iter().enumerate() {
                    let row = &mut weights[(tap * words + word) * block..][..block];
                    for (k, slot) in row.iter_mut().enumerate() {
                        *slot = operands.weights(word, |c| weight(of, c, at * block + k));
                    }
                }
            }
        });
    }

    /// All images of `x`, a few a task.
    fn run(&self, x: &[f32], out: &mut [f32], add: bool, finish: impl Fn(usize, &mut [f32]) + Sync) {
        let (in_image, out_image) = (self.in_image(), self.out_image());
        let images = task_images(out.len() / out_image, self.in_side.min(self.out_side).pow(2));
        let tasks = out.par_chunks_mut(images * out_image).zip(x.par_chunks(images * in_image));
        tasks.enumerate().for_each(|(task, (out, x))| {
            self.run_images(x, out, add);
            finish(task * images * out_image, out);
        });
    }

    /// A few images on this thread.
    fn run_images(&self, x: &[f32], out: &mut [f32], add: bool) {
        if self.frame == 0 && self.operands == Operands::Singles {
            return self.sum(x, self.in_image(), out, add);
        }
        let framed = framed_len(self.in_side, self.frame, self.words());
        let images = x.len() / self.in_image();
        with_scratch(images * framed, |input| {
            for (input, x) in input.chunks_exact_mut(framed).zip(x.chunks_exact(self.in_image())) {
                let line = self.in_side * self.inputs;
                in_frame(input, self.in_side, self.frame, |y, to| {
                    self.operands.copy(&x[y * line..][..line], to);
                });
            }
            self.sum(input, framed, out, add);
        });
    }

    /// A block of weights meets every image before the next block is read.
    fn sum(&self, input: &[f32], image: usize, out: &mut [f32], add: bool) {
        let (block, out_image, products) = (self.block, self.out_image(), self.numbers.products());
        for (at, weights) in self.weights.chunks_exact(self.rows() * block).enumerate() {
            for (input, out) in input.chunks_exact(image).zip(out.chunks_exact_mut(out_image)) {
                let out = &mut out[at * block..];
                for Phase { runs, pixels } in &self.phases {
                    products.tile(block, input, runs, weights, pixels, out, add);
                }
            }
        }
    }
}

/// What the words of an input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operands {
    /// One channel.
    Singles,
    /// Two neighbouring channels in bf16.
    Pairs,
    /// The nearest bf16 of a channel and what it lacks: of an image, whose f32 values matter.
    HighAndLow,
}

impl Operands {
    fn new(format: Format, channels: usize) -> Self {
        match format {
            Format::F32 => Self::Singles,
            Format::Bf16 if channels < LEAST => Self::HighAndLow,
            Format::Bf16 => Self::Pairs,
        }
    }

    /// Words of a pixel.
    fn words(self, channels: usize) -> usize {
        match self {
            Self::Singles | Self::HighAndLow => channels,
            Self::Pairs => channels / 2,
        }
    }

    /// The weights that a word meets, of the weights of each channel.
    fn weights(self, word: usize, weight: impl Fn(usize) -> f32) -> f32 {
        match self {
            Self::Singles => weight(word),
            Self::Pairs => pair(bf16(weight(2 * word)), bf16(weight(2 * word + 1))),
            Self::HighAndLow => {
                let weight = bf16(weight(word));
                pair(weight, weight)
            }
        }
    }

    /// Makes words of values, which are numbers of the format unless they are an image's.
    fn copy(self, values: &[f32], words: &mut [f32]) {
        match self {
            Self::Singles => words.copy_from_slice(values),
            Self::Pairs => {
                for (word, values) in words.iter_mut().zip(values.as_chunks::<2>().0) {
                    *word = pair(values[0], values[1]);
                }
            }
            Self::HighAndLow => {
                words.iter_mut().zip(values).for_each(|(word, value)| *word = high_and_low(*value));
            }
        }
    }
}

/// Words of an image with its frame.
pub fn framed_len(side: usize, frame: usize, words: usize) -> usize {
    (side + 2 * frame).pow(2) * words
}

/// Fills an image that has a frame of zeros around it, line by line: `copy(line, its words)`.
pub fn in_frame(framed: &mut [f32], side: usize, frame: usize, mut copy: impl FnMut(usize, &mut [f32])) {
    let pitch = framed.len() / (side + 2 * frame);
    let edge = pitch / (side + 2 * frame) * frame;
    let (top, rest) = framed.split_at_mut(frame * pitch);
    let (lines, bottom) = rest.split_at_mut(side * pitch);
    top.fill(0.0);
    bottom.fill(0.0);
    for (y, line) in lines.chunks_exact_mut(pitch).enumerate() {
        line[..edge].fill(0.0);
        copy(y, &mut line[edge..pitch - edge]);
        line[pitch - edge..].fill(0.0);
    }
}
