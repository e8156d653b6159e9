//! The weighted sum of last-layer gradients.

use rayon::prelude::*;

use super::{F64, Gradients, LastLayerGradients, TILE_CLASSES, WARP_FEATURES, vector_len};
use crate::cpu::Cpu;
use crate::cpu::doubles::Doubles;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::{Cost, run};
use crate::engine::{Operands, Result, Tensor};
use crate::ops::Op;

/// Tasks of the sum on the CPU.
const TASKS: usize = 10;
/// Blocks at which samples are cut no further: four a multiprocessor of a big GPU.
const SUM_BLOCKS: u32 = 528;
/// Samples that a part of the sum has at least, and of which it is a multiple.
const PART_LEAST: u32 = 64;
const PART_UNIT: u32 = 32;

/// `sum = sum_i w_i g_i`, w = 1 where absent.
#[derive(Clone, Copy, Debug)]
pub struct GradientSum<'a> {
    pub gradients: &'a LastLayerGradients,
    pub weights: Option<&'a Tensor<f64>>,
    /// A gradient as one vector.
    pub sum: &'a Tensor<f64>,
}

impl Op for GradientSum<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        self.gradients.check(operands)?;
        self.weights.iter().try_for_each(|weights| operands.reads(weights, self.gradients.len))?;
        operands.writes(self.sum, vector_len(operands.network()))
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (classes, row) = (cpu.classes(), cpu.network().features() + 1);
        let weights = self.weights.map(|weights| cpu.input(weights)).transpose()?;
        let (weights, mut total) = (weights.as_deref(), cpu.output(self.sum)?);
        let doubles = Doubles::new()?;
        total.fill(0.0);
        // Classes that are a task: where there are many, a row of features is read once for ten.
        let together = classes.div_ceil(TASKS);
        self.gradients.with_factors(cpu, |terms| {
            total.par_chunks_mut(together * row).enumerate().for_each(|(task, totals)| {
                for term in terms {
                    let samples = term.logit_gradient.chunks_exact(classes);
                    let samples = samples.zip(term.features.chunks_exact(row - 1)).enumerate();
                    for (sample, (gradient, features)) in samples {
                        let weight = weights.map_or(1.0, |weights| weights[sample]);
                        for (total, &slope) in totals.chunks_exact_mut(row).zip(&gradient[task * together..])
                        {
                            let factor = weight * f64::from(slope);
                            total[row - 1] += factor;
                            doubles.add(total, factor, features);
                        }
                    }
                }
            });
        })
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let gradients = self.gradients.params(cuda)?;
        let Gradients { len, classes, width, .. } = gradients;
        let workspace = cuda.workspace(gradient_sum_workspace(len, classes, width) * F64)?;
        let (weights, sum) = (cuda.optional(self.weights)?, cuda.address(self.sum)?);
        gradient_sum(cuda.driver(), &gradients, weights, workspace, sum)
    }
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct GradientSumParams {
    gradients: Gradients,
    weights: Address,
    partials: Address,
    part_len: u32,
    padding: u32,
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct SumRowsParams {
    rows: Address,
    to: Address,
    count: u32,
    len: u32,
}

/// Samples of a part of the sum, by shape alone.
fn part_len(len: u32, classes: u32, width: u32) -> u32 {
    let tiles = width / WARP_FEATURES * classes.div_ceil(TILE_CLASSES);
    let parts = (SUM_BLOCKS / tiles.max(1)).min(len / PART_LEAST).max(1);
    len.div_ceil(parts).next_multiple_of(PART_UNIT)
}

/// f64 elements that [`gradient_sum`] needs for its parts; none where one part is all.
pub fn gradient_sum_workspace(len: u32, classes: u32, width: u32) -> usize {
    match len.div_ceil(part_len(len.max(1), classes, width)) {
        0 | 1 => 0,
        parts => parts as usize * classes as usize * (width as usize + 1),
    }
}

/// `sum = sum_i w_i g_i`, f64, classes x (width + 1); `weights` are f64, null for ones.
pub fn gradient_sum(
    driver: &dyn Driver,
    gradients: &Gradients,
    weights: Address,
    workspace: Address,
    sum: Address,
) -> Result<()> {
    let name = "gradient_sum";
    gradients.check(name)?;
    let Gradients { len, classes, width, .. } = *gradients;
    let vector = classes as usize * (width as usize + 1);
    if len == 0 {
        return driver.fill(sum, 0, vector * size_of::<f64>());
    }
    let part_len = part_len(len, classes, width);
    let parts = len.div_ceil(part_len);
    let partials = if parts == 1 { sum } else { workspace };
    let params = GradientSumParams { gradients: *gradients, weights, partials, part_len, padding: 0 };
    let weighed = if weights == Address::NULL { 0 } else { len as usize };
    let bytes = gradients.bytes() + (weighed + parts as usize * vector) * F64;
    let grid = [width / WARP_FEATURES, classes.div_ceil(TILE_CLASSES), parts];
    run(driver, name, grid, &params, Cost::new(gradients.flops(), bytes))?;
    if parts == 1 {
        return Ok(());
    }
    let rows = SumRowsParams { rows: partials, to: sum, count: parts, len: vector as u32 };
    let summed = parts as usize * vector;
    let cost = Cost::new(summed - vector, (summed + vector) * F64);
    run(driver, "sum_rows", [rows.len.div_ceil(32), 1, 1], &rows, cost)
}
