//! Launch of the input gradient: `kernels/conv/input_gradient.cu`.

use super::mask::plain;
use super::params::InputGradientParams;
use super::wgmma::{self, Direction};
use super::{ConvShape, Mask, Product, Reduction, Tile, input_gradient_cost};
use crate::cuda::driver::{Address, Driver, launch};
use crate::engine::{Error, Result};

/// `input_gradient = (sum + residual) * mask`, both optional.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InputGradientEpilogue {
    /// bf16 gradient of the input's shape; for stride 2 the compact gradient of the block's 1x1 convolution, of
    /// `output_rows x in_channels`, which belongs to the input pixels with even coordinates.
    pub residual: Option<Address>,
    /// ReLU mask of the input, as the forward convolution writes it.
    pub mask: Option<Mask>,
}

fn check(shape: &ConvShape, epilogue: &InputGradientEpilogue) -> Result<()> {
    shape.check()?;
    if shape.is_stem() {
        return Err(Error::Invalid("input gradient of the stem: use image_gradient".into()));
    }
    if shape.kernel == 1 && *epilogue != InputGradientEpilogue::default() {
        return Err(Error::Invalid(
            "input gradient of a 1x1 convolution: it is compact, give mask and residual to the 3x3 one"
                .into(),
        ));
    }
    Ok(())
}

/// Gradient with respect to the input, bf16. That of a 1x1 convolution of stride 2 is compact: `output_rows x in_channels`,
/// the gradient of the input pixels with even coordinates; the others have none. It takes no mask and no residual.
pub fn input_gradient(
    driver: &dyn Driver,
    reduction: Reduction,
    product: Product,
    epilogue: &InputGradientEpilogue,
) -> Result<()> {
    check(product.shape, epilogue)?;
    match wgmma::product(driver, reduction, product.shape, Direction::Gradient) {
        Some(planned) => wgmma::input_gradient(driver, &planned, product, epilogue),
        None => input_gradient_on_mma(driver, product, epilogue),
    }
}

/// [`input_gradient`] on mma, in the tile that should be fastest.
pub fn input_gradient_on_mma(
    driver: &dyn Driver,
    product: Product,
    epilogue: &InputGradientEpilogue,
) -> Result<()> {
    let shape = product.shape;
    let tile = Tile::choose(phases(shape) * shape.output_rows(), shape.in_channels);
    input_gradient_tiled(driver, tile, product, epilogue)
}

/// Sets of input pixels with taps of their own: one for each parity of row and column.
fn phases(shape: &ConvShape) -> usize {
    if shape.stride == 2 && shape.kernel == 3 { 4 } else { 1 }
}

/// [`input_gradient`] on mma in a given tile: for tests and measurements.
pub fn input_gradient_tiled(
    driver: &dyn Driver,
    tile: Tile,
    Product { shape, from, weights, to }: Product,
    epilogue: &InputGradientEpilogue,
) -> Result<()> {
    check(shape, epilogue)?;
    let operation = match shape.stride {
        1 => "conv_input_gradient_stride1",
        _ => "conv_input_gradient_stride2",
    };
    // The rows of one phase are as many as the output's pixels; at stride 1 these are all the input's.
    let plan = tile.plan(operation, shape.output_rows(), shape.in_channels)?;
    let params = InputGradientParams {
        output_gradient: from,
        weights,
        residual: epilogue.residual.unwrap_or(Address::NULL),
        mask: epilogue.mask.map_or(Ok(Address::NULL), |mask| plain(shape, mask))?,
        input_gradient: to,
        gather: shape.output_gather(),
        kernel_taps: shape.taps() as u32,
        log2_in_channels: shape.in_channels.ilog2(),
        log2_column_tiles: plan.log2_column_tiles,
    };
    let layers = phases(shape) as u32;
    launch(driver, &plan.kernel, [plan.blocks, 1, layers], &params, input_gradient_cost(shape, epilogue))
}
