//! Launch of the forward convolution: `kernels/conv/forward.cu`.

use bytemuck::Zeroable;

use super::mask::plain;
use super::params::ForwardParams;
use super::wgmma::{self, Direction};
use super::{ConvShape, Mask, Product, Reduction, Tile, forward_cost};
use crate::cuda::driver::{Address, Driver, launch};
use crate::engine::Result;

/// What happens to the sums before they are stored as bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardEpilogue {
    /// `relu(sum + bias + residual)`; `mask` is 1 where it is positive. `bias` is f32, `residual` bf16 of the output's shape. A NaN
    /// passes.
    Relu { bias: Address, residual: Option<Address>, mask: Mask },
    /// `sum + bias`.
    Bias { bias: Address },
    /// The sums as they are. For tile `t` of [`statistics_tile_rows`] pixels and channel `k`, over the rounded outputs `y` of
    /// the tile, in f32: `partials[t][0][k]` is the mean of `y` and `partials[t][1][k]` is `sum (y - mean)^2`. The last tile
    /// has only the rows that are left.
    Statistics { partials: Address },
}

impl ForwardEpilogue {
    /// The kernels of this ending, up to their family and tile.
    pub(super) fn operation(&self) -> &'static str {
        match self {
            Self::Relu { .. } => "conv_forward_relu",
            Self::Bias { .. } => "conv_forward_bias",
            Self::Statistics { .. } => "conv_forward_statistics",
        }
    }
}

/// Output pixels that one partial result of [`ForwardEpilogue::Statistics`] covers on this driver.
pub fn statistics_tile_rows(driver: &dyn Driver, shape: &ConvShape) -> usize {
    wgmma::product(driver, Reduction::Split, shape, Direction::Forward)
        .map_or(Tile::ROWS, |_| wgmma::STATISTICS_ROWS)
}

/// The forward convolution of several sets of images that lie one after the other, each with statistics of its own.
#[derive(Clone, Copy, Debug)]
pub struct SetStatistics {
    /// One over all images, or one for each set where a tile of partial results would lie in two of them.
    pub launches: usize,
    /// Of a launch.
    pub shape: ConvShape,
    pub tile_rows: usize,
    /// Partial results of a set; those of the next follow.
    pub tiles: usize,
}

impl SetStatistics {
    /// For `sets` sets of the shape `set`.
    pub fn new(driver: &dyn Driver, sets: usize, set: &ConvShape) -> Self {
        let rows = set.output_rows();
        let tile_rows = |shape: &ConvShape| statistics_tile_rows(driver, shape);
        let (launches, shape) = match (ConvShape { batch: sets * set.batch, ..*set }) {
            all if rows.is_multiple_of(tile_rows(&all)) => (1, all),
            _ => (sets, *set),
        };
        let tile_rows = tile_rows(&shape);
        Self { launches, shape, tile_rows, tiles: rows.div_ceil(tile_rows) }
    }
}

/// Elements (f32) of the partial results of [`ForwardEpilogue::Statistics`], on any driver.
pub fn statistics_partials(shape: &ConvShape) -> usize {
    shape.output_rows().div_ceil(Tile::ROWS) * 2 * shape.out_channels
}

/// `output = epilogue(convolution of input with weights)`.
pub fn forward(
    driver: &dyn Driver,
    reduction: Reduction,
    product: Product,
    epilogue: &ForwardEpilogue,
) -> Result<()> {
    match wgmma::product(driver, reduction, product.shape, Direction::Forward) {
        Some(planned) => wgmma::forward(driver, &planned, product, epilogue),
        None => forward_on_mma(driver, product, epilogue),
    }
}

/// [`forward`] on mma, in the tile that should be fastest.
pub fn forward_on_mma(driver: &dyn Driver, product: Product, epilogue: &ForwardEpilogue) -> Result<()> {
    let tile = Tile::choose(product.shape.output_rows(), product.shape.out_channels);
    forward_tiled(driver, tile, product, epilogue)
}

/// [`forward`] on mma in a given tile: for tests and measurements.
pub fn forward_tiled(
    driver: &dyn Driver,
    tile: Tile,
    Product { shape, from, weights, to }: Product,
    epilogue: &ForwardEpilogue,
) -> Result<()> {
    shape.check()?;
    let plan = tile.plan(epilogue.operation(), shape.output_rows(), shape.out_channels)?;
    let mut params = ForwardParams {
        input: from,
        weights,
        output: to,
        gather: shape.input_gather(),
        log2_out_channels: shape.out_channels.ilog2(),
        log2_column_tiles: plan.log2_column_tiles,
        ..Zeroable::zeroed()
    };
    match *epilogue {
        ForwardEpilogue::Relu { bias, residual, mask } => {
            (params.bias, params.mask) = (bias, plain(shape, mask)?);
            params.residual = residual.unwrap_or(Address::NULL);
        }
        ForwardEpilogue::Bias { bias } => params.bias = bias,
        ForwardEpilogue::Statistics { partials } => params.statistics = partials,
    }
    launch(driver, &plan.kernel, [plan.blocks, 1, 1], &params, forward_cost(shape, epilogue))
}
