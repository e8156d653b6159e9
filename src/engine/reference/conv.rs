//! Convolutions as matrix products: packed weights, forward pass and input gradient.
//!
//! Forward: patches times weights. Input gradient: output gradients times the transposed weights are gradients of
//! patches, which are added where the patches came from; a stride thus costs no multiplication by zero. Checked by
//! `tests/reference_pytorch.rs` and `tests/reference_engine.rs`; called by `eval.rs` and `train.rs`.

use rayon::prelude::*;

use super::fp8::{Scale, largest};
use super::memory::{Aligned, with_scratch};
use super::patches::Patches;
use super::product::{Matrix, product};
use crate::model::Conv;

/// Output pixels of one product: few enough that their patches stay in a cache near the core.
pub const PANEL: usize = 256;

/// Output pixels of one task, out of `total`: eight tasks or more where each still has enough pixels to make up for
/// the library's own packing of the weights.
fn task_pixels(total: usize) -> usize {
    (total / 8).next_power_of_two().clamp(128, 512)
}

/// A convolution with its weights laid out for both directions.
#[derive(Clone)]
pub struct PackedConv {
    conv: Conv,
    patches: Patches,
    /// (tap, channel) x K.
    forward: Aligned,
    /// K x (tap, channel).
    backward: Aligned,
}

impl PackedConv {
    /// Weights are zero until [`PackedConv::pack`].
    pub fn new(conv: &Conv) -> Self {
        let weights = Aligned::zeros(conv.weight_len());
        let patches = Patches::new(conv, conv.in_channels);
        Self { conv: conv.clone(), patches, forward: weights.clone(), backward: weights }
    }

    pub fn conv(&self) -> &Conv {
        &self.conv
    }

    /// Packs `weights` (K, C, R, S), each output channel times its `scale`, where there is one.
    pub fn pack(&mut self, weights: &[f32], scale: Option<&[f32]>) {
        let (depth, columns, channels) = (self.patches.len(), self.conv.out_channels, self.conv.in_channels);
        let filters = self.backward.par_chunks_exact_mut(depth).zip(weights.par_chunks_exact(depth));
        filters.enumerate().for_each(|(k, (target, filter))| {
            let factor = scale.map_or(1.0, |scale| scale[k]);
            for (tap, target) in target.chunks_exact_mut(channels).enumerate() {
                let values = filter[tap..].iter().step_by(depth / channels);
                target.iter_mut().zip(values).for_each(|(slot, value)| *slot = value * factor);
            }
        });
        // Sixteen rows at a time, a cache line of each filter.
        let backward = &self.backward;
        self.forward.par_chunks_mut(16 * columns).enumerate().for_each(|(block, rows)| {
            for (k, filter) in backward.chunks_exact(depth).enumerate() {
                for (row, value) in rows.chunks_exact_mut(columns).zip(&filter[16 * block..]) {
                    row[k] = *value;
                }
            }
        });
    }

    /// The same with weights rounded to e4m3, each direction with a scale for every channel that it does not sum over. The stem,
    /// of three channels, stays as it is.
    pub fn rounded(&self) -> Self {
        let mut rounded = self.clone();
        let channels = self.conv.in_channels;
        if channels == 3 {
            return rounded;
        }
        let round = |values: &mut [f32], channels: usize| {
            let scales: Vec<Scale> = (0..channels)
                .map(|channel| Scale::of(largest(values.iter().skip(channel).step_by(channels))))
                .collect();
            for pixel in values.chunks_exact_mut(channels) {
                pixel.iter_mut().zip(&scales).for_each(|(value, scale)| *value = scale.round(*value));
            }
        };
        round(&mut rounded.forward, self.conv.out_channels);
        round(&mut rounded.backward, channels);
        rounded
    }

    /// `out = conv(x)`, or `out += conv(x)` where `accumulate`.
    ///
    /// `finish(first element, outputs)` sees each task's outputs while they are in cache.
    pub fn forward(
        &self,
        x: &[f32],
        out: &mut [f32],
        accumulate: bool,
        finish: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let (depth, columns) = (self.patches.len(), self.conv.out_channels);
        let task = task_pixels(out.len() / columns);
        out.par_chunks_mut(task * columns).enumerate().for_each(|(t, out)| {
            with_scratch(out.len() / columns * depth, |patches| {
                self.patches.gather(x, t * task, patches);
                product(Matrix::new(patches, depth), Matrix::new(&self.forward, columns), out, accumulate);
            });
            finish(t * task * columns, out);
        });
    }

    /// `dx =` input gradient of `dy`, or `dx +=` where `accumulate`; `finish` as in the forward pass.
    pub fn input_gradient(
        &self,
        dy: &[f32],
        dx: &mut [f32],
        accumulate: bool,
        finish: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let (depth, columns, pixels) = (self.patches.len(), self.conv.out_channels, self.patches.pixels());
        // Whole images, because patches overlap.
        let images = task_pixels(dy.len() / columns).div_ceil(pixels);
        let (dx_task, dy_task) = (images * self.patches.image_len(), images * pixels * columns);
        dx.par_chunks_mut(dx_task).zip(dy.par_chunks(dy_task)).enumerate().for_each(|(task, (dx, dy))| {
            if !accumulate {
                dx.fill(0.0);
            }
            for (panel, dy) in dy.chunks(PANEL * columns).enumerate() {
                with_scratch(dy.len() / columns * depth, |patches| {
                    product(Matrix::new(dy, columns), Matrix::new(&self.backward, depth), patches, false);
                    self.patches.scatter_add(patches, panel * PANEL, dx);
                });
            }
            finish(task * dx_task, dx);
        });
    }
}
