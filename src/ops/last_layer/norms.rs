//! Norms of rows of numbers.

use rayon::prelude::*;

use super::{count, dot, elements};
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::{Cost, F32, run};
use crate::engine::{Operands, Result, Tensor};
use crate::ops::Op;

/// The Euclidean norm of each row of `row_len` values.
#[derive(Clone, Copy, Debug)]
pub struct RowNorms<'a> {
    pub values: &'a Tensor<f32>,
    pub row_len: usize,
    pub norms: &'a Tensor<f32>,
}

impl Op for RowNorms<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let rows = self.norms.len();
        count(rows, self.norms.name())?;
        count(self.row_len, self.values.name())?;
        operands.rows_of(self.values, self.row_len)?;
        operands.reads(self.values, rows * self.row_len)?;
        operands.writes(self.norms, rows)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (values, mut norms) = (cpu.input(self.values)?, cpu.output(self.norms)?);
        let rows = values.par_chunks_exact(self.row_len);
        norms.par_iter_mut().zip(rows).for_each(|(norm, row)| *norm = dot(row, row).sqrt() as f32);
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let params = RowNormsParams {
            values: cuda.address(self.values)?,
            norms: cuda.address(self.norms)?,
            rows: self.norms.len() as u32,
            len: self.row_len as u32,
        };
        row_norms(cuda.driver(), &params)
    }
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RowNormsParams {
    /// f32, rows x len.
    pub values: Address,
    /// f32, rows.
    pub norms: Address,
    pub rows: u32,
    pub len: u32,
}

/// The Euclidean norm of each row.
pub fn row_norms(driver: &dyn Driver, params: &RowNormsParams) -> Result<()> {
    let wide = params.len.is_multiple_of(4) && params.values.0.is_multiple_of(16);
    let name = if wide { "row_norms_wide" } else { "row_norms" };
    let all = elements(params.rows, params.len);
    let cost = Cost::new(2 * all + params.rows as usize, (all + params.rows as usize) * F32);
    run(driver, name, [params.rows.div_ceil(8), 1, 1], params, cost)
}
