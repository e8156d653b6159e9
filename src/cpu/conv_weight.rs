//! The weight gradient of a convolution: inputs times output gradients, summed over pixels.
//!
//! A task owns a block of output channels and a run of images. The partial sums of the runs are then added in their order. How the
//! work is split depends on the batch, never on the number of threads.

use rayon::prelude::*;

use super::conv::{LEAST, count_flops, framed_len, in_frame};
use super::memory::{Aligned, with_scratch};
use super::numbers::{Format, Numbers, pair};
use super::tiles::Pixel;
use crate::model::Conv;

/// Output channels of one task, where they divide those of the convolution; else one task has them all.
const COLUMNS: usize = 64;
/// Tasks to aim for: enough for many cores, few enough that partial sums stay small.
const TASKS: usize = 32;
/// Pixels over which sums stay in registers, at least.
const PANEL: usize = 256;

/// How one weight gradient is cut into tasks.
struct Split {
    columns: usize,
    groups: usize,
    run: usize,
    runs: usize,
    /// Elements of a task's sums: (tap, channel) x column.
    partial: usize,
}

impl Split {
    fn new(conv: &Conv, batch: usize) -> Self {
        let columns = if conv.out_channels.is_multiple_of(COLUMNS) { COLUMNS } else { conv.out_channels };
        let groups = conv.out_channels / columns;
        let pixels = conv.out_side() * conv.out_side();
        let run = batch.div_ceil(TASKS.div_ceil(groups)).max(PANEL.div_ceil(pixels));
        let partial = conv.weight_len() / groups;
        Self { columns, groups, run, runs: batch.div_ceil(run), partial }
    }
}

/// Sets `gradient` (K, C, R, S) to the weight gradient over `batch` images, or adds it where `accumulate`.
#[allow(clippy::too_many_arguments)]
pub fn weight_gradient(
    conv: &Conv,
    numbers: Numbers,
    batch: usize,
    x: &[f32],
    dy: &[f32],
    partials: &mut Aligned,
    gradient: &mut [f32],
    accumulate: bool,
) {
    count_flops(conv, batch);
    let split = Split::new(conv, batch);
    let len = split.runs * split.groups * split.partial;
    partials.reserve(len);
    let partials = &mut partials[..len];
    let x_image = conv.in_side * conv.in_side * conv.in_channels;
    let dy_image = conv.out_side() * conv.out_side() * conv.out_channels;
    partials.par_chunks_mut(split.partial).enumerate().for_each(|(task, partial)| {
        let images = task / split.groups * split.run..((task / split.groups + 1) * split.run).min(batch);
        let x = &x[images.start * x_image..images.end * x_image];
        let dy = &dy[images.start * dy_image..images.end * dy_image];
        let first = task % split.groups * split.columns;
        partial.fill(0.0);
        add_products(conv, numbers, x, &dy[first..], split.columns, partial);
    });
    reduce(conv, &split, partials, gradient, accumulate);
}

/// Adds the products of all pixels to `partial`, panel by panel; `dy` begins at the first of `columns` channels.
///
/// The words of bf16 numbers are pairs of neighbouring output pixels: of an input channel at both, and of an output channel.
fn add_products(conv: &Conv, numbers: Numbers, x: &[f32], dy: &[f32], columns: usize, partial: &mut [f32]) {
    let Conv { in_channels, out_channels, kernel, stride, in_side, .. } = *conv;
    // An image is not made of bf16 numbers.
    let format = if in_channels < LEAST { Format::F32 } else { numbers.format };
    let products = Numbers { format, ..numbers }.products();
    let (frame, out_side, per_word) = (conv.padding(), conv.out_side(), format.per_word());
    let image = framed_len(in_side, frame, in_channels);
    let (pitch, rows) = (in_side + 2 * frame, kernel * in_channels);
    let block = products.block(columns);
    let (per_line, per_image) = (out_side / per_word, out_side * out_side / per_word);
    let dy_row = if per_word == 1 { out_channels } else { columns };
    let pixels: Vec<Pixel> = (0..per_image * PANEL.div_ceil(out_side * out_side))
        .map(|at| {
            let (n, word) = (at / per_image, at % per_image);
            let (y, x) = (word / per_line * stride, word % per_line * per_word * stride);
            Pixel { input: n * image + (y * pitch + x) * in_channels, output: at * dy_row }
        })
        .collect();
    let (x_image, dy_image) = (in_side * in_side * in_channels, out_side * out_side * out_channels);
    let panel = pixels.len() / per_image;
    for (n, x) in x.chunks(panel * x_image).enumerate() {
        let images = x.len() / x_image;
        let (pixels, dy) = (&pixels[..images * per_image], &dy[n * panel * dy_image..]);
        with_scratch(images * (image + per_image * columns), |scratch| {
            let (input, pairs) = scratch.split_at_mut(images * image);
            for (input, x) in input.chunks_exact_mut(image).zip(x.chunks_exact(x_image)) {
                let line = in_side * in_channels;
                in_frame(input, in_side, frame, |y, to| to.copy_from_slice(&x[y * line..][..line]));
                if per_word == 2 {
                    pair_pixels(input, stride * in_channels);
                }
            }
            let dy = if per_word == 2 {
                for (at, row) in pairs.chunks_exact_mut(columns).enumerate() {
                    let [a, b] = [0, 1].map(|second| &dy[(2 * at + second) * out_channels..][..columns]);
                    row.iter_mut().zip(a.iter().zip(b)).for_each(|(word, (a, b))| *word = pair(*a, *b));
                }
                &*pairs
            } else {
                dy
            };
            for (line, partial) in partial.chunks_exact_mut(rows * columns).enumerate() {
                let input = &input[line * pitch * in_channels..];
                for column in (0..columns).step_by(block) {
                    let (dy, sums) = (&dy[column..], &mut partial[column..]);
                    products.outer(block, input, pixels, dy, rows, sums, columns);
                }
            }
        });
    }
}

/// Makes a word of every value of an image and the one `distance` behind it; behind the end there is nothing.
fn pair_pixels(image: &mut [f32], distance: usize) {
    for at in 0..image.len() - distance {
        image[at] = pair(image[at], image[at + distance]);
    }
}

/// Adds the partial sums in the order of their runs, from (tap, channel, K) to (K, channel, tap).
fn reduce(conv: &Conv, split: &Split, partials: &[f32], gradient: &mut [f32], accumulate: bool) {
    let taps = conv.kernel * conv.kernel;
    let filter = conv.in_channels * taps;
    gradient.par_chunks_mut(16 * filter).enumerate().for_each(|(k, gradient)| {
        let (group, column) = (16 * k / split.columns, 16 * k % split.columns);
        for c in 0..conv.in_channels {
            for tap in 0..taps {
                let at = (tap * conv.in_channels + c) * split.columns + column;
                let mut sums = [0.0f32; 16];
                for run in 0..split.runs {
                    let start = (run * split.groups + group) * split.partial + at;
                    for (sum, value) in sums.iter_mut().zip(&partials[start..start + 16]) {
                        *sum += value;
                    }
                }
                for (gradient, sum) in gradient.chunks_exact_mut(filter).zip(sums) {
                    let slot = &mut gradient[c * taps + tap];
                    *slot = if accumulate { *slot + sum } else { sum };
                }
            }
        }
    });
}
