//! Random search over squares: `kernels/attack/square.cu`. Checked by `tests/kernel_square.rs`.

use super::{Cost, F32, Philox, U32, require, run, run_flat};
use crate::engine::cuda::driver::{Address, Driver};
use crate::engine::{Pattern, Query, Result};
use crate::model::layers::IMAGE_LEN;

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct SquareProposeParams {
    rows: Address,
    samples: Address,
    images: Address,
    best: Address,
    candidates: Address,
    random: Philox,
    query: u32,
    units: u32,
    count: u32,
    side: u32,
    epsilon: f32,
    padding: u32,
}

/// Images of a search from which some take part.
#[derive(Clone, Copy, Debug)]
pub struct Proposal {
    /// u32, `taking_part`: each below `count`.
    pub rows: Address,
    pub taking_part: usize,
    /// u32, `count`.
    pub samples: Address,
    /// f32, `count` clean images.
    pub images: Address,
    /// f32, `count` images; not read for stripes.
    pub best: Address,
    pub count: usize,
    /// f32, `taking_part` images.
    pub candidates: Address,
}

/// `candidates[i]` from image `rows[i]`; a row that is not there becomes NaN.
pub fn square_propose(driver: &dyn Driver, query: &Query, proposal: &Proposal) -> Result<()> {
    let elements = proposal.taking_part * IMAGE_LEN;
    // One sum an element of the stripes, or of the window; the rest is a copy of the best image.
    let (name, side, sums, operands) = match query.pattern {
        Pattern::Stripes => ("square_stripes", 0, elements, 2),
        Pattern::Square { side } => ("square_window", side, 3 * side * side * proposal.taking_part, 3),
    };
    let cost = Cost::new(sums, operands * elements * F32 + 2 * proposal.taking_part * U32);
    let units = proposal.taking_part * IMAGE_LEN / 4;
    // Thread indices are 32 bits wide.
    require(
        units <= i32::MAX as usize,
        name,
        "images that take part: less than 2^31 / 768",
        proposal.taking_part as u32,
    )?;
    let params = SquareProposeParams {
        rows: proposal.rows,
        samples: proposal.samples,
        images: proposal.images,
        best: proposal.best,
        candidates: proposal.candidates,
        random: query.key.into(),
        query: query.number,
        units: units as u32,
        count: proposal.count as u32,
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
    run(driver, "square_accept", [taking_part as u32, 1, 1], params, cost)
}
