//! Ranking of per-sample values: `kernels/select/`. Checked by `tests/kernel_select.rs`.

use super::{Cost, F32, U32, run};
use crate::engine::Result;
use crate::engine::cuda::driver::{Address, Driver};

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct SelectParams {
    values: Address,
    positions: Address,
    outcome: Address,
    count: u32,
    k: u32,
    threshold: f32,
    padding: u32,
}

/// What a selection leaves in its `outcome`: two u32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Outcome {
    /// How many positions were written.
    pub selected: u32,
    /// Position of the first NaN, which ends a selection without a result, or `u32::MAX`.
    pub nan_position: u32,
}

/// Values to select from.
#[derive(Clone, Copy, Debug)]
pub struct Selection {
    /// f32, count.
    pub values: Address,
    pub count: usize,
    /// u32, room for all that may be selected.
    pub positions: Address,
    /// One [`Outcome`].
    pub outcome: Address,
}

/// Positions of the `k <= count` largest values, ascending; equal values keep the lowest position.
pub fn select_top_k(driver: &dyn Driver, selection: &Selection, k: usize) -> Result<()> {
    let cost = Cost::new(0, selection.count * F32 + (k + 2) * U32);
    run(driver, "select_top_k", [1, 1, 1], &selection.params(k as u32, 0.0), cost)
}

/// Positions of all values at or above `threshold`, ascending.
pub fn select_at_least(driver: &dyn Driver, selection: &Selection, threshold: f32) -> Result<()> {
    // How many positions are written depends on the values.
    let cost = Cost::new(0, selection.count * F32 + 2 * U32);
    run(driver, "select_at_least", [1, 1, 1], &selection.params(0, threshold), cost)
}

impl Selection {
    fn params(&self, k: u32, threshold: f32) -> SelectParams {
        SelectParams {
            values: self.values,
            positions: self.positions,
            outcome: self.outcome,
            count: self.count as u32,
            k,
            threshold,
            padding: 0,
        }
    }
}
