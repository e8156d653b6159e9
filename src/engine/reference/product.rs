//! The matrix product of all convolutions: a checked view of matrices in slices, around the `gemm` crate.
//!
//! A product runs on the calling thread; the callers cut work into tasks. The bits of an element depend on its row, its
//! column and the depth alone, not on how many rows and columns there are: an image's logits are the same in every batch.
//! Checked through the convolutions by `tests/reference_pytorch.rs`, and that bits do not depend on the batch by
//! `tests/apgd.rs`; called by `conv.rs` and `conv_weight.rs`.

use std::sync::atomic::{AtomicU64, Ordering};

use gemm::{Parallelism, gemm};

/// Operations of all products of this process.
static FLOPS: AtomicU64 = AtomicU64::new(0);

/// Floating-point operations of all products of this process, a multiply-add counted as two.
pub fn flops_so_far() -> u64 {
    FLOPS.load(Ordering::Relaxed)
}

/// A matrix that lies row by row in a slice, or its transpose.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// As many rows as `values` has.
    pub fn new(values: &'a [f32], columns: usize) -> Self {
        assert!(values.len().is_multiple_of(columns), "{} values in rows of {columns}", values.len());
        Self { values, rows: values.len() / columns, columns, row_stride: columns, column_stride: 1 }
    }

    pub fn transposed(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// The library cuts a deeper product into blocks whose depth depends on rows and columns, and with it the order of
/// additions; up to this depth it never does.
const DEPTH: usize = 512;

/// `out = left * right`, or `out += left * right` where `accumulate`; `out` lies row by row.
pub fn product(left: Matrix, right: Matrix, out: &mut [f32], accumulate: bool) {
    let (rows, columns, depth) = (left.rows, right.columns, left.columns);
    assert_eq!(depth, right.rows, "columns of the left and rows of the right matrix");
    assert_eq!(
        out.len(),
        rows * columns,
        "elements of the product of {rows} x {depth} and {depth} x {columns}"
    );
    FLOPS.fetch_add(2 * (rows * columns * depth) as u64, Ordering::Relaxed);
    let block = depth.div_ceil(depth.div_ceil(DEPTH).max(1)).max(1);
    // A product of no depth is zero: the library says so too.
    for from in (0..depth.max(1)).step_by(block) {
        // SAFETY: a `Matrix` holds rows * columns values, and its two strides reach each of them and nothing else: the
        // block starts inside (or, of no depth, is not read) and ends where the depth does. `out` has rows * columns
        // elements, is borrowed exclusively, and is read only where there is something to add to. Every stride is at
        // most the length of a slice, which fits an isize.
        unsafe {
            gemm(
                rows,
                columns,
                block.min(depth - from),
                out.as_mut_ptr(),
                1,
                columns as isize,
                accumulate || from > 0,
                left.values.as_ptr().add(from * left.column_stride),
                left.column_stride as isize,
                left.row_stride as isize,
                right.values.as_ptr().add(from * right.row_stride),
                right.column_stride as isize,
                right.row_stride as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

/// The instructions that the products run on.
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if is_x86_feature_detected!("fma") {
            return "avx2";
        }
    }
    if cfg!(target_arch = "aarch64") { "neon" } else { "scalar" }
}
