//! Rows of words by index: a batch compacted to some of its samples, and back.
//!
//! Checked by `tests/paired_losses.rs`; called by the engine.

use super::invalid;
use super::memory::{Heap, expect_len};
use crate::engine::{Result, Tensor};

/// `to[i] = from[rows[i]]`.
pub fn gather(
    heap: &Heap,
    from: &Tensor<u32>,
    rows: &Tensor<u32>,
    row_len: usize,
    to: &Tensor<u32>,
) -> Result<()> {
    let rows = checked(heap, rows, row_len, from)?;
    expect_len(to, rows.len() * row_len)?;
    let (from, mut to) = (heap.view(from)?, heap.view_mut(to)?);
    for (slot, row) in to.chunks_exact_mut(row_len).zip(rows) {
        slot.copy_from_slice(&from[row * row_len..][..row_len]);
    }
    Ok(())
}

/// `to[rows[i]] = from[i]`.
pub fn scatter(
    heap: &Heap,
    from: &Tensor<u32>,
    rows: &Tensor<u32>,
    row_len: usize,
    to: &Tensor<u32>,
) -> Result<()> {
    let rows = checked(heap, rows, row_len, to)?;
    expect_len(from, rows.len() * row_len)?;
    let (from, mut to) = (heap.view(from)?, heap.view_mut(to)?);
    for (values, row) in from.chunks_exact(row_len).zip(rows) {
        to[row * row_len..][..row_len].copy_from_slice(values);
    }
    Ok(())
}

/// The rows, all of which `indexed` has.
pub fn checked(heap: &Heap, rows: &Tensor<u32>, row_len: usize, indexed: &Tensor<u32>) -> Result<Vec<usize>> {
    if row_len == 0 {
        return invalid(format!("{}: rows of 0 elements, expected 1 at least", indexed.name()));
    }
    let count = indexed.len() / row_len;
    expect_len(indexed, count * row_len)?;
    let values = heap.copy(rows)?;
    if let Some(at) = values.iter().position(|&row| row as usize >= count) {
        let (name, row, of) = (rows.name(), values[at], indexed.name());
        return invalid(format!("{name}: row {row} at position {at}, but {of} has {count} rows"));
    }
    Ok(values.into_iter().map(|row| row as usize).collect())
}
