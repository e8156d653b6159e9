//! Convolutions on wgmma: `kernels/conv/wgmma/`, for GPUs of compute capability 9.0 and layers whose channels are multiples
//! of 64. [`product`] chooses.

pub mod maps;
pub mod params;
pub mod plan;
mod weight_gradient;

use bytemuck::Zeroable;

use super::mask::plain;
use super::{
    ConvShape, ForwardEpilogue, InputGradientEpilogue, Product, Reduction, forward_cost, input_gradient_cost,
};
use crate::cuda::driver::{Driver, Kernel, WgmmaSwitch, launch};
use crate::engine::Result;
use maps::Images;
use params::{ForwardParams, GradientParams, Operands};
pub use plan::{BLOCKS, Block, Direction, Planned, plan};
use plan::{GROUP_PIXELS, PARITIES, Plan};
pub use weight_gradient::{WeightParts, most_parts as weight_gradient_parts_at_most, weight_gradient_parts};

/// Output pixels whose statistics are one partial result.
pub const STATISTICS_ROWS: usize = GROUP_PIXELS;

/// How the product computes a convolution of this shape here; `None` where the driver or the shape is not for these kernels, or
/// those that serve it are switched off.
pub fn product(
    driver: &dyn Driver,
    reduction: Reduction,
    shape: &ConvShape,
    direction: Direction,
) -> Option<Planned> {
    let off = driver.options().wgmma_off;
    let allowed =
        |block: Block| !off.has(block.switch()) && (reduction == Reduction::Split || !block.splits());
    if driver.has_wgmma() && !off.has(direction.switch()) { plan(shape, direction, allowed) } else { None }
}

/// The same for its weight gradient, which takes slots and groups of the forward plan and no block of it.
pub fn weight_product(driver: &dyn Driver, shape: &ConvShape) -> Option<Planned> {
    let used = driver.has_wgmma() && !driver.options().wgmma_off.has(WgmmaSwitch::WeightGradient);
    if used { weight_plan(shape) } else { None }
}

/// The slots and groups of a weight gradient on these kernels.
fn weight_plan(shape: &ConvShape) -> Option<Planned> {
    plan(shape, Direction::Forward, |block| !block.splits())
}

/// A plan as a launch hands it over, with this many maps of pixels.
pub fn launched(driver: &dyn Driver, planned: &Planned, maps: usize) -> Plan {
    Plan { prefetched: if driver.options().prefetch_maps { maps as u32 } else { 0 }, ..planned.plan }
}

/// See [`super::forward()`].
pub fn forward(
    driver: &dyn Driver,
    planned: &Planned,
    Product { shape, from, weights, to }: Product,
    epilogue: &ForwardEpilogue,
) -> Result<()> {
    shape.check()?;
    let (side, channels) = (shape.out_side(), shape.out_channels);
    let inputs =
        Images { address: from, batch: shape.batch, side: shape.in_side, channels: shape.in_channels };
    let like_output =
        |address| Images { address, batch: shape.batch, side, channels }.stage(driver, [0, 0], 1, planned);
    let mut params = ForwardParams {
        operands: Operands {
            pixels: inputs.slots(driver, shape.stride, planned)?,
            weights: maps::weights(driver, weights, shape.in_channels, shape.taps(), channels)?,
        },
        output: like_output(to)?,
        log2_out_channels: channels.ilog2(),
        plan: launched(driver, planned, shape.stride * shape.stride),
        ..Zeroable::zeroed()
    };
    match *epilogue {
        ForwardEpilogue::Relu { bias, residual, mask } => {
            (params.bias, params.mask, params.mask_order) = (bias, mask.address, mask.order as u32);
            if let Some(residual) = residual {
                params.residual = like_output(residual)?;
                params.has_residual = 1;
            }
        }
        ForwardEpilogue::Bias { bias } => params.bias = bias,
        ForwardEpilogue::Statistics { partials } => params.statistics = partials,
    }
    let kernel = Kernel::named(&format!("{}_wgmma_{}", epilogue.operation(), planned.block.name()))?;
    launch(driver, &kernel, [planned.grid_blocks(), 1, 1], &params, forward_cost(shape, epilogue))
}

/// See [`super::input_gradient()`].
pub fn input_gradient(
    driver: &dyn Driver,
    planned: &Planned,
    Product { shape, from, weights, to }: Product,
    epilogue: &InputGradientEpilogue,
) -> Result<()> {
    shape.check()?;
    if let (Some(mask), 2) = (epilogue.mask, shape.stride) {
        plain(shape, mask)?;
    }
    let (batch, grid, channels) = (shape.batch, shape.out_side(), shape.in_channels);
    let gathered = Images { address: from, batch, side: grid, channels: shape.out_channels };
    // A strided gradient is written parity by parity, but for the compact one of a 1 x 1 kernel.
    let phases = planned.plan.phase_count as usize;
    let every = if phases == 4 { 2 } else { 1 };
    let target = Images { address: to, batch, side: grid * every, channels };
    let parities = if phases == 4 { PARITIES } else { [(0, 0); 4] };
    let stage = |images: Images, parity: (usize, usize), every| {
        images.stage(driver, [parity.0, parity.1], every, planned)
    };
    let mut params = GradientParams {
        operands: Operands {
            pixels: gathered.slots(driver, 1, planned)?,
            weights: maps::weights(driver, weights, channels, shape.taps(), shape.out_channels)?,
        },
        residual_phase: 4,
        log2_in_channels: channels.ilog2(),
        log2_stride: every as u32 - 1,
        plan: launched(driver, planned, 1),
        ..Zeroable::zeroed()
    };
    for (phase, parity) in parities.into_iter().enumerate().take(phases) {
        params.output[phase] = stage(target, parity, every)?;
        params.parities |= ((2 * parity.0 + parity.1) << (2 * phase)) as u32;
    }
    if let Some(mask) = epilogue.mask {
        (params.mask, params.mask_order) = (mask.address, mask.order as u32);
    }
    if let Some(address) = epilogue.residual {
        // Like the gradient, or compact and of the even pixels: in both cases on the grid, in the last phase.
        params.residual = stage(Images { address, batch, side: grid, channels }, (0, 0), 1)?;
        params.residual_phase = phases as u32 - 1;
    }
    let kernel = Kernel::named(&format!("conv_input_gradient_wgmma_{}", planned.block.name()))?;
    launch(driver, &kernel, [planned.grid_blocks(), 1, 1], &params, input_gradient_cost(shape, epilogue))
}
