//! The atoms of a pursuit on a device: the last-layer gradients of samples, or the sums of those of batches.
//!
//! Columns of the Gram matrix are made and kept on the device, in blocks that are allocated as the pursuit grows; the
//! host reads one column and one vector of correlations a step.

use super::pursuit::Atoms;
use super::{Result, part, sum};
use crate::engine::{Engine, Tensor};
use crate::ops::last_layer::dot;
use crate::ops::{
    GradientColumn, GradientProducts, GradientSquares, GradientSum, LastLayerGradients, RowProducts,
    SubtractRows,
};

/// Numbers of a block of columns, at least (32 MiB).
const BLOCK: usize = 1 << 22;

/// Where inner products come from.
enum Source {
    /// Each atom the gradient of a sample.
    Samples(LastLayerGradients),
    /// Each atom one row of numbers.
    Rows(Tensor<f64>),
}

/// Atoms whose target is their sum, or the mean of that and of the sums of further draws of the same gradients.
pub struct DeviceAtoms<'a> {
    engine: &'a mut Engine,
    source: Source,
    /// `<b, b>`.
    target_square: f64,
    /// `<a_i, b>`, on the device and here.
    products: Tensor<f64>,
    host_products: Vec<f64>,
    squares: Vec<f64>,
    /// Columns one after the other, `rows` in each block.
    blocks: Vec<Tensor<f64>>,
    rows: usize,
    /// Workspace for two vectors of correlations.
    workspaces: [Tensor<f64>; 2],
}

impl<'a> DeviceAtoms<'a> {
    /// One atom a sample.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn of_samples(
        engine: &'a mut Engine,
        gradients: &LastLayerGradients,
        further: &[LastLayerGradients],
    ) -> Result<Self> {
        let target = mean_sum(engine, gradients, further)?;
        let products = engine.alloc("correlations with the target", gradients.len)?;
        engine.run(&GradientProducts { gradients, vector: &target, products: &products })?;
        let squares = squares(engine, gradients)?;
        Self::new(engine, Source::Samples(gradients.clone()), &target, products, squares)
    }

    /// One atom for each list of places: the sum of the gradients there. Together the lists name every place once.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn of_batches(
        engine: &'a mut Engine,
        gradients: &LastLayerGradients,
        further: &[LastLayerGradients],
        batches: &[&[u32]],
    ) -> Result<Self> {
        let target = mean_sum(engine, gradients, further)?;
        let width = target.len();
        let rows = engine.alloc("gradients of the batches", batches.len() * width)?;
        let mut squares = Vec::with_capacity(batches.len());
        for (position, places) in batches.iter().enumerate() {
            let batch = part(engine, gradients, places)?;
            let row = rows.rows(position..position + 1, width);
            engine.run(&GradientSum { gradients: &batch, weights: None, sum: &row })?;
            let values = engine.read(&row)?;
            squares.push(dot(&values, &values));
        }
        let products = engine.alloc("correlations with the target", batches.len())?;
        engine.run(&RowProducts { rows: &rows, vector: &target, products: &products })?;
        Self::new(engine, Source::Rows(rows), &target, products, squares)
    }

    fn new(
        engine: &'a mut Engine,
        source: Source,
        target: &Tensor<f64>,
        products: Tensor<f64>,
        squares: Vec<f64>,
    ) -> Result<Self> {
        let target = engine.read(target)?;
        let count = products.len();
        let workspace = || engine.alloc("correlations with the residual", count);
        let workspaces = [workspace()?, workspace()?];
        Ok(Self {
            target_square: dot(&target, &target),
            host_products: engine.read(&products)?,
            products,
            squares,
            source,
            blocks: Vec::new(),
            rows: BLOCK.div_ceil(count.max(1)).min(count),
            workspaces,
            engine,
        })
    }

    /// Whether the target is the zero vector, up to the rounding errors of a sum of the atoms.
    pub fn target_is_zero(&self) -> bool {
        let lengths: f64 = self.squares.iter().map(|square| square.sqrt()).sum();
        self.target_square.sqrt() <= 1e-14 * lengths
    }
}

/// The mean, over `gradients` and `further` draws of them, of their sums.
fn mean_sum(
    engine: &mut Engine,
    gradients: &LastLayerGradients,
    further: &[LastLayerGradients],
) -> Result<Tensor<f64>> {
    let first = sum(engine, gradients, None)?;
    if further.is_empty() {
        return Ok(first);
    }
    let mut mean = engine.read(&first)?;
    for draw in further {
        let of_draw = sum(engine, draw, None)?;
        let of_draw = engine.read(&of_draw)?;
        mean.iter_mut().zip(of_draw).for_each(|(mean, value)| *mean += value);
    }
    mean.iter_mut().for_each(|value| *value /= (1 + further.len()) as f64);
    engine.write(&first, &mean)?;
    Ok(first)
}

/// `<g_i, g_i>` of every sample.
pub fn squares(engine: &mut Engine, gradients: &LastLayerGradients) -> Result<Vec<f64>> {
    let squares = engine.alloc("squares of the gradients", gradients.len)?;
    engine.run(&GradientSquares { gradients, squares: &squares })?;
    Ok(engine.read(&squares)?)
}

impl Atoms for DeviceAtoms<'_> {
    fn count(&self) -> usize {
        self.products.len()
    }

    fn target_square(&self) -> f64 {
        self.target_square
    }

    fn target_products(&self) -> &[f64] {
        &self.host_products
    }

    fn squares(&self) -> &[f64] {
        &self.squares
    }

    fn keep_column(&mut self, atom: usize, slot: usize) -> Result<Vec<f64>> {
        let count = self.count();
        let (block, row) = (slot / self.rows, slot % self.rows);
        if block == self.blocks.len() {
            self.blocks.push(self.engine.alloc("columns of the Gram matrix", self.rows * count)?);
        }
        let column = self.blocks[block].rows(row..row + 1, count);
        match &self.source {
            Source::Samples(gradients) => {
                self.engine.run(&GradientColumn { gradients, sample: atom, column: &column })?
            }
            Source::Rows(rows) => {
                let width = rows.len() / count;
                self.engine.run(&RowProducts {
                    rows,
                    vector: &rows.rows(atom..atom + 1, width),
                    products: &column,
                })?;
            }
        }
        Ok(self.engine.read(&column)?)
    }

    fn residual_products(&mut self, weights: &[f64]) -> Result<Vec<f64>> {
        let count = self.count();
        let weights = self.engine.upload("weights of the atoms", weights)?;
        let mut from = self.products.clone();
        for (block, start) in (0..weights.len()).step_by(self.rows).enumerate() {
            let factors = weights.slice(start..weights.len().min(start + self.rows));
            let columns = self.blocks[block].rows(0..factors.len(), count);
            let to = self.workspaces[block % 2].clone();
            self.engine.run(&SubtractRows { rows: &columns, factors: &factors, from: &from, to: &to })?;
            from = to;
        }
        Ok(self.engine.read(&from)?)
    }
}
