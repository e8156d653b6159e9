//! A product of two f32 matrices, ten rows by 32 columns, whose sums stay in registers: estimates of a selection.

// Indices stand for registers: every loop over them unrolls.
#![allow(clippy::needless_range_loop)]

use super::isa::Isa;
use super::tiles::LANES;
#[cfg(target_arch = "aarch64")]
use super::vector::Neon;
#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};
use super::vector::{Portable, Vector};

/// Columns and rows of a matrix product that [`Isa::multiply_columns`] makes at once.
pub const COLUMNS: usize = 2 * LANES;
pub const ROWS: usize = 10;

/// A number of each column, where a vector is one load.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Lanes(pub [f32; COLUMNS]);

impl Lanes {
    pub const ZERO: Self = Self([0.0; COLUMNS]);
}

/// `columns(matrix, values, terms, sums)`.
pub type Columns = unsafe fn(*const f32, *const f32, usize, *mut f32);

impl Isa {
    /// `sums[c][i] = sum_j matrix[j][c] values[j][i]` in f32, each sum in the order of j.
    ///
    /// # Panics
    /// If the matrix and the values have not as many rows.
    pub fn multiply_columns(&self, matrix: &[[f32; ROWS]], values: &[Lanes], sums: &mut [Lanes; ROWS]) {
        assert_eq!(matrix.len(), values.len(), "rows of a matrix and of what it multiplies");
        // SAFETY: the slices hold what is read and written; `Isa::present` found the instructions.
        unsafe {
            let (terms, sums) = (matrix.len(), sums.as_mut_ptr().cast());
            (self.columns)(matrix.as_ptr().cast(), values.as_ptr().cast(), terms, sums);
        }
    }
}

#[inline(always)]
unsafe fn columns<V: Vector, const P: usize, const N: usize>(
    matrix: *const f32,
    values: *const f32,
    terms: usize,
    out: *mut f32,
) {
    // SAFETY: the caller's pointers reach `terms` rows, and every sum.
    unsafe {
        for first in (0..ROWS).step_by(P) {
            for lane in (0..COLUMNS).step_by(N * LANES) {
                let (matrix, values) = (matrix.add(first), values.add(lane));
                let mut sums = [[V::zero(); N]; P];
                for term in 0..terms {
                    let row: [V; N] =
                        std::array::from_fn(|n| V::load(values.add(term * COLUMNS + n * LANES)));
                    for p in 0..P {
                        let x = V::splat(matrix.add(term * ROWS + p));
                        for n in 0..N {
                            sums[p][n] = sums[p][n].add_product(x, row[n]);
                        }
                    }
                }
                for p in 0..P {
                    for n in 0..N {
                        sums[p][n].store(out.add((first + p) * COLUMNS + lane + n * LANES));
                    }
                }
            }
        }
    }
}

/// [`columns`] of an instruction set, in a function that may use its instructions.
macro_rules! columns {
    ($vector:ty, [$($features:literal)?], wide: $wide:literal) => {{
        $(#[target_feature(enable = $features)])?
        unsafe fn columns_of(matrix: *const f32, values: *const f32, terms: usize, sums: *mut f32) {
            const VECTORS: usize = 1 + $wide as usize;
            // SAFETY: the caller's.
            unsafe { columns::<$vector, { ROWS * VECTORS / 2 }, VECTORS>(matrix, values, terms, sums) }
        }
        columns_of
    }};
}

#[cfg(target_arch = "x86_64")]
pub const AVX512: Columns = columns!(Avx512, ["avx512f"], wide: true);
#[cfg(target_arch = "x86_64")]
pub const AVX2: Columns = columns!(Avx2, ["avx2,fma"], wide: false);
#[cfg(target_arch = "aarch64")]
pub const NEON: Columns = columns!(Neon, [], wide: false);
pub const PORTABLE: Columns = columns!(Portable, [], wide: false);
