//! Launch of the weight gradient and its reduction: `kernels/conv/weight_gradient.cu`.

use super::params::{WeightGradientParams, WeightReduceParams};
use super::wgmma;
use super::{ConvShape, weight_gradient_cost, weight_reduce_cost};
use crate::cuda::driver::{Address, Driver, Kernel, launch};
use crate::engine::Result;

/// Blocks to aim at: two on each multiprocessor of the largest GPU. A constant, so that the order of the sums, and with it
/// every bit of a trained network, does not depend on how many multiprocessors there are.
const BLOCKS: usize = 264;
/// Pixels that a block takes from the reduction at a time (DEPTH of the kernel's tile).
const SLAB: usize = 32;
/// A part shorter than this spends its time on filling the pipeline and on the reduction.
const LEAST_SLABS: usize = 8;

/// How the reduction over pixels is divided.
struct Split {
    /// The widest: for a batch of this size or smaller.
    most_parts: usize,
    parts: usize,
    pixels_a_part: usize,
}

/// Output channels and columns (tap, input channel) of a block's tile.
fn tile(shape: &ConvShape) -> (usize, usize) {
    if shape.out_channels.is_multiple_of(64) { (64, 192) } else { (16, 64) }
}

fn columns(shape: &ConvShape) -> usize {
    shape.taps() * shape.in_channels
}

fn split(shape: &ConvShape) -> Split {
    let (tile_rows, tile_columns) = tile(shape);
    let tiles = shape.out_channels / tile_rows * columns(shape).div_ceil(tile_columns);
    let slabs = shape.output_rows().div_ceil(SLAB);
    let most_parts = (BLOCKS / tiles).min(slabs / LEAST_SLABS).max(1);
    let slabs_a_part = slabs.div_ceil(most_parts);
    Split { most_parts, parts: slabs.div_ceil(slabs_a_part), pixels_a_part: slabs_a_part * SLAB }
}

/// Elements (f32) of workspace that [`weight_gradient`] needs for this shape, or for a smaller batch of it, on any driver.
pub fn weight_gradient_workspace(shape: &ConvShape) -> usize {
    let parts = wgmma::weight_gradient_parts_at_most(shape).unwrap_or(0);
    split(shape).most_parts.max(parts) * shape.weight_len()
}

/// Gradient with respect to the weights, f32 KRSC; for the stem of 3 channels, hi and lo parts added up. `accumulate` adds to
/// what `gradient` holds. `workspace` holds [`weight_gradient_workspace`] elements.
pub fn weight_gradient(
    driver: &dyn Driver,
    shape: &ConvShape,
    input: Address,
    output_gradient: Address,
    workspace: Address,
    gradient: Address,
    accumulate: bool,
) -> Result<()> {
    shape.check()?;
    let parts = match wgmma::weight_product(driver, shape) {
        Some(planned) => {
            wgmma::weight_gradient_parts(driver, &planned, shape, input, output_gradient, workspace)?
        }
        None => parts_on_mma(driver, shape, input, output_gradient, workspace)?,
    };
    reduce(driver, shape, workspace, parts, gradient, accumulate)
}

/// Writes the parts to `workspace`, and says how many they are.
fn parts_on_mma(
    driver: &dyn Driver,
    shape: &ConvShape,
    input: Address,
    output_gradient: Address,
    workspace: Address,
) -> Result<usize> {
    let split = split(shape);
    let (tile_rows, tile_columns) = tile(shape);
    let kernel = Kernel::named(&format!("conv_weight_gradient_mma_{tile_rows}x{tile_columns}"))?;
    let params = WeightGradientParams {
        input,
        output_gradient,
        workspace,
        gather: shape.input_gather(),
        log2_out_channels: shape.out_channels.ilog2(),
        pixels_a_part: split.pixels_a_part as u32,
        unused: 0,
    };
    let across = columns(shape).div_ceil(tile_columns) as u32;
    let grid = [across, (shape.out_channels / tile_rows) as u32, split.parts as u32];
    launch(driver, &kernel, grid, &params, weight_gradient_cost(shape, split.parts))?;
    Ok(split.parts)
}

/// Adds up the parts in their order.
fn reduce(
    driver: &dyn Driver,
    shape: &ConvShape,
    workspace: Address,
    parts: usize,
    gradient: Address,
    accumulate: bool,
) -> Result<()> {
    let elements = shape.weight_len();
    let params = WeightReduceParams {
        workspace,
        gradient,
        elements: elements as u32,
        parts: parts as u32,
        accumulate: accumulate.into(),
        unused: 0,
    };
    let (kernel, threads) = if shape.is_stem() {
        (Kernel::named("conv_weight_gradient_reduce_stem")?, elements / 8 * 3)
    } else {
        (Kernel::named("conv_weight_gradient_reduce")?, elements / 4)
    };
    let blocks = threads.div_ceil(kernel.threads() as usize) as u32;
    launch(driver, &kernel, [blocks, 1, 1], &params, weight_reduce_cost(shape, parts, accumulate))
}
