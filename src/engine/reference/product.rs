//! The matrix product of all convolutions: a checked view of matrices in slices, around the `gemm` crate.
//!
//! A product runs on the calling thread; the callers cut work into tasks. Its bits depend on the shapes alone.
//! Checked through the convolutions by `tests/reference_pytorch.rs`; called by `conv.rs` and `conv_weight.rs`.

use gemm::{Parallelism, gemm};

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

/// `out = left * right`, or `out += left * right` where `accumulate`; `out` lies row by row.
pub fn product(left: Matrix, right: Matrix, out: &mut [f32], accumulate: bool) {
    let (rows, columns, depth) = (left.rows, right.columns, left.columns);
    assert_eq!(depth, right.rows, "columns of the left and rows of the right matrix");
    assert_eq!(
        out.len(),
        rows * columns,
        "elements of the product of {rows} x {depth} and {depth} x {columns}"
    );
    // SAFETY: a `Matrix` holds rows * columns values, and its two strides reach each of them and nothing else; `out`
    // has rows * columns elements, is borrowed exclusively, and is read only where `accumulate`. Every stride is at
    // most the length of a slice, which fits an isize.
    unsafe {
        gemm(
            rows,
            columns,
            depth,
            out.as_mut_ptr(),
            1,
            columns as isize,
            accumulate,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
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
