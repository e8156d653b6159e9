//! BatchNorm: `kernels/norm/`.
//!
//! A batch of the train pass may be several sets of as many images, one after the other, each with statistics of its own. Where
//! nothing but the grid depends on how many they are, the launch takes their number next to the parameters.

use super::{BF16, Cost, F32, require, run};
use crate::cuda::driver::{Address, Driver, Kernel, launch};
use crate::cuda::layout::{Layout, packed_len, packed_offset};
use crate::engine::Result;
use crate::model::ConvSlot;

/// Where one convolution lies; offsets in elements.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct FoldLayer {
    pub first_filter: u32,
    /// In the f32 arena: filters x taps x channels.
    pub weight: u32,
    /// In the bf16 arena.
    pub folded: u32,
    /// Taps x channels.
    pub filter_length: u32,
}

/// The table that [`FoldParams::layers`] points to.
pub fn fold_table(layout: &Layout) -> Vec<FoldLayer> {
    let layer = |(at, slot): (usize, &ConvSlot)| FoldLayer {
        first_filter: slot.channel as u32,
        weight: slot.weight as u32,
        folded: packed_offset(layout, at) as u32,
        filter_length: (slot.conv.weight_len() / slot.conv.out_channels) as u32,
    };
    layout.convs.iter().enumerate().map(layer).collect()
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct FoldParams {
    pub layers: Address,
    /// The f32 arena, live or average.
    pub weights: Address,
    /// This and the next three: f32, one element a filter of the network.
    pub gamma: Address,
    pub beta: Address,
    pub mean: Address,
    pub variance: Address,
    /// bf16 arena.
    pub folded: Address,
    /// f32, one element a filter of the network.
    pub bias: Address,
    pub layer_count: u32,
    pub epsilon: f32,
}

/// Folds evaluation-mode BatchNorm into all convolutions of the network that `params` describes.
pub fn batch_norm_fold(driver: &dyn Driver, layout: &Layout, params: &FoldParams) -> Result<()> {
    let (filters, weights) = (layout.channels, layout.convs[0].bn_weight);
    // A product a weight; a root, a quotient, two products, a sum and a difference a filter.
    let cost = Cost::new(weights + 6 * filters, (weights + 5 * filters) * F32 + packed_len(layout) * BF16);
    run(driver, "batch_norm_fold", [filters as u32, 1, 1], params, cost)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct StatisticsParams {
    /// f32, sets x tiles x {mean, sum of squared differences from it} x channels.
    pub partials: Address,
    pub gamma: Address,
    pub beta: Address,
    pub running_mean: Address,
    pub running_variance: Address,
    /// f32, sets x {mean, 1/deviation, scale, shift} x channels.
    pub statistics: Address,
    /// 1, 2, 4 or 8.
    pub sets: u32,
    /// Of a set, as are the tiles.
    pub rows: u32,
    pub tile_rows: u32,
    pub tiles: u32,
    pub channels: u32,
    pub epsilon: f32,
    pub momentum: f32,
    pub padding: u32,
}

/// The columns that a block of these kernels takes are channels of every set.
const COLUMNS: u32 = 8;

/// Blocks for so many columns.
fn column_blocks(kernel: &str, sets: u32, channels: u32) -> Result<u32> {
    require((1..=COLUMNS).contains(&sets) && sets.is_power_of_two(), kernel, "sets: 1, 2, 4 or 8", sets)?;
    require(channels.is_multiple_of(COLUMNS), kernel, "channels: a multiple of 8", channels)?;
    Ok(channels * sets / COLUMNS)
}

/// Launches a kernel whose threads each take a vector of eight elements, `vectors` in each of the sets.
fn run_on_vectors<P: bytemuck::Pod>(
    driver: &dyn Driver,
    name: &str,
    [sets, vectors, channels]: [u32; 3],
    params: &P,
    cost: Cost,
) -> Result<()> {
    let fits = channels >= 8 && channels.is_power_of_two();
    require(fits, name, "channels: a power of two from 8 on", channels)?;
    let kernel = Kernel::named(name)?;
    launch(driver, &kernel, [vectors.div_ceil(kernel.threads()), sets, 1], params, cost)
}

/// Merges the partial statistics of a convolution's tiles and updates the running ones, by one set after another.
pub fn batch_norm_statistics(driver: &dyn Driver, params: &StatisticsParams) -> Result<()> {
    let name = "batch_norm_statistics";
    let blocks = column_blocks(name, params.sets, params.channels)?;
    require(params.rows > 1, name, "rows: at least 2, for an unbiased variance", params.rows)?;
    require(
        params.tile_rows > 0 && params.tiles == params.rows.div_ceil(params.tile_rows),
        name,
        "tiles: rows / tile_rows, rounded up",
        params.tiles,
    )?;
    let [sets, tiles, channels] = [params.sets, params.tiles, params.channels].map(|count| count as usize);
    // Two moments a tile and four statistics for each set; gamma, beta, and the running ones read and written.
    let bytes = (sets * (2 * tiles + 4) + 6) * channels * F32;
    run(driver, name, [blocks, 1, 1], params, Cost::new(sets * (10 * tiles + 12) * channels, bytes))
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ApplyParams {
    /// bf16, sets x rows x channels.
    pub y: Address,
    /// f32, sets x {mean, 1/deviation, scale, shift} x channels.
    pub statistics: Address,
    /// bf16: an activation, or a shortcut's y; null for none.
    pub residual: Address,
    /// Of the shortcut; null where the residual is an activation.
    pub residual_statistics: Address,
    /// bf16, sets x rows x channels.
    pub out: Address,
    /// Bits, sets x rows x channels.
    pub mask: Address,
    /// Of a set: rows * channels / 8.
    pub vectors: u32,
    /// A power of two, at least 8.
    pub channels: u32,
}

/// Normalise, add the residual, ReLU, mask: the kernel is chosen by which residual addresses are present.
pub fn batch_norm_relu(driver: &dyn Driver, sets: u32, params: &ApplyParams) -> Result<()> {
    let name = match (params.residual, params.residual_statistics) {
        (Address::NULL, _) => "batch_norm_relu",
        (_, Address::NULL) => "batch_norm_add_relu",
        _ => "batch_norm_add_normalised_relu",
    };
    // Scale and shift, then the residual, which may have its own; their place is two f32 a channel.
    let (operations, operands, affine) = match (params.residual, params.residual_statistics) {
        (Address::NULL, _) => (2, 2, 1),
        (_, Address::NULL) => (3, 3, 1),
        _ => (5, 3, 2),
    };
    let (elements, moments) = (params.vectors as usize * 8, 2 * params.channels as usize);
    let bytes = operands * elements * BF16 + elements / 8 + affine * moments * F32;
    let cost = Cost::new(sets as usize * operations * elements, sets as usize * bytes);
    run_on_vectors(driver, name, [sets, params.vectors, params.channels], params, cost)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct NormSumsParams {
    /// bf16, sets x rows x channels: the gradient with respect to the normalised output, masked by the ReLU after it.
    pub g: Address,
    /// bf16, sets x rows x channels.
    pub y: Address,
    pub statistics: Address,
    /// f32, sets x blocks x {sum g, sum g * xhat} x channels; see [`backward_blocks`].
    pub partials: Address,
    /// Of a set.
    pub rows: u32,
    pub rows_per_block: u32,
    /// A power of two, 8 to 1024.
    pub channels: u32,
    pub padding: u32,
}

/// Rows that a block of [`batch_norm_backward_sums`] takes: sixteen vectors a thread.
pub fn backward_rows_per_block(channels: u32) -> u32 {
    (256 * 16 * 8 / channels).max(1)
}

/// Blocks of [`batch_norm_backward_sums`] for a set of `rows`: the partial sums are `2 * channels` f32 for each.
pub fn backward_blocks(rows: u32, channels: u32) -> u32 {
    rows.div_ceil(backward_rows_per_block(channels))
}

/// Partial sums of the backward pass.
pub fn batch_norm_backward_sums(driver: &dyn Driver, sets: u32, params: &NormSumsParams) -> Result<()> {
    let name = "batch_norm_backward_sums";
    let channels = params.channels;
    require(
        (8..=1024).contains(&channels) && channels.is_power_of_two(),
        name,
        "channels: a power of two from 8 to 1024",
        channels,
    )?;
    require(params.rows_per_block > 0, name, "rows_per_block: at least 1", params.rows_per_block)?;
    let blocks = params.rows.div_ceil(params.rows_per_block);
    let (elements, width) = (params.rows as usize * channels as usize, channels as usize);
    let bytes = 2 * elements * BF16 + (2 + 2 * blocks as usize) * width * F32;
    let cost = Cost::new(sets as usize * 5 * elements, sets as usize * bytes);
    run(driver, name, [blocks, sets, 1], params, cost)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct NormFinishParams {
    pub partials: Address,
    pub statistics: Address,
    pub gamma: Address,
    /// f32, channels; null, together with the next, where only the input gradient is wanted.
    pub gamma_gradient: Address,
    pub beta_gradient: Address,
    /// f32, sets x 3 x channels.
    pub coefficients: Address,
    /// 1, 2, 4 or 8.
    pub sets: u32,
    /// Of a set, as are the rows.
    pub blocks: u32,
    pub rows: u32,
    pub channels: u32,
    /// 1 adds to the gradients already there.
    pub accumulate: u32,
    pub padding: u32,
}

/// The gradients of gamma and beta over all sets, and for each the coefficients of [`batch_norm_backward_apply`].
pub fn batch_norm_backward_finish(driver: &dyn Driver, params: &NormFinishParams) -> Result<()> {
    let name = "batch_norm_backward_finish";
    let grid = [column_blocks(name, params.sets, params.channels)?, 1, 1];
    let [sets, blocks, channels] = [params.sets, params.blocks, params.channels].map(|count| count as usize);
    let gradients = match (params.gamma_gradient, params.accumulate) {
        (Address::NULL, _) => 0,
        (_, 0) => 2,
        _ => 4,
    };
    // For each set two sums a block, 1/deviation and three coefficients; gamma, and what gradients are wanted.
    let bytes = (sets * (2 * blocks + 4) + 1 + gradients) * channels * F32;
    run(driver, name, grid, params, Cost::new(sets * (2 * blocks + 4) * channels, bytes))
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct NormBackwardParams {
    pub g: Address,
    pub y: Address,
    pub statistics: Address,
    pub coefficients: Address,
    /// bf16, sets x rows x channels; may be `g`.
    pub dy: Address,
    /// Of a set: rows * channels / 8.
    pub vectors: u32,
    /// A power of two, at least 8.
    pub channels: u32,
}

/// The gradient with respect to the convolution's output.
pub fn batch_norm_backward_apply(driver: &dyn Driver, sets: u32, params: &NormBackwardParams) -> Result<()> {
    let (name, channels) = ("batch_norm_backward_apply", params.channels);
    let elements = sets as usize * params.vectors as usize * 8;
    let cost = Cost::new(5 * elements, 3 * elements * BF16 + 4 * (sets * channels) as usize * F32);
    run_on_vectors(driver, name, [sets, params.vectors, channels], params, cost)
}
