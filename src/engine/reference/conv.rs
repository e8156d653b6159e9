//! Convolutions: packed weights, forward, and input gradient (stride 2 by output phases, no multiply by zero).
//!
//! Every task takes a few images, copies their input into scratch with a border of zeros, and runs the register-tiled
//! product of `product.rs` panel by panel, so that a panel of weights stays in L1 while all pixels of the task pass.
//! Outputs are accumulated: the caller's `prepare` writes what they start from (zero, a bias, a residual), `finish`
//! sees a task's outputs while they are in cache. Checked by `tests/reference_pytorch.rs` and
//! `tests/reference_engine.rs`; called by `eval.rs` and `train.rs`.

use pulp::Arch;
use rayon::prelude::*;

use super::memory::{Aligned, with_scratch};
use super::product::{Grid, Product, Segment, Strides, panel_width};
use crate::model::Conv;

/// Longest reduction of one product: its panel of weights (32 columns) then takes half of a 48 KiB L1.
const MAX_DEPTH: usize = 192;

/// Images of one task: about as many as give 128 output pixels, so that weights from L3 are used often enough.
pub fn task_images(side: usize) -> usize {
    (128 / (side * side)).max(1)
}

/// Weights packed as panels of columns, `depth x panel` each; depth runs over (line, tap in line, channel).
struct Filter {
    panel: usize,
    lines: usize,
    /// Reduction length inside one line of the input: taps x channels.
    line_depth: usize,
    values: Aligned,
}

impl Filter {
    /// For outputs that come in runs of `rows` pixels.
    fn new(columns: usize, lines: usize, line_depth: usize, rows: usize) -> Self {
        let panel = panel_width(columns, rows);
        Self { panel, lines, line_depth, values: Aligned::zeros(columns * lines * line_depth) }
    }

    fn depth(&self) -> usize {
        self.lines * self.line_depth
    }

    /// `value(line, position in line, column)`.
    fn pack(&mut self, value: impl Fn(usize, usize, usize) -> f32 + Sync) {
        let (depth, panel, line_depth) = (self.depth(), self.panel, self.line_depth);
        self.values.par_chunks_mut(depth * panel).enumerate().for_each(|(p, values)| {
            for (d, values) in values.chunks_exact_mut(panel).enumerate() {
                for (k, slot) in values.iter_mut().enumerate() {
                    *slot = value(d / line_depth, d % line_depth, p * panel + k);
                }
            }
        });
    }

    /// The reduction cut into products: segments at least a line's worth, at most [`MAX_DEPTH`] together.
    fn groups(&self, x_line: usize) -> Vec<Vec<Segment>> {
        let mut groups: Vec<Vec<Segment>> = vec![Vec::new()];
        let mut taken = 0;
        let pieces = self.line_depth.div_ceil(MAX_DEPTH);
        for line in 0..self.lines {
            for piece in 0..pieces {
                let start = piece * self.line_depth / pieces;
                let len = (piece + 1) * self.line_depth / pieces - start;
                if taken + len > MAX_DEPTH && taken > 0 {
                    groups.push(Vec::new());
                    taken = 0;
                }
                let w = (line * self.line_depth + start) * self.panel;
                groups.last_mut().expect("never empty").push(Segment { x: line * x_line + start, w, len });
                taken += len;
            }
        }
        groups
    }

    /// Adds the correlation of `x` with this filter to `out`; `x_line` is the pitch of an input line.
    #[allow(clippy::too_many_arguments)]
    fn apply(
        &self,
        arch: Arch,
        x: &[f32],
        x_line: usize,
        out: &mut [f32],
        x_row: usize,
        out_row: usize,
        grid: Grid,
        relu: bool,
    ) {
        let groups = self.groups(x_line);
        for (p, w) in self.values.chunks_exact(self.depth() * self.panel).enumerate() {
            for (g, segments) in groups.iter().enumerate() {
                Product {
                    x,
                    w,
                    out: &mut out[p * self.panel..],
                    segments,
                    strides: Strides { x_row, x_step: 1, w_step: self.panel, out_row },
                    grid,
                    panel: self.panel,
                    relu: relu && g + 1 == groups.len(),
                }
                .run(arch);
            }
        }
    }
}

/// One output phase of an input gradient: pixels `(stride * i + row, stride * j + column)`.
struct Phase {
    row: usize,
    column: usize,
    filter: Filter,
}

/// A convolution with its weights packed for both directions.
pub struct PackedConv {
    conv: Conv,
    forward: Filter,
    phases: Vec<Phase>,
}

/// The taps, in the order of the output lines they read, that feed input positions of parity `phase`.
///
/// Input position `u` meets output position `h` at tap `r` where `u = stride * h + r - padding`.
fn phase_taps(kernel: usize, stride: usize, phase: usize) -> &'static [usize] {
    match (kernel, stride, phase) {
        (3, 1, 0) => &[2, 1, 0],
        (3, 2, 0) => &[1],
        (3, 2, 1) => &[2, 0],
        (1, _, 0) => &[0],
        _ => &[],
    }
}

impl PackedConv {
    /// Weights are zero until [`PackedConv::pack`].
    pub fn new(conv: &Conv) -> Self {
        let Conv { in_channels, out_channels, kernel, stride, in_side, .. } = *conv;
        let forward = Filter::new(out_channels, kernel, kernel * in_channels, conv.out_side());
        let mut phases = Vec::new();
        // The stem's input gradient has three channels and goes through `stem.rs`.
        for row in 0..if in_channels.is_multiple_of(16) { stride } else { 0 } {
            for column in 0..stride {
                let lines = phase_taps(kernel, stride, row).len();
                let taps = phase_taps(kernel, stride, column).len();
                if lines * taps > 0 {
                    let filter = Filter::new(in_channels, lines, taps * out_channels, in_side / stride);
                    phases.push(Phase { row, column, filter });
                }
            }
        }
        Self { conv: conv.clone(), forward, phases }
    }

    pub fn conv(&self) -> &Conv {
        &self.conv
    }

    /// Packs `weights` (K, C, R, S), each output channel times its `scale`, where there is one.
    pub fn pack(&mut self, weights: &[f32], scale: Option<&[f32]>) {
        let Conv { in_channels, out_channels, kernel, stride, .. } = self.conv;
        assert_eq!(weights.len(), self.conv.weight_len());
        let taps = kernel * kernel;
        let weight = |k: usize, c: usize, r: usize, s: usize| {
            weights[(k * in_channels + c) * taps + r * kernel + s] * scale.map_or(1.0, |scale| scale[k])
        };
        self.forward.pack(|r, at, k| weight(k, at % in_channels, r, at / in_channels));
        for phase in &mut self.phases {
            let rows = phase_taps(kernel, stride, phase.row);
            let columns = phase_taps(kernel, stride, phase.column);
            phase
                .filter
                .pack(|line, at, c| weight(at % out_channels, c, rows[line], columns[at / out_channels]));
        }
    }

    /// `out += conv(x)`, then ReLU if asked, image group by image group.
    ///
    /// `prepare(first image, outputs)` writes what a group's outputs start from; `finish` sees them done.
    pub fn forward(
        &self,
        arch: Arch,
        x: &[f32],
        out: &mut [f32],
        relu: bool,
        prepare: impl Fn(usize, &mut [f32]) + Sync,
        finish: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let Conv { in_channels, out_channels, stride, in_side, .. } = self.conv;
        let (side, padding) = (self.conv.out_side(), self.conv.padding());
        let images = task_images(side);
        let x_image = in_side * in_side * in_channels;
        let out_image = side * side * out_channels;
        out.par_chunks_mut(images * out_image).enumerate().for_each(|(task, out)| {
            let (first, count) = (task * images, out.len() / out_image);
            prepare(first, out);
            let x = &x[first * x_image..][..count * x_image];
            let pitch = (in_side + 2 * padding) * in_channels;
            let plane = (in_side + 2 * padding) * pitch;
            let grid = Grid {
                planes: count,
                x_plane: plane,
                out_plane: out_image,
                lines: side,
                x_line: stride * pitch,
                out_line: side * out_channels,
                rows: side,
            };
            let mut run = |x: &[f32]| {
                self.forward.apply(arch, x, pitch, out, stride * in_channels, out_channels, grid, relu);
            };
            if padding == 0 {
                run(x);
            } else {
                with_scratch(count * plane, |padded| {
                    pad(x, padded, in_side, in_channels, padding, padding);
                    run(padded);
                });
            }
            finish(first, out);
        });
    }

    /// `dx += input gradient of dy`, image group by image group; `prepare` and `finish` as in the forward pass.
    pub fn input_gradient(
        &self,
        arch: Arch,
        dy: &[f32],
        dx: &mut [f32],
        prepare: impl Fn(usize, &mut [f32]) + Sync,
        finish: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let Conv { in_channels, out_channels, kernel, stride, in_side, .. } = self.conv;
        let side = self.conv.out_side();
        let images = task_images(in_side);
        let dx_image = in_side * in_side * in_channels;
        let dy_image = side * side * out_channels;
        // Phases of a stride-2 convolution look at positions i and i + 1, a stride-1 convolution at i - 1 too.
        let (before, after) = match (kernel, stride) {
            (3, 1) => (1, 1),
            (3, 2) => (0, 1),
            _ => (0, 0),
        };
        dx.par_chunks_mut(images * dx_image).enumerate().for_each(|(task, dx)| {
            let (first, count) = (task * images, dx.len() / dx_image);
            prepare(first, dx);
            let dy = &dy[first * dy_image..][..count * dy_image];
            let pitch = (side + before + after) * out_channels;
            let plane = (side + before + after) * pitch;
            with_scratch(count * plane, |padded| {
                let dy = if before + after == 0 {
                    dy
                } else {
                    pad(dy, padded, side, out_channels, before, after);
                    &*padded
                };
                for Phase { row, column, filter } in &self.phases {
                    let grid = Grid {
                        planes: count,
                        x_plane: plane,
                        out_plane: dx_image,
                        lines: in_side / stride,
                        x_line: pitch,
                        out_line: stride * in_side * in_channels,
                        rows: in_side / stride,
                    };
                    let start = (row * in_side + column) * in_channels;
                    let out = &mut dx[start..];
                    filter.apply(arch, dy, pitch, out, out_channels, stride * in_channels, grid, false);
                }
            });
            finish(first, dx);
        });
    }
}

/// Copies images of `side x side x channels` into the middle of zero borders, `before` and `after` pixels wide.
pub fn pad(x: &[f32], padded: &mut [f32], side: usize, channels: usize, before: usize, after: usize) {
    let line = side * channels;
    let pitch = (side + before + after) * channels;
    let plane = (side + before + after) * pitch;
    for (x, padded) in x.chunks_exact(side * line).zip(padded.chunks_exact_mut(plane)) {
        padded[..before * pitch].fill(0.0);
        padded[plane - after * pitch..].fill(0.0);
        let lines = padded[before * pitch..].chunks_exact_mut(pitch);
        for (x, padded) in x.chunks_exact(line).zip(lines) {
            padded[..before * channels].fill(0.0);
            padded[before * channels..][..line].copy_from_slice(x);
            padded[before * channels + line..].fill(0.0);
        }
    }
}
