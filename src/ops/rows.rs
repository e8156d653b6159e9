//! Rows by index: a batch compacted to some of its samples, and back.

use super::Op;
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::{Cost, U32, require, run_flat};
use crate::engine::{Operands, Result, Tensor, Word};

/// `to[i] = from[rows[i]]`; a row that is not there becomes words of ones (NaN, an impossible label), so that the next loss
/// shows it.
#[derive(Clone, Copy, Debug)]
pub struct GatherRows<'a, T> {
    pub from: &'a Tensor<T>,
    pub rows: &'a Tensor<u32>,
    /// Elements of a row.
    pub row_len: usize,
    /// As many rows as `rows` names.
    pub to: &'a Tensor<T>,
}

/// `to[rows[i]] = from[i]`, no row named twice; the other rows of `to` stay as they are, and a row that is not there is left
/// out.
#[derive(Clone, Copy, Debug)]
pub struct ScatterRows<'a, T> {
    /// As many rows as `rows` names.
    pub from: &'a Tensor<T>,
    pub rows: &'a Tensor<u32>,
    /// Elements of a row.
    pub row_len: usize,
    pub to: &'a Tensor<T>,
}

impl<'a, T: Word> GatherRows<'a, T> {
    /// Fills `to`, which has as many rows as `rows` names.
    pub fn new(from: &'a Tensor<T>, rows: &'a Tensor<u32>, to: &'a Tensor<T>) -> Self {
        Self { from, rows, row_len: to.len() / rows.len().max(1), to }
    }
}

impl<'a, T: Word> ScatterRows<'a, T> {
    /// Takes all of `from`, which has as many rows as `rows` names.
    pub fn new(from: &'a Tensor<T>, rows: &'a Tensor<u32>, to: &'a Tensor<T>) -> Self {
        Self { from, rows, row_len: from.len() / rows.len().max(1), to }
    }
}

impl<T: Word> Op for GatherRows<'_, T> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        operands.rows_of(self.from, self.row_len)?;
        operands.reads(self.from, self.from.len())?;
        operands.reads(self.rows, self.rows.len())?;
        operands.writes(self.to, self.rows.len() * self.row_len)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (from, to) = (self.from.words(), self.to.words());
        let (from, rows, mut to) = (cpu.input(&from)?, cpu.input(self.rows)?, cpu.output(&to)?);
        for (slot, &row) in to.chunks_exact_mut(self.row_len).zip(&*rows) {
            match from.chunks_exact(self.row_len).nth(row as usize) {
                Some(values) => slot.copy_from_slice(values),
                None => slot.fill(u32::MAX),
            }
        }
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        gather_rows(cuda.driver(), &rows(cuda, [self.from, self.to], self.rows, self.row_len, self.from)?)
    }
}

impl<T: Word> Op for ScatterRows<'_, T> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        operands.rows_of(self.to, self.row_len)?;
        operands.reads(self.from, self.rows.len() * self.row_len)?;
        operands.reads(self.rows, self.rows.len())?;
        operands.writes(self.to, self.to.len())
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (from, to) = (self.from.words(), self.to.words());
        let (from, rows, mut to) = (cpu.input(&from)?, cpu.input(self.rows)?, cpu.output(&to)?);
        for (values, &row) in from.chunks_exact(self.row_len).zip(&*rows) {
            if let Some(slot) = to.chunks_exact_mut(self.row_len).nth(row as usize) {
                slot.copy_from_slice(values);
            }
        }
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        scatter_rows(cuda.driver(), &rows(cuda, [self.from, self.to], self.rows, self.row_len, self.to)?)
    }
}

/// Rows to move between two tensors, those of `indexed` being the ones that are named.
fn rows<T: Word>(
    cuda: &Cuda,
    [from, to]: [&Tensor<T>; 2],
    named: &Tensor<u32>,
    row_len: usize,
    indexed: &Tensor<T>,
) -> Result<Rows> {
    Ok(Rows {
        from: cuda.address(from)?,
        to: cuda.address(to)?,
        rows: cuda.address(named)?,
        count: named.len(),
        limit: indexed.len() / row_len,
        row_len,
    })
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct RowsParams {
    from: Address,
    rows: Address,
    to: Address,
    row_units: u32,
    units: u32,
    limit: u32,
    padding: u32,
}

/// Rows of words to move between two tensors that do not overlap.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub from: Address,
    pub to: Address,
    /// u32, `count`: rows of the indexed side, `from` of a gather and `to` of a scatter.
    pub rows: Address,
    pub count: usize,
    /// Rows that the indexed side has.
    pub limit: usize,
    /// Words of a row.
    pub row_len: usize,
}

/// `to[i] = from[rows[i]]`; a row that is not there becomes words of ones, which is NaN.
pub fn gather_rows(driver: &dyn Driver, rows: &Rows) -> Result<()> {
    let name = if rows.wide() { "gather_rows_wide" } else { "gather_rows" };
    rows.launch(driver, name)
}

/// `to[rows[i]] = from[i]`, no row named twice; a row that is not there is left out.
pub fn scatter_rows(driver: &dyn Driver, rows: &Rows) -> Result<()> {
    let name = if rows.wide() { "scatter_rows_wide" } else { "scatter_rows" };
    rows.launch(driver, name)
}

impl Rows {
    /// Whether every row starts on 16 bytes on both sides.
    fn wide(&self) -> bool {
        self.row_len.is_multiple_of(4) && (self.from.0 | self.to.0).is_multiple_of(16)
    }

    fn launch(&self, driver: &dyn Driver, name: &str) -> Result<()> {
        let row_units = if self.wide() { self.row_len / 4 } else { self.row_len };
        let units = self.count * row_units;
        // Thread indices are 32 bits wide; the last block may reach 255 beyond the end.
        require(
            units <= i32::MAX as usize,
            name,
            "units to move: less than 2^31",
            units.min(u32::MAX as usize) as u32,
        )?;
        let params = RowsParams {
            from: self.from,
            rows: self.rows,
            to: self.to,
            row_units: row_units as u32,
            units: units as u32,
            limit: self.limit as u32,
            padding: 0,
        };
        let cost = Cost::new(0, (2 * self.row_len + 1) * self.count * U32);
        run_flat(driver, name, units as u32, &params, cost)
    }
}
