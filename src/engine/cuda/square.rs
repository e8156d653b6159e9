//! Random search over squares on the cuda engine. Checked by `tests/square.rs`; called by `attack/square.rs`.

use super::engine::Cuda;
use super::launch::square::{self, Proposal, SquareAcceptParams};
use crate::engine::{Engine, Error, Query, RandomSquares, Result, SearchState, Tensor};
use crate::model::layers::IMAGE_LEN;

impl RandomSquares for Cuda {
    fn square_propose(
        &mut self,
        query: &Query,
        rows: &Tensor<u32>,
        state: &SearchState,
        candidates: &Tensor<f32>,
    ) -> Result<()> {
        query.check()?;
        let count = self.searched(rows, state)?;
        let proposal = Proposal {
            rows: self.address(rows)?,
            taking_part: rows.len(),
            samples: self.address(state.samples)?,
            images: self.address(state.images)?,
            best: self.address(state.best)?,
            count,
            candidates: self.sized(candidates, rows.len() * IMAGE_LEN)?,
        };
        self.images_change();
        square::square_propose(self.driver(), query, &proposal)
    }

    fn square_accept(
        &mut self,
        rows: &Tensor<u32>,
        logits: &Tensor<f32>,
        candidates: &Tensor<f32>,
        state: &SearchState,
    ) -> Result<()> {
        let count = self.searched(rows, state)?;
        let params = SquareAcceptParams {
            rows: self.address(rows)?,
            labels: self.address(state.labels)?,
            logits: self.logits(logits, rows.len())?,
            candidates: self.sized(candidates, rows.len() * IMAGE_LEN)?,
            margins: self.address(state.margins)?,
            queries: self.address(state.queries)?,
            best: self.address(state.best)?,
            count: count as u32,
            classes: self.network().classes as u32,
        };
        self.images_change();
        square::square_accept(self.driver(), rows.len(), &params)
    }
}

impl Cuda {
    /// Images of a search, after a look at the length of every tensor.
    fn searched(&self, rows: &Tensor<u32>, state: &SearchState) -> Result<usize> {
        let count = state.labels.len();
        self.sized(state.samples, count)?;
        self.sized(state.images, count * IMAGE_LEN)?;
        self.sized(state.best, count * IMAGE_LEN)?;
        self.sized(state.margins, count)?;
        self.sized(state.queries, count)?;
        if rows.is_empty() {
            return Err(Error::Invalid(format!("{}: no rows, expected 1 at least", rows.name())));
        }
        Ok(count)
    }
}
