//! Ranking of per-sample values: the k largest, and all above a threshold.
//!
//! Equal values (as `==`, so 0.0 and -0.0 too) are ranked by position, lowest first.

use std::cmp::Ordering;

use super::Op;
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::{Cost, F32, U32, run};
use crate::engine::{Error, Operands, Result, Tensor};

/// Positions of the `top.len()` largest values, ascending by position.
///
/// # Errors
/// [`Error::NotANumber`].
#[derive(Clone, Copy, Debug)]
pub struct SelectTopK<'a> {
    pub values: &'a Tensor<f32>,
    /// At most as many as there are values.
    pub top: &'a Tensor<u32>,
}

/// Positions of all values `>= threshold`, ascending, at the front of `positions`; returns how many.
///
/// # Errors
/// [`Error::NotANumber`].
#[derive(Clone, Copy, Debug)]
pub struct SelectAtLeast<'a> {
    pub values: &'a Tensor<f32>,
    pub threshold: f32,
    /// As many as there are values.
    pub positions: &'a Tensor<u32>,
}

impl Op for SelectTopK<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        operands.reads(self.values, self.values.len())?;
        operands.writes(self.top, self.top.len().min(self.values.len()))
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (values, mut top) = (cpu.input(self.values)?, cpu.output(self.top)?);
        expect_numbers(self.values, first_nan(&values))?;
        let k = top.len();
        let mut order: Vec<u32> = (0..values.len() as u32).collect();
        let by_rank = |a: &u32, b: &u32| {
            let (x, y) = (values[*a as usize], values[*b as usize]);
            y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.cmp(b))
        };
        if 0 < k && k < order.len() {
            order.select_nth_unstable_by(k - 1, by_rank);
        }
        order.truncate(k);
        order.sort_unstable();
        top.copy_from_slice(&order);
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let selection = selection(cuda, self.values, self.top)?;
        select_top_k(cuda.driver(), selection, self.values.len(), self.top.len())?;
        selected(cuda, self.values, selection.outcome).map(drop)
    }
}

impl Op<usize> for SelectAtLeast<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        if self.threshold.is_nan() {
            return Err(Error::Invalid(format!("{}: the threshold is NaN", self.values.name())));
        }
        operands.reads(self.values, self.values.len())?;
        operands.writes(self.positions, self.values.len())
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<usize> {
        let (values, mut positions) = (cpu.input(self.values)?, cpu.output(self.positions)?);
        expect_numbers(self.values, first_nan(&values))?;
        let found = values.iter().enumerate().filter(|(_, value)| **value >= self.threshold);
        let mut count = 0;
        for (slot, (position, _)) in positions.iter_mut().zip(found) {
            *slot = position as u32;
            count += 1;
        }
        Ok(count)
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<usize> {
        let selection = selection(cuda, self.values, self.positions)?;
        select_at_least(cuda.driver(), selection, self.values.len(), self.threshold)?;
        selected(cuda, self.values, selection.outcome)
    }
}

fn first_nan(values: &[f32]) -> Option<usize> {
    values.iter().position(|value| value.is_nan())
}

fn expect_numbers(values: &Tensor<f32>, nan: Option<usize>) -> Result<()> {
    nan.map_or(Ok(()), |position| Err(Error::NotANumber { tensor: values.name(), position }))
}

fn selection(cuda: &mut Cuda, values: &Tensor<f32>, positions: &Tensor<u32>) -> Result<Selection> {
    Ok(Selection {
        values: cuda.address(values)?,
        positions: cuda.address(positions)?,
        outcome: cuda.workspace(size_of::<Outcome>())?,
    })
}

/// How many positions a selection wrote; waits for it.
fn selected(cuda: &Cuda, values: &Tensor<f32>, outcome: Address) -> Result<usize> {
    let mut result = Outcome { selected: 0, nan_position: u32::MAX };
    cuda.driver().read(outcome, bytemuck::bytes_of_mut(&mut result))?;
    let nan = (result.nan_position != u32::MAX).then_some(result.nan_position as usize);
    expect_numbers(values, nan)?;
    Ok(result.selected as usize)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct SelectParams {
    selection: Selection,
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
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Selection {
    /// f32.
    pub values: Address,
    /// u32, room for all that may be selected.
    pub positions: Address,
    /// One [`Outcome`].
    pub outcome: Address,
}

/// Positions of the `k` largest of `count` values, ascending; equal values keep the lowest position.
pub fn select_top_k(driver: &dyn Driver, selection: Selection, count: usize, k: usize) -> Result<()> {
    let params = SelectParams { selection, count: count as u32, k: k as u32, threshold: 0.0, padding: 0 };
    run(driver, "select_top_k", [1, 1, 1], &params, Cost::new(0, count * F32 + (k + 2) * U32))
}

/// Positions of all of `count` values at or above `threshold`, ascending.
pub fn select_at_least(
    driver: &dyn Driver,
    selection: Selection,
    count: usize,
    threshold: f32,
) -> Result<()> {
    let params = SelectParams { selection, count: count as u32, k: 0, threshold, padding: 0 };
    // How many positions are written depends on the values.
    run(driver, "select_at_least", [1, 1, 1], &params, Cost::new(0, count * F32 + 2 * U32))
}
