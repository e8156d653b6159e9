//! Random search over squares: the image that a query tries, and its acceptance by the margin.
//!
//! The reference of `kernels/attack/square.cu`. Checked by `tests/square.rs`; called by `attack/square.rs`.

use rayon::prelude::*;

use super::engine::Reference;
use super::invalid;
use super::margin::margin;
use super::memory::{Heap, expect_len};
use super::rows::checked;
use crate::engine::{Engine, Pattern, Query, RandomSquares, Result, SearchState, Tensor};
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};

impl RandomSquares for Reference {
    fn square_propose(
        &mut self,
        query: &Query,
        rows: &Tensor<u32>,
        state: &SearchState,
        candidates: &Tensor<f32>,
    ) -> Result<()> {
        query.check()?;
        let heap = self.heap;
        let rows = searched(&heap, rows, state)?;
        expect_len(candidates, rows.len() * IMAGE_LEN)?;
        let (samples, images) = (heap.copy(state.samples)?, heap.copy(state.images)?);
        let best = heap.copy(state.best)?;
        let mut candidates = heap.view_mut(candidates)?;
        candidates.par_chunks_exact_mut(IMAGE_LEN).zip(&rows).for_each(|(candidate, &row)| {
            let of = row * IMAGE_LEN..(row + 1) * IMAGE_LEN;
            propose(query, samples[row], &images[of.clone()], &best[of], candidate);
        });
        Ok(())
    }

    fn square_accept(
        &mut self,
        rows: &Tensor<u32>,
        logits: &Tensor<f32>,
        candidates: &Tensor<f32>,
        state: &SearchState,
    ) -> Result<()> {
        let (heap, classes) = (self.heap, self.network().classes);
        let rows = searched(&heap, rows, state)?;
        expect_len(logits, rows.len() * classes)?;
        expect_len(candidates, rows.len() * IMAGE_LEN)?;
        let (logits, labels) = (heap.copy(logits)?, heap.copy(state.labels)?);
        let candidates = heap.copy(candidates)?;
        let (mut margins, mut queries) = (heap.view_mut(state.margins)?, heap.view_mut(state.queries)?);
        let mut best = heap.view_mut(state.best)?;
        let tried = logits.chunks_exact(classes).zip(candidates.chunks_exact(IMAGE_LEN));
        for (&row, (logits, candidate)) in rows.iter().zip(tried) {
            let before = margins[row];
            if before < 0.0 {
                continue;
            }
            queries[row] += 1;
            let margin = margin(logits, labels[row]);
            if margin < before || margin.is_nan() || before.is_nan() {
                margins[row] = margin;
                best[row * IMAGE_LEN..(row + 1) * IMAGE_LEN].copy_from_slice(candidate);
            }
        }
        Ok(())
    }
}

/// The rows, all of which the search has; every tensor of the search has its length.
fn searched(heap: &Heap, rows: &Tensor<u32>, state: &SearchState) -> Result<Vec<usize>> {
    let count = state.labels.len();
    expect_len(state.samples, count)?;
    expect_len(state.images, count * IMAGE_LEN)?;
    expect_len(state.best, count * IMAGE_LEN)?;
    expect_len(state.margins, count)?;
    expect_len(state.queries, count)?;
    if rows.is_empty() {
        return invalid(format!("{}: no rows, expected 1 at least", rows.name()));
    }
    checked(heap, rows, 1, state.labels)
}

/// The candidate for one image.
fn propose(query: &Query, sample: u32, image: &[f32], best: &[f32], candidate: &mut [f32]) {
    let epsilon = query.epsilon;
    let words = query.key.block(sample, query.number);
    let sign = |word: u32, bit: usize| if word >> bit & 1 == 1 { 1.0 } else { -1.0 };
    match query.pattern {
        Pattern::Stripes => {
            for (e, (out, x)) in candidate.iter_mut().zip(image).enumerate() {
                let (column, channel) = (e / 3 % IMAGE_SIDE, e % 3);
                *out = (x + epsilon * sign(words[channel], column)).clamp(0.0, 1.0);
            }
        }
        Pattern::Square { side } => {
            // floor(u * free) with u = (word >> 8) / 2^24.
            let first = |word: u32| ((word >> 8) as usize * (IMAGE_SIDE - side)) >> 24;
            let (first_row, first_column) = (first(words[0]), first(words[1]));
            let (square_rows, square_columns) =
                (first_row..first_row + side, first_column..first_column + side);
            for (e, (out, (x, best))) in candidate.iter_mut().zip(image.iter().zip(best)).enumerate() {
                let (row, column, channel) = (e / 3 / IMAGE_SIDE, e / 3 % IMAGE_SIDE, e % 3);
                let inside = square_rows.contains(&row) && square_columns.contains(&column);
                let change = if inside { 2.0 * epsilon * sign(words[2], channel) } else { 0.0 };
                *out = (best + change).max(x - epsilon).min(x + epsilon).clamp(0.0, 1.0);
            }
        }
    }
}
