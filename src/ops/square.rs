//! Random search over squares (Andriushchenko et al., 2020): what one query of it tries, and whether that is kept.

use rayon::prelude::*;

use super::Op;
use super::margin::margin;
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::{Cost, F32, Philox, U32, require, run, run_flat};
use crate::engine::{Error, Operands, Result, Tensor};
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use crate::philox::Key;

/// What a query changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// The clean image with `+epsilon` or `-epsilon` on every column of every channel. Bit `column` of word `channel` of
    /// the random block is the sign (set for +).
    Stripes,
    /// The best image with `+2 epsilon` or `-2 epsilon` on each channel of one square, back in the ball. Its first row
    /// is `floor(u * (32 - side))` of word 0, its first column likewise of word 1, u in [0, 1) as `philox::unit`; bit
    /// `channel` of word 2 is the sign. So the last row and column are left out, as in the published code.
    Square { side: usize },
}

/// One query for each of some images; its random numbers are block `number` of the image's sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Query {
    pub pattern: Pattern,
    /// Radius of the ball.
    pub epsilon: f32,
    pub key: Key,
    pub number: u32,
}

impl Query {
    fn check(&self) -> Result<()> {
        match self.pattern {
            Pattern::Square { side } if !(1..=IMAGE_SIDE).contains(&side) => {
                Err(Error::Invalid(format!("a square of side {side}: expected 1 to {IMAGE_SIDE}")))
            }
            _ => Ok(()),
        }
    }
}

/// The images of a search, and how far it has come with each.
#[derive(Clone, Copy, Debug)]
pub struct SearchState<'a> {
    /// Key the random numbers.
    pub samples: &'a Tensor<u32>,
    pub labels: &'a Tensor<u32>,
    /// The clean images x, `count x 32 x 32 x 3`.
    pub images: &'a Tensor<f32>,
    /// The image with the lowest margin so far.
    pub best: &'a Tensor<f32>,
    /// Margin of `best`: the label's logit less the largest other one. Negative exactly where the prediction is wrong: a
    /// tie that the label loses by its index counts as `-f32::MIN_POSITIVE`. NaN before the first query.
    pub margins: &'a Tensor<f32>,
    /// Queries that each image took until it was predicted wrongly.
    pub queries: &'a Tensor<u32>,
}

/// Writes the image to try for `rows[i]` to `candidates[i]`: in the ball and in [0, 1]; NaN where the row is not there.
#[derive(Clone, Copy, Debug)]
pub struct SquarePropose<'a> {
    pub query: Query,
    /// The images that take part, no image twice.
    pub rows: &'a Tensor<u32>,
    pub state: SearchState<'a>,
    /// `rows x 32 x 32 x 3`.
    pub candidates: &'a Tensor<f32>,
}

/// Counts a query of every image of `rows` whose margin is not negative yet, and where the candidate's margin (by
/// row `i` of `logits`) is lower makes it the best. A logit that is NaN or infinite is a wrong prediction, of margin -infinity. A
/// label that is no class is kept as a margin of NaN, so that [`SelectAtLeast`](super::SelectAtLeast) over the margins reports it. A row that is
/// not there is left out.
#[derive(Clone, Copy, Debug)]
pub struct SquareAccept<'a> {
    pub rows: &'a Tensor<u32>,
    /// `rows x classes`, of the candidates.
    pub logits: &'a Tensor<f32>,
    /// `rows x 32 x 32 x 3`.
    pub candidates: &'a Tensor<f32>,
    pub state: SearchState<'a>,
}

impl SearchState<'_> {
    /// Images of the search.
    fn count(&self) -> usize {
        self.labels.len()
    }

    fn check(&self, operands: &mut Operands, rows: &Tensor<u32>) -> Result<()> {
        let count = self.count();
        if rows.is_empty() {
            return Err(Error::Invalid(format!("{}: no rows, expected 1 at least", rows.name())));
        }
        operands.reads(rows, rows.len())?;
        operands.reads(self.labels, count)?;
        operands.reads(self.samples, count)?;
        operands.reads(self.images, count * IMAGE_LEN)
    }
}

impl Op for SquarePropose<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        self.query.check()?;
        self.state.check(operands, self.rows)?;
        operands.reads(self.state.best, self.state.count() * IMAGE_LEN)?;
        operands.writes(self.candidates, self.rows.len() * IMAGE_LEN)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (rows, samples) = (cpu.input(self.rows)?, cpu.input(self.state.samples)?);
        let (images, best) = (cpu.input(self.state.images)?, cpu.input(self.state.best)?);
        let (samples, images, best) = (&samples[..], &images[..], &best[..]);
        let query = self.query;
        let mut candidates = cpu.output(self.candidates)?;
        candidates.par_chunks_exact_mut(IMAGE_LEN).zip(&rows[..]).for_each(|(candidate, &row)| {
            let of = row as usize * IMAGE_LEN..(row as usize + 1) * IMAGE_LEN;
            match samples.get(row as usize) {
                Some(&sample) => propose(&query, sample, &images[of.clone()], &best[of], candidate),
                None => candidate.fill(f32::NAN),
            }
        });
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let proposal = Proposal {
            rows: cuda.address(self.rows)?,
            samples: cuda.address(self.state.samples)?,
            images: cuda.address(self.state.images)?,
            best: cuda.address(self.state.best)?,
            candidates: cuda.address(self.candidates)?,
        };
        square_propose(cuda.driver(), &self.query, proposal, [self.state.count(), self.rows.len()])
    }
}

impl Op for SquareAccept<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let (rows, count) = (self.rows.len(), self.state.count());
        self.state.check(operands, self.rows)?;
        operands.reads(self.logits, rows * operands.classes())?;
        operands.reads(self.candidates, rows * IMAGE_LEN)?;
        operands.writes(self.state.margins, count)?;
        operands.writes(self.state.queries, count)?;
        operands.writes(self.state.best, count * IMAGE_LEN)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (rows, labels) = (cpu.input(self.rows)?, cpu.input(self.state.labels)?);
        let (logits, candidates) = (cpu.input(self.logits)?, cpu.input(self.candidates)?);
        let (mut margins, mut queries) = (cpu.output(self.state.margins)?, cpu.output(self.state.queries)?);
        let mut best = cpu.output(self.state.best)?;
        let tried = logits.chunks_exact(cpu.classes()).zip(candidates.chunks_exact(IMAGE_LEN));
        for (&row, (logits, candidate)) in rows.iter().zip(tried) {
            let row = row as usize;
            let Some(&label) = labels.get(row) else { continue };
            let before = margins[row];
            if before < 0.0 {
                continue;
            }
            queries[row] += 1;
            let margin = margin(logits, label);
            if margin < before || margin.is_nan() || before.is_nan() {
                margins[row] = margin;
                best[row * IMAGE_LEN..(row + 1) * IMAGE_LEN].copy_from_slice(candidate);
            }
        }
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let params = SquareAcceptParams {
            rows: cuda.address(self.rows)?,
            labels: cuda.address(self.state.labels)?,
            logits: cuda.address(self.logits)?,
            candidates: cuda.address(self.candidates)?,
            margins: cuda.address(self.state.margins)?,
            queries: cuda.address(self.state.queries)?,
            best: cuda.address(self.state.best)?,
            count: self.state.count() as u32,
            classes: cuda.classes() as u32,
        };
        square_accept(cuda.driver(), self.rows.len(), &params)
    }
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

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct SquareProposeParams {
    proposal: Proposal,
    random: Philox,
    query: u32,
    units: u32,
    count: u32,
    side: u32,
    epsilon: f32,
    padding: u32,
}

/// Images of a search from which some take part.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Proposal {
    /// u32, `taking_part`: each below `count`.
    pub rows: Address,
    /// u32, `count`.
    pub samples: Address,
    /// f32, `count` clean images.
    pub images: Address,
    /// f32, `count` images; not read for stripes.
    pub best: Address,
    /// f32, `taking_part` images.
    pub candidates: Address,
}

/// `candidates[i]` from image `rows[i]`; a row that is not there becomes NaN.
pub fn square_propose(
    driver: &dyn Driver,
    query: &Query,
    proposal: Proposal,
    [count, taking_part]: [usize; 2],
) -> Result<()> {
    let elements = taking_part * IMAGE_LEN;
    // One sum an element of the stripes, or of the window; the rest is a copy of the best image.
    let (name, side, sums, operands) = match query.pattern {
        Pattern::Stripes => ("square_stripes", 0, elements, 2),
        Pattern::Square { side } => ("square_window", side, 3 * side * side * taking_part, 3),
    };
    let cost = Cost::new(sums, operands * elements * F32 + 2 * taking_part * U32);
    let units = taking_part * IMAGE_LEN / 4;
    // Thread indices are 32 bits wide.
    require(
        units <= i32::MAX as usize,
        name,
        "images that take part: less than 2^31 / 768",
        taking_part as u32,
    )?;
    let params = SquareProposeParams {
        proposal,
        random: query.key.into(),
        query: query.number,
        units: units as u32,
        count: count as u32,
        side: side as u32,
        epsilon: query.epsilon,
        padding: 0,
    };
    run_flat(driver, name, units as u32, &params, cost)
}

/// Operands of [`square_accept`].
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SquareAcceptParams {
    /// u32, of the images that take part.
    pub rows: Address,
    /// u32, `count`.
    pub labels: Address,
    /// f32, a row of `classes` for each of `rows`.
    pub logits: Address,
    /// f32, an image for each of `rows`.
    pub candidates: Address,
    /// f32, `count`.
    pub margins: Address,
    /// u32, `count`.
    pub queries: Address,
    /// f32, `count` images.
    pub best: Address,
    pub count: u32,
    pub classes: u32,
}

/// Keeps the candidates with a lower margin, for `taking_part` rows; a row that is not there is left out.
pub fn square_accept(driver: &dyn Driver, taking_part: usize, params: &SquareAcceptParams) -> Result<()> {
    // A row, a label, a margin, and a counter read and written; which candidates are copied depends on the logits.
    let cost = Cost::new(2 * taking_part, taking_part * (params.classes as usize * F32 + 5 * U32));
    require((1..=128).contains(&params.classes), "square_accept", "classes: 1 to 128", params.classes)?;
    run(driver, "square_accept", [taking_part as u32, 1, 1], params, cost)
}
