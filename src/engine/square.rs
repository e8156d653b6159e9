//! Operations of a random search over squares: what one query of it tries, and whether that is kept.
//!
//! Called by `attack/square.rs`. Checked by `tests/kernel_square.rs` (the kernels) and `tests/square.rs` (both engines).

use super::{Error, Result, Tensor};
use crate::model::layers::IMAGE_SIDE;
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
    /// Refuses what no engine can do.
    pub(super) fn check(&self) -> Result<()> {
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

/// What a random search needs of a device, besides forward passes.
///
/// `rows` names the images that take part, no image twice; a row that is not there is an error where the engine reads
/// `rows`, and on a GPU a candidate of NaN that is not kept.
pub trait RandomSquares {
    /// Writes the image to try for `rows[i]` to `candidates[i]`: in the ball and in [0, 1].
    ///
    /// # Errors
    /// A square whose side is not 1 to 32, tensors of other lengths.
    fn square_propose(
        &mut self,
        query: &Query,
        rows: &Tensor<u32>,
        state: &SearchState,
        candidates: &Tensor<f32>,
    ) -> Result<()>;

    /// Counts a query of every image of `rows` whose margin is not negative yet, and where the candidate's margin (by
    /// row `i` of `logits`) is lower makes it the best. A logit that is NaN or infinite is a
    /// wrong prediction, of margin -infinity. A label that is no class is kept as a margin of NaN,
    /// so that [`super::Engine::at_least`] over the margins reports them.
    fn square_accept(
        &mut self,
        rows: &Tensor<u32>,
        logits: &Tensor<f32>,
        candidates: &Tensor<f32>,
        state: &SearchState,
    ) -> Result<()>;
}
