//! The one inner loop of all convolutions: a register-tiled matrix product over gathered segments, in f32.
//!
//! `out[i][k] += sum over segments, over l: x[segment.x + i * x_row + l * x_step] * w[segment.w + l * w_step + k]`
//!
//! A forward pass and an input gradient take `i` as a pixel and `l` as (tap, channel), which lie side by side in
//! NHWC: the image is read in place, no im2col. A weight gradient takes `i` as (tap, channel) and `l` as a pixel.
//! `k` is always the vector axis. Each output element is one chain of fused multiply-adds in a fixed order, so the
//! bits depend neither on the tiling nor on the number of threads. Checked through the convolutions by
//! `tests/reference_pytorch.rs`; called by `conv.rs` and `conv_weight.rs`.
//!
//! The only `unsafe` of the reference engine is here: the bounds of a whole tile are checked once, before its loop.

use pulp::{Arch, Simd, WithSimd};

/// `len` consecutive steps of the reduction.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub x: usize,
    pub w: usize,
    pub len: usize,
}

/// Distances in elements: between rows and steps of `x`, steps of `w`, rows of `out`.
#[derive(Clone, Copy, Debug)]
pub struct Strides {
    pub x_row: usize,
    pub x_step: usize,
    pub w_step: usize,
    pub out_row: usize,
}

/// Where the rows of a product lie: `planes x lines` runs of `rows` rows each.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    pub planes: usize,
    pub x_plane: usize,
    pub out_plane: usize,
    pub lines: usize,
    pub x_line: usize,
    pub out_line: usize,
    pub rows: usize,
}

/// Columns of `out` that one product computes: a power of two that fits the register tile for runs of `rows` rows.
pub fn panel_width(columns: usize, rows: usize) -> usize {
    assert!(columns.is_multiple_of(16), "{columns} columns: not a multiple of 16");
    match (rows.is_multiple_of(8), columns) {
        (false, k) if k.is_multiple_of(64) => 64,
        (_, k) if k.is_multiple_of(32) => 32,
        _ => 16,
    }
}

/// One panel of columns over a whole grid of rows.
pub struct Product<'a> {
    pub x: &'a [f32],
    pub w: &'a [f32],
    pub out: &'a mut [f32],
    pub segments: &'a [Segment],
    pub strides: Strides,
    pub grid: Grid,
    /// 16, 32 or 64 columns, see [`panel_width`].
    pub panel: usize,
    /// Ends with `max(0, out)`.
    pub relu: bool,
}

impl Product<'_> {
    /// Adds the product to `out`.
    pub fn run(self, arch: Arch) {
        arch.dispatch(self);
    }
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Tiles of rows x vectors that keep all accumulators in registers; the lanes of narrower vectors are
        // covered by more sub-panels.
        match (self.panel, self.grid.rows) {
            (64, _) if S::REGISTER_COUNT >= 32 => self.sweep::<S, 4, 4>(simd),
            (16, rows) if rows.is_multiple_of(16) && S::F32_LANES == 16 => self.sweep::<S, 16, 1>(simd),
            (16, _) if S::F32_LANES == 16 => self.sweep::<S, 8, 1>(simd),
            _ if S::REGISTER_COUNT >= 32 => self.sweep::<S, 8, 2>(simd),
            _ => self.sweep::<S, 4, 2>(simd),
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn sweep<S: Simd, const ROWS: usize, const VECTORS: usize>(mut self, simd: S) {
        let columns = VECTORS * S::F32_LANES;
        for column in (0..self.panel).step_by(columns) {
            for plane in 0..self.grid.planes {
                for line in 0..self.grid.lines {
                    let x = plane * self.grid.x_plane + line * self.grid.x_line;
                    let out = plane * self.grid.out_plane + line * self.grid.out_line + column;
                    let tiled = self.grid.rows / ROWS * ROWS;
                    for row in (0..tiled).step_by(ROWS) {
                        self.tile::<S, ROWS, VECTORS>(simd, x, out, column, row);
                    }
                    for row in tiled..self.grid.rows {
                        self.tile::<S, 1, VECTORS>(simd, x, out, column, row);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
        &mut self,
        simd: S,
        x: usize,
        out: usize,
        column: usize,
        row: usize,
    ) {
        let Strides { x_row, x_step, w_step, out_row } = self.strides;
        let (x, out) = (x + row * x_row, out + row * out_row);
        let columns = VECTORS * S::F32_LANES;
        assert!(out + (ROWS - 1) * out_row + columns <= self.out.len());
        let zero = simd.splat_f32s(0.0);
        let mut sums = [[zero; VECTORS]; ROWS];
        let target = self.out[out..].as_mut_ptr();
        for (i, sums) in sums.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the assertion above covers row ROWS - 1 and all columns; S::f32s is plain old data.
                *sum =
                    unsafe { target.add(i * out_row + v * S::F32_LANES).cast::<S::f32s>().read_unaligned() };
            }
        }
        for segment in self.segments {
            if segment.len == 0 {
                continue;
            }
            let (x, w, last) = (x + segment.x, segment.w + column, segment.len - 1);
            assert!(x + (ROWS - 1) * x_row + last * x_step < self.x.len());
            assert!(w + last * w_step + columns <= self.w.len());
            // SAFETY: the two assertions cover the largest index of each operand; all strides are unsigned, so
            // every smaller row, step and column lies below it.
            unsafe {
                let mut x = self.x.as_ptr().add(x);
                let mut w = self.w.as_ptr().add(w);
                for _ in 0..segment.len {
                    let mut vectors = [zero; VECTORS];
                    for (v, vector) in vectors.iter_mut().enumerate() {
                        *vector = w.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned();
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let factor = simd.splat_f32s(*x.add(i * x_row));
                        for (sum, vector) in sums.iter_mut().zip(vectors) {
                            *sum = simd.mul_add_e_f32s(factor, vector, *sum);
                        }
                    }
                    x = x.wrapping_add(x_step);
                    w = w.wrapping_add(w_step);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let sum = if self.relu { simd.max_f32s(zero, sum) } else { sum };
                // SAFETY: the same elements that were read above.
                unsafe { target.add(i * out_row + v * S::F32_LANES).cast::<S::f32s>().write_unaligned(sum) };
            }
        }
    }
}
