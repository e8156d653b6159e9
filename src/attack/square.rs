//! Square: a black-box attack by random search, the last part of AutoAttack (Andriushchenko et al., 2020; L-infinity).
//!
//! It looks at logits only, so it also breaks networks whose gradients mislead. Each query of an image sets one random
//! square to a corner of the ball in every channel, and is kept if the margin falls. Follows the published code with two
//! differences: every image draws a square of its own (there one square serves the whole batch), so that a result does
//! not depend on the batch; and a tie of logits goes on being attacked unless the prediction is wrong by it.

use super::{Cost, Found, Search};
use crate::batch::Batch;
use crate::engine::{Engine, Pass, Result};
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use crate::ops::{Pattern, Query, SearchState, SelectAtLeast, SquareAccept, SquarePropose};
use crate::philox::{Key, Purpose};

/// Queries between two looks at how many images are left. What an image finds does not depend on it: one that is broken
/// is carried along without change until the next look.
const LOOK: u32 = 32;

/// Iterations after which the square's share of the image halves.
const HALVINGS: [u32; 9] = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000];

/// The attack and its budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Square {
    /// Radius of the ball.
    pub epsilon: f32,
    /// Iterations; an image takes one query more, for the stripes that it starts with.
    pub iterations: u32,
    /// Share of the pixels that the first squares cover, in (0, 1]: `p_init`.
    pub share: f64,
    /// Stretches the schedule of the share, which was made for 10,000 iterations, to `iterations`. The published attack
    /// does so unless told otherwise; AutoAttack tells it otherwise.
    pub rescale: bool,
}

impl Square {
    /// As AutoAttack's standard version runs it: 5000 iterations, a share of 0.8, the schedule as it is.
    pub fn standard(epsilon: f32) -> Self {
        Self { epsilon, iterations: 5000, share: 0.8, rescale: false }
    }

    /// Side of the square of iteration 0, 1, ... in pixels.
    pub fn side(&self, iteration: u32) -> usize {
        let iteration = match self.rescale {
            true => (f64::from(iteration) / f64::from(self.iterations) * 10_000.0) as u32,
            false => iteration,
        };
        let halvings = HALVINGS.iter().filter(|&&last| last < iteration).count();
        let pixels = self.share / f64::from(1 << halvings) * (IMAGE_SIDE * IMAGE_SIDE) as f64;
        (pixels.sqrt().round_ties_even() as usize).clamp(1, IMAGE_SIDE)
    }
}

impl Search for Square {
    /// Queries are counted for each image until it is predicted wrongly.
    fn search(&mut self, engine: &mut Engine, key: Key, batch: &Batch) -> Result<Found> {
        if batch.is_empty() {
            return Ok(Found::default());
        }
        let (count, classes) = (batch.len(), batch.classes());
        let key = Key { purpose: Purpose::SquareQuery, ..key };
        let margins = engine.upload("square margins", &vec![f32::NAN; count])?;
        let queries = engine.upload("square queries", &vec![0; count])?;
        // The images still predicted right, in front; then no more than a list of all.
        let rows = engine.upload("square rows", &(0..count as u32).collect::<Vec<_>>())?;
        let mut left = count;
        let largest = engine.micro_batch().min(count);
        let candidates = engine.alloc("square candidates", largest * IMAGE_LEN)?;
        let state = SearchState {
            samples: &batch.samples,
            labels: &batch.labels,
            images: &batch.images,
            best: &batch.perturbed,
            margins: &margins,
            queries: &queries,
        };
        for number in 0..=self.iterations {
            let pattern = match number.checked_sub(1) {
                None => Pattern::Stripes,
                Some(iteration) => Pattern::Square { side: self.side(iteration) },
            };
            let query = Query { pattern, epsilon: self.epsilon, key, number };
            // Parts of one size, so that none of them is nearly empty.
            let size = left.div_ceil(left.div_ceil(largest));
            for start in (0..left).step_by(size) {
                let end = left.min(start + size);
                let rows = rows.slice(start..end);
                let candidates = candidates.rows(0..end - start, IMAGE_LEN);
                let logits = batch.logits.rows(start..end, classes);
                engine.run(&SquarePropose { query, rows: &rows, state, candidates: &candidates })?;
                engine.forward(Pass::Eval, &candidates, &logits)?;
                engine.run(&SquareAccept { rows: &rows, logits: &logits, candidates: &candidates, state })?;
            }
            if number.is_multiple_of(LOOK) || number == self.iterations {
                left = engine.run(&SelectAtLeast { values: &margins, threshold: 0.0, positions: &rows })?;
                if left == 0 {
                    break;
                }
            }
        }
        let broken = engine.read(&margins)?.iter().map(|margin| *margin < 0.0).collect();
        let forwards = engine.read(&queries)?.iter().map(|&queries: &u32| u64::from(queries)).sum();
        Ok(Found { broken, cost: Cost { forwards, backwards: 0 } })
    }
}
