//! The input gradient of the stem, whose three channels would waste a vector axis.
//!
//! One product gives all 27 (tap, channel) contributions of each output pixel, then they are added where they
//! belong. Checked by `tests/reference_pytorch.rs`; called by `eval.rs` and `train.rs`.

use pulp::Arch;
use rayon::prelude::*;

use super::memory::{Aligned, with_scratch};
use super::product::{Grid, Product, Segment, Strides};
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};

const CHANNELS: usize = 3;
/// Columns of the product: 27 contributions and five of padding.
const COLUMNS: usize = 32;

/// The stem's weights as K x 32: column `(r * 3 + s) * 3 + c`.
pub struct StemGradient {
    width: usize,
    values: Aligned,
}

impl StemGradient {
    pub fn new(width: usize) -> Self {
        Self { width, values: Aligned::zeros(width * COLUMNS) }
    }

    /// Packs `weights` (K, C, R, S), each output channel times its `scale`, where there is one.
    pub fn pack(&mut self, weights: &[f32], scale: Option<&[f32]>) {
        for (k, row) in self.values.chunks_exact_mut(COLUMNS).enumerate() {
            let factor = scale.map_or(1.0, |scale| scale[k]);
            for (at, slot) in row[..9 * CHANNELS].iter_mut().enumerate() {
                *slot = weights[(k * CHANNELS + at % CHANNELS) * 9 + at / CHANNELS] * factor;
            }
        }
    }

    /// Sets `dx` (images) from `dy` (the stem's outputs).
    pub fn input_gradient(&self, arch: Arch, dy: &[f32], dx: &mut [f32]) {
        let pixels = IMAGE_SIDE * IMAGE_SIDE;
        let pitch = (IMAGE_SIDE + 2) * CHANNELS;
        let images = dy.par_chunks_exact(pixels * self.width);
        dx.par_chunks_exact_mut(IMAGE_LEN).zip(images).for_each(|(dx, dy)| {
            with_scratch(pixels * COLUMNS + (IMAGE_SIDE + 2) * pitch, |scratch| {
                let (parts, padded) = scratch.split_at_mut(pixels * COLUMNS);
                parts.fill(0.0);
                padded.fill(0.0);
                Product {
                    x: dy,
                    w: &self.values,
                    out: parts,
                    segments: &[Segment { x: 0, w: 0, len: self.width }],
                    strides: Strides { x_row: self.width, x_step: 1, w_step: COLUMNS, out_row: COLUMNS },
                    grid: Grid {
                        planes: 1,
                        x_plane: 0,
                        out_plane: 0,
                        lines: 1,
                        x_line: 0,
                        out_line: 0,
                        rows: pixels,
                    },
                    panel: COLUMNS,
                    relu: false,
                }
                .run(arch);
                for (p, parts) in parts.chunks_exact(COLUMNS).enumerate() {
                    let at = p / IMAGE_SIDE * pitch + p % IMAGE_SIDE * CHANNELS;
                    for (r, parts) in parts.chunks_exact(3 * CHANNELS).take(3).enumerate() {
                        let target = &mut padded[at + r * pitch..][..3 * CHANNELS];
                        target.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
                    }
                }
                for (h, dx) in dx.chunks_exact_mut(IMAGE_SIDE * CHANNELS).enumerate() {
                    let start = (h + 1) * pitch + CHANNELS;
                    dx.copy_from_slice(&padded[start..start + IMAGE_SIDE * CHANNELS]);
                }
            });
        });
    }
}
