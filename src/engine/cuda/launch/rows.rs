//! Rows by index: `kernels/data/rows.cu`. Checked by `tests/kernel_rows.rs`.

use super::{Cost, U32, require, run_flat};
use crate::engine::Result;
use crate::engine::cuda::driver::{Address, Driver};

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
