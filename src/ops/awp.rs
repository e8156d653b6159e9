//! Adversarial weight perturbation (Wu et al., NeurIPS 2020): the weights move along the gradient of the loss, each tensor by a
//! share of its own norm.

use std::iter;

use rayon::prelude::*;

use super::Op;
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::{Cost, F32, require, run};
use crate::cuda::layout::Layout;
use crate::engine::{Operands, Result, Tensor, WeightSet};
use crate::model::ParameterKind;

/// Keeps the running statistics from before a train pass, for [`PerturbWeights`].
#[derive(Clone, Copy, Debug)]
pub struct KeepStatistics<'a> {
    /// Every running mean and variance, in the engine's own order.
    pub to: &'a Tensor<f32>,
}

/// `w += v, v = gamma * |w| / (|g| + 1e-20) * g` for the weights w of each convolution and of the linear layer, g their gradient of
/// the last backward passes and |.| the norm of the whole tensor. BatchNorm and bias stay, the running statistics become those that
/// were kept.
#[derive(Clone, Copy, Debug)]
pub struct PerturbWeights<'a> {
    pub gamma: f32,
    /// From [`KeepStatistics`].
    pub statistics: &'a Tensor<f32>,
    /// v, of every trainable element: what [`Sgd::displacement`](super::Sgd) takes back.
    pub displacement: &'a Tensor<f32>,
}

/// Added to the norm of a gradient, as in the published code.
const TINY: f64 = 1e-20;

fn statistics_len(operands: &Operands) -> usize {
    operands.network().elements(|kind| !kind.trainable())
}

impl Op for KeepStatistics<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        operands.reads_set(WeightSet::Live);
        operands.writes(self.to, statistics_len(operands))
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let mut to = cpu.output(self.to)?;
        let (layout, live) = cpu.live()?;
        to.copy_from_slice(&live[layout.trainable..]);
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        cuda.driver().copy(statistics(cuda), cuda.address(self.to)?, self.to.len() * F32)
    }
}

impl Op for PerturbWeights<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        operands.reads_set(WeightSet::Gradients);
        operands.changes_weights();
        operands.reads(self.statistics, statistics_len(operands))?;
        operands.writes(self.displacement, operands.network().elements(ParameterKind::trainable))
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (statistics, mut displacement) = (cpu.input(self.statistics)?, cpu.output(self.displacement)?);
        let (layout, live, gradients) = cpu.live_and_gradients()?;
        live[layout.trainable..].copy_from_slice(&statistics);
        displacement.fill(0.0);
        let convs = layout.convs.iter().map(|slot| slot.weight..slot.weight + slot.conv.weight_len());
        for tensor in convs.chain(iter::once(layout.linear_weight..layout.linear_bias)) {
            let (weights, gradient) = (&mut live[tensor.clone()], &gradients[tensor.clone()]);
            let factor = f64::from(self.gamma) * norm(weights) / (norm(gradient) + TINY);
            let moved = displacement[tensor.clone()].iter_mut().zip(weights.iter_mut().zip(gradient));
            for (v, (w, g)) in moved {
                *v = (factor * f64::from(*g)) as f32;
                *w += *v;
            }
        }
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let squares = cuda.workspace(squares_len(&cuda.parameters.layout) * size_of::<f64>())?;
        let arenas = AwpArenas {
            weights: cuda.parameters.live.address(),
            gradients: cuda.parameters.gradients.address(),
            displacement: cuda.address(self.displacement)?,
            squares,
        };
        let kept = cuda.address(self.statistics)?;
        cuda.driver().copy(kept, statistics(cuda), self.statistics.len() * F32)?;
        perturb_weights(cuda.driver(), &cuda.parameters.layout, arenas, self.gamma)
    }
}

/// In f64, its terms in an order of their own.
fn norm(values: &[f32]) -> f64 {
    let square = |values: &[f32]| values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
    let squares: Vec<f64> = values.par_chunks(1 << 14).map(square).collect();
    squares.iter().sum::<f64>().sqrt()
}

/// Where the running statistics lie on the device.
fn statistics(cuda: &Cuda) -> Address {
    cuda.parameters.live.address().offset::<f32>(cuda.parameters.layout.trainable)
}

/// A tensor as rows that lie one after the other: filters of a convolution, or classes of the linear layer.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct AwpTensor {
    /// Among the rows of all tensors.
    first_row: u32,
    rows: u32,
    row_length: u32,
    /// Of the first element in the arena.
    offset: u32,
}

const MOST_TENSORS: usize = 64;

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct AwpArenas {
    /// f32, the live arena.
    pub weights: Address,
    /// f32, trainable elements.
    pub gradients: Address,
    /// f32, trainable elements.
    pub displacement: Address,
    /// f64, [`squares_len`] elements.
    pub squares: Address,
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct AwpParams {
    arenas: AwpArenas,
    tensors: [AwpTensor; MOST_TENSORS],
    count: u32,
    gamma: f32,
}

fn tensors(layout: &Layout) -> Vec<AwpTensor> {
    let convs = layout.convs.iter().map(|slot| (slot.weight, slot.conv.out_channels, slot.conv.weight_len()));
    let (classes, features) = (layout.network.classes, layout.network.features());
    let linear = (layout.linear_weight, classes, classes * features);
    let mut first_row = 0;
    let tensor = |(offset, rows, len): (usize, usize, usize)| {
        first_row += rows as u32;
        let (rows, row_length) = (rows as u32, (len / rows) as u32);
        AwpTensor { first_row: first_row - rows, rows, row_length, offset: offset as u32 }
    };
    convs.chain([linear]).map(tensor).collect()
}

/// f64 elements for the sums of squares: of weights and of gradients, for each row.
pub fn squares_len(layout: &Layout) -> usize {
    2 * (layout.channels + layout.network.classes)
}

/// Moves the weights by v, and writes v: [`PerturbWeights`].
pub fn perturb_weights(driver: &dyn Driver, layout: &Layout, arenas: AwpArenas, gamma: f32) -> Result<()> {
    let list = tensors(layout);
    require(list.len() <= MOST_TENSORS, "awp_squares", "tensors: 64 at most", list.len() as u32)?;
    let mut tensors = [AwpTensor { first_row: 0, rows: 0, row_length: 0, offset: 0 }; MOST_TENSORS];
    tensors[..list.len()].copy_from_slice(&list);
    let params = AwpParams { arenas, tensors, count: list.len() as u32, gamma };

    let norms = layout.convs[0].bn_weight;
    for still in [norms..layout.linear_weight, layout.linear_bias..layout.trainable] {
        driver.fill(arenas.displacement.offset::<f32>(still.start), 0, still.len() * F32)?;
    }
    let grid = [(layout.channels + layout.network.classes) as u32, 1, 1];
    let moved = norms + layout.linear_bias - layout.linear_weight;
    let squares = squares_len(layout) * size_of::<f64>();
    run(driver, "awp_squares", grid, &params, Cost::new(4 * moved, 2 * moved * F32 + squares))?;
    run(driver, "awp_perturb", grid, &params, Cost::new(2 * moved, 4 * moved * F32 + squares))
}
