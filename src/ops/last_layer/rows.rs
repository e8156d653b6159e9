//! Algebra on explicit rows of numbers.

use rayon::prelude::*;

use super::{F64, count, dot, elements, on_16_bytes};
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::{Cost, F32, run};
use crate::engine::{Operands, Result, Tensor};
use crate::ops::Op;

/// Row length from which the wide kernel has blocks enough for a big GPU.
const WIDE_ROWS: u32 = 16_384;

/// `products[i] = <row_i, vector>` for rows of `vector.len()` numbers.
#[derive(Clone, Copy, Debug)]
pub struct RowProducts<'a> {
    pub rows: &'a Tensor<f64>,
    pub vector: &'a Tensor<f64>,
    pub products: &'a Tensor<f64>,
}

/// `to = from - sum_s factors[s] row_s`, rows of `from.len()` numbers. `to` may be `from`.
#[derive(Clone, Copy, Debug)]
pub struct SubtractRows<'a> {
    pub rows: &'a Tensor<f64>,
    pub factors: &'a Tensor<f64>,
    pub from: &'a Tensor<f64>,
    pub to: &'a Tensor<f64>,
}

/// The Euclidean norm of each row of `row_len` values.
#[derive(Clone, Copy, Debug)]
pub struct RowNorms<'a> {
    pub values: &'a Tensor<f32>,
    pub row_len: usize,
    pub norms: &'a Tensor<f32>,
}

impl Op for RowProducts<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let (rows, len) = (self.products.len(), self.vector.len());
        count(rows, self.products.name())?;
        count(len, self.vector.name())?;
        operands.reads(self.rows, rows * len)?;
        operands.reads(self.vector, len)?;
        operands.writes(self.products, rows)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (rows, vector) = (cpu.input(self.rows)?, cpu.input(self.vector)?);
        let mut products = cpu.output(self.products)?;
        products.fill(0.0);
        let vector: &[f64] = &vector;
        let rows = rows.par_chunks_exact(vector.len().max(1));
        products.par_iter_mut().zip(rows).for_each(|(product, row)| *product = dot(row, vector));
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let params = RowProductsParams {
            rows: cuda.address(self.rows)?,
            vector: cuda.address(self.vector)?,
            products: cuda.address(self.products)?,
            len: self.vector.len() as u32,
            padding: 0,
        };
        row_products(cuda.driver(), self.products.len() as u32, &params)
    }
}

impl Op for SubtractRows<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let (rows, len) = (self.factors.len(), self.from.len());
        count(rows, self.factors.name())?;
        count(len, self.from.name())?;
        operands.reads(self.rows, rows * len)?;
        operands.reads(self.factors, rows)?;
        operands.maps(self.from, self.to, len)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        /// Columns of a task: their part of `to` stays in the nearest cache.
        const COLUMNS: usize = 1024;
        let (rows, factors) = (cpu.input(self.rows)?, cpu.input(self.factors)?);
        let (from, mut to) = (cpu.input(self.from)?, cpu.output(self.to)?);
        let (rows, factors, from) = (&rows[..], &factors[..], &from[..]);
        to.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, to)| {
            let range = chunk * COLUMNS..chunk * COLUMNS + to.len();
            to.copy_from_slice(&from[range.clone()]);
            for (row, factor) in rows.chunks_exact(from.len()).zip(factors) {
                for (to, value) in to.iter_mut().zip(&row[range.clone()]) {
                    *to -= factor * value;
                }
            }
        });
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let params = CombineRowsParams {
            rows: cuda.address(self.rows)?,
            factors: cuda.address(self.factors)?,
            from: cuda.address(self.from)?,
            to: cuda.address(self.to)?,
            count: self.factors.len() as u32,
            len: self.from.len() as u32,
        };
        subtract_rows(cuda.driver(), &params)
    }
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
pub struct CombineRowsParams {
    /// f64, count x len.
    pub rows: Address,
    /// f64, count.
    pub factors: Address,
    /// f64, len.
    pub from: Address,
    /// f64, len; may be `from`.
    pub to: Address,
    pub count: u32,
    pub len: u32,
}

/// `to = from - sum_s factors[s] row_s`.
pub fn subtract_rows(driver: &dyn Driver, params: &CombineRowsParams) -> Result<()> {
    let len = params.len;
    let (rows, columns) = (params.count as usize, len as usize);
    let cost = Cost::new(2 * rows * columns, (rows * columns + rows + 2 * columns) * F64);
    let aligned = [params.rows, params.from, params.to].into_iter().all(on_16_bytes);
    if aligned && len.is_multiple_of(2) && len >= WIDE_ROWS {
        run(driver, "subtract_rows_wide", [len.div_ceil(64), 1, 1], params, cost)
    } else {
        run(driver, "subtract_rows", [len.div_ceil(32), 1, 1], params, cost)
    }
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RowProductsParams {
    /// f64, rows x len.
    pub rows: Address,
    /// f64, len.
    pub vector: Address,
    /// f64, rows.
    pub products: Address,
    pub len: u32,
    pub padding: u32,
}

/// `products[i] = <row_i, vector>` of `rows` rows.
pub fn row_products(driver: &dyn Driver, rows: u32, params: &RowProductsParams) -> Result<()> {
    let wide = params.len.is_multiple_of(2) && on_16_bytes(params.rows) && on_16_bytes(params.vector);
    let name = if wide { "row_products_wide" } else { "row_products" };
    let all = elements(rows, params.len);
    let cost = Cost::new(2 * all, (all + params.len as usize + rows as usize) * F64);
    run(driver, name, [rows, 1, 1], params, cost)
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
    let wide = params.len.is_multiple_of(4) && on_16_bytes(params.values);
    let name = if wide { "row_norms_wide" } else { "row_norms" };
    let all = elements(params.rows, params.len);
    let cost = Cost::new(2 * all + params.rows as usize, (all + params.rows as usize) * F32);
    run(driver, name, [params.rows.div_ceil(8), 1, 1], params, cost)
}
