//! The weight gradient of a convolution: transposed patches times output gradients, summed over pixels.
//!
//! A task owns a block of input channels and a run of images. The partial sums of the runs are then added in their
//! order. How the work is split depends on the batch, never on the number of threads. Checked by
//! `tests/reference_pytorch.rs` and `tests/reference_engine.rs`; called by `train.rs`.

use rayon::prelude::*;

use super::conv::PANEL;
use super::memory::{Aligned, with_scratch};
use super::patches::Patches;
use super::product::{Matrix, product};
use crate::model::Conv;

/// Input channels of one task, where they divide those of the convolution; else one task has them all.
const BLOCK: usize = 32;
/// Tasks to aim for: enough for many cores, few enough that partial sums stay small.
const TASKS: usize = 32;

/// How one weight gradient is cut into tasks.
struct Split {
    patches: Patches,
    blocks: usize,
    run: usize,
    runs: usize,
    /// Elements of a task's sums: (tap, channel of the block) x K.
    partial: usize,
}

impl Split {
    fn new(conv: &Conv, batch: usize) -> Self {
        let channels = if conv.in_channels.is_multiple_of(BLOCK) { BLOCK } else { conv.in_channels };
        let patches = Patches::new(conv, channels);
        let blocks = conv.in_channels / patches.channels;
        let run = batch.div_ceil(TASKS.div_ceil(blocks)).max(PANEL.div_ceil(patches.pixels()));
        Self { patches, blocks, run, runs: batch.div_ceil(run), partial: patches.len() * conv.out_channels }
    }
}

/// Sets `gradient` (K, C, R, S) to the weight gradient over `batch` images, or adds it where `accumulate`.
pub fn weight_gradient(
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
        let x = &x[images.start * x_image..images.end * x_image];
        let dy = &dy[images.start * dy_image..images.end * dy_image];
        if split.blocks == 1 {
            return add_products(split.patches, conv.out_channels, x, dy, partial);
        }
        let channels = split.patches.channels;
        let start = task % split.blocks * channels;
        with_scratch(x.len() / split.blocks, |block| {
            for (target, x) in block.chunks_exact_mut(channels).zip(x.chunks_exact(conv.in_channels)) {
                target.copy_from_slice(&x[start..start + channels]);
            }
            add_products(split.patches, conv.out_channels, block, dy, partial);
        });
    });
    reduce(conv, &split, partials, gradient, accumulate);
}

/// Sets `partial` to the sums over all pixels of `dy`, panel by panel.
fn add_products(patches: Patches, columns: usize, x: &[f32], dy: &[f32], partial: &mut [f32]) {
    for (panel, dy) in dy.chunks(PANEL * columns).enumerate() {
        with_scratch(dy.len() / columns * patches.len(), |gathered| {
            patches.gather(x, panel * PANEL, gathered);
            let transposed = Matrix::new(gathered, patches.len()).transposed();
            product(transposed, Matrix::new(dy, columns), partial, panel > 0);
        });
    }
}

/// Adds the partial sums in the order of their runs, from (tap, channel, K) to (K, channel, tap).
fn reduce(conv: &Conv, split: &Split, partials: &[f32], gradient: &mut [f32], accumulate: bool) {
    let taps = conv.kernel * conv.kernel;
    let filter = conv.in_channels * taps;
    let channels = split.patches.channels;
    gradient.par_chunks_mut(16 * filter).enumerate().for_each(|(k, gradient)| {
        for c in 0..conv.in_channels {
            let (block, inner) = (c / channels, c % channels);
            for tap in 0..taps {
                let at = (tap * channels + inner) * conv.out_channels + 16 * k;
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
