//! The weight gradient of a convolution: a reduction over pixels, split over input channels and images.
//!
//! A task owns a block of input channels and a run of images; it copies its channels with a zero border, packs the
//! output gradient into panels of columns, and accumulates `taps x channels x K` sums. The partial sums of the runs
//! are then added in their order. How the work is split depends on the batch, never on the number of threads.
//! Checked by `tests/reference_pytorch.rs` and `tests/reference_engine.rs`; called by `train.rs`.

use pulp::Arch;
use rayon::prelude::*;

use super::conv::task_images;
use super::memory::{Aligned, with_scratch};
use super::product::{Grid, Product, Segment, Strides, panel_width};
use crate::model::Conv;

/// Input channels of one task.
const BLOCK: usize = 16;
/// Tasks to aim for: enough for many cores, few enough that partial sums stay small.
const TASKS: usize = 32;
/// Pixels of one product: a panel of 32 columns is then 16 KiB.
const PIXELS: usize = 128;

/// How one weight gradient is cut into tasks.
struct Split {
    channels: usize,
    blocks: usize,
    run: usize,
    runs: usize,
    partial: usize,
}

impl Split {
    fn new(conv: &Conv, batch: usize) -> Self {
        let channels = conv.in_channels.min(BLOCK);
        let blocks = conv.in_channels / channels;
        let run = batch.div_ceil(TASKS.div_ceil(blocks));
        let partial = conv.kernel * conv.kernel * channels * conv.out_channels;
        Self { channels, blocks, run, runs: batch.div_ceil(run), partial }
    }
}

/// Sets `gradient` (K, C, R, S) to the weight gradient over `batch` images, or adds it where `accumulate`.
#[allow(clippy::too_many_arguments)]
pub fn weight_gradient(
    arch: Arch,
    conv: &Conv,
    batch: usize,
    x: &[f32],
    dy: &[f32],
    partials: &mut Aligned,
    gradient: &mut [f32],
    accumulate: bool,
) {
    let split = Split::new(conv, batch);
    let len = split.runs * split.blocks * split.partial;
    partials.reserve(len);
    let partials = &mut partials[..len];
    let x_image = conv.in_side * conv.in_side * conv.in_channels;
    let dy_image = conv.out_side() * conv.out_side() * conv.out_channels;
    partials.par_chunks_mut(split.partial).enumerate().for_each(|(task, partial)| {
        let images = task / split.blocks * split.run..((task / split.blocks + 1) * split.run).min(batch);
        partial.fill(0.0);
        let group = task_images(conv.out_side());
        for first in images.clone().step_by(group) {
            let count = group.min(images.end - first);
            let x = &x[first * x_image..][..count * x_image];
            let dy = &dy[first * dy_image..][..count * dy_image];
            add_group(arch, conv, x, dy, task % split.blocks * split.channels, split.channels, partial);
        }
    });
    reduce(conv, &split, partials, gradient, accumulate);
}

/// Adds the products of a few images, input channels `start .. start + channels`.
fn add_group(
    arch: Arch,
    conv: &Conv,
    x: &[f32],
    dy: &[f32],
    start: usize,
    channels: usize,
    partial: &mut [f32],
) {
    let (side, padding, columns) = (conv.out_side(), conv.padding(), conv.out_channels);
    let images = dy.len() / (side * side * columns);
    let pitch = (conv.in_side + 2 * padding) * channels;
    let plane = (conv.in_side + 2 * padding) * pitch;
    let rows = conv.kernel * channels;
    let panel = panel_width(columns, rows);
    // Whole images where they are small, else slabs of lines.
    let slab = (PIXELS / side).clamp(1, side);
    let grid = Grid {
        planes: conv.kernel,
        x_plane: pitch,
        out_plane: rows * columns,
        lines: 1,
        x_line: 0,
        out_line: 0,
        rows,
    };
    let strides = Strides { x_row: 1, x_step: conv.stride * channels, w_step: panel, out_row: columns };
    with_scratch(images * plane, |padded| {
        pad_channels(conv, x, padded, start, channels);
        with_scratch(images * slab * side * panel, |packed| {
            for line in (0..side).step_by(slab) {
                let lines = line..(line + slab).min(side);
                let segment = |(n, h): (usize, usize)| Segment {
                    x: n * plane + h * conv.stride * pitch,
                    w: (n * lines.len() + h - lines.start) * side * panel,
                    len: side,
                };
                let segments: Vec<Segment> =
                    (0..images).flat_map(|n| lines.clone().map(move |h| (n, h))).map(segment).collect();
                for column in (0..columns).step_by(panel) {
                    let mut targets = packed.chunks_exact_mut(panel);
                    for n in 0..images {
                        let pixels = (n * side + lines.start) * side..(n * side + lines.end) * side;
                        let dy = dy[pixels.start * columns..pixels.end * columns].chunks_exact(columns);
                        for (dy, target) in dy.zip(&mut targets) {
                            target.copy_from_slice(&dy[column..column + panel]);
                        }
                    }
                    let out = &mut partial[column..];
                    Product {
                        x: padded,
                        w: packed,
                        out,
                        segments: &segments,
                        strides,
                        grid,
                        panel,
                        relu: false,
                    }
                    .run(arch);
                }
            }
        });
    });
}

/// Copies a block of channels of each image into the middle of a zero border.
fn pad_channels(conv: &Conv, x: &[f32], padded: &mut [f32], start: usize, channels: usize) {
    let (side, padding) = (conv.in_side, conv.padding());
    let full = side + 2 * padding;
    padded.fill(0.0);
    for (n, x) in x.chunks_exact(side * side * conv.in_channels).enumerate() {
        for (h, x) in x.chunks_exact(side * conv.in_channels).enumerate() {
            let target = &mut padded[((n * full + h + padding) * full + padding) * channels..];
            for (x, target) in x.chunks_exact(conv.in_channels).zip(target.chunks_exact_mut(channels)) {
                target.copy_from_slice(&x[start..start + channels]);
            }
        }
    }
}

/// Adds the partial sums in the order of their runs, from (tap, channel, K) to (K, channel, tap).
fn reduce(conv: &Conv, split: &Split, partials: &[f32], gradient: &mut [f32], accumulate: bool) {
    let taps = conv.kernel * conv.kernel;
    let filter = conv.in_channels * taps;
    gradient.par_chunks_mut(16 * filter).enumerate().for_each(|(k, gradient)| {
        for c in 0..conv.in_channels {
            let (block, inner) = (c / split.channels, c % split.channels);
            for tap in 0..taps {
                let at = (tap * split.channels + inner) * conv.out_channels + 16 * k;
                let mut sums = [0.0f32; 16];
                for run in 0..split.runs {
                    let start = (run * split.blocks + block) * split.partial + at;
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
