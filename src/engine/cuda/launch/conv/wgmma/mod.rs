//! Convolutions on wgmma: `kernels/conv/wgmma/`, for GPUs of compute capability 9.0 and layers whose channels are multiples
//! of 64. The functions beside this folder call them where there is a [`product`]; nobody else chooses.
//!
//! | file | what lives there |
//! |---|---|
//! | `plan` | which pixels and weights a block loads, and in which order |
//! | `maps` | how the copy engine sees the tensors |
//! | `params` | the parameter structs |
//! | `predict` | how long all this should take on an H200, and the rungs of the ladder |
//! | `weight_gradient` | the third of the three operations; forward and input gradient are here |

mod maps;
mod params;
mod plan;
pub mod predict;
mod weight_gradient;

use bytemuck::Zeroable;

use super::{ConvShape, ForwardEpilogue, InputGradientEpilogue, forward_cost, input_gradient_cost};
use crate::engine::cuda::driver::{Address, Driver, Kernel, WgmmaOff, WgmmaSwitch, launch};
use crate::engine::{Error, Result};
use maps::Images;
use params::{ForwardParams, GradientParams, Operands};
pub use plan::{BLOCKS, Block, Direction, Loads, Planned};
use plan::{GROUP_PIXELS, PARITIES, Plan, plan};
pub use weight_gradient::{most_parts as weight_gradient_parts_at_most, weight_gradient_parts};

/// Output pixels whose statistics are one partial result.
pub const STATISTICS_ROWS: usize = GROUP_PIXELS;

/// How a convolution is carried out; the default is the product, the rest are rungs of the ladder, for measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rung {
    pub loads: Loads,
    /// Blocks at most, which go from work to work: 132 ([`plan::BLOCKS`]), or fewer in tests. `None` for a block a work.
    pub blocks: Option<usize>,
    /// `None` for the one that should be fastest.
    pub block: Option<Block>,
    /// Whether that may be [`Block::Split`]: [`Driver::splits_sums`].
    pub splits: bool,
    /// Blocks that it may not be: those that the device was opened without.
    pub off: WgmmaOff,
}

impl Default for Rung {
    fn default() -> Self {
        Self { loads: Loads::Planes, blocks: Some(BLOCKS), block: None, splits: false, off: WgmmaOff::NONE }
    }
}

impl Rung {
    fn blocks(self, planned: &Planned) -> u32 {
        let clusters =
            self.blocks.map_or(planned.tiles, |blocks| planned.tiles.min(blocks / planned.block.parts()));
        (clusters * planned.block.parts()) as u32
    }
}

/// How the product computes a convolution of this shape here; `None` where the driver or the shape is not for these kernels, or
/// those that serve it are switched off.
pub fn product(driver: &dyn Driver, shape: &ConvShape, direction: Direction) -> Option<Planned> {
    let off = driver.options().wgmma_off;
    let rung = Rung { splits: driver.splits_sums(), off, ..Rung::default() };
    if driver.has_wgmma() && !off.has(direction.switch()) { plan(shape, direction, rung) } else { None }
}

/// The same for its weight gradient, which takes slots and groups of the forward plan and no block of it.
pub fn weight_product(driver: &dyn Driver, shape: &ConvShape) -> Option<Planned> {
    let used = driver.has_wgmma() && !driver.options().wgmma_off.has(WgmmaSwitch::WeightGradient);
    if used { plan(shape, Direction::Forward, Rung::default()) } else { None }
}

/// A plan as a launch hands it over, with so many maps of pixels.
fn launched(driver: &dyn Driver, planned: &Planned, maps: usize) -> Plan {
    Plan { prefetched: if driver.options().prefetch_maps { maps as u32 } else { 0 }, ..planned.plan }
}

/// How it is computed on a given rung.
pub fn planned(shape: &ConvShape, direction: Direction, rung: Rung) -> Result<Planned> {
    plan(shape, direction, rung).ok_or_else(|| {
        Error::Invalid(format!(
            "convolution {shape:?}, {direction:?} with {rung:?}: the wgmma kernels want channels in multiples of 64 and output \
             sides of 4 to 32"
        ))
    })
}

/// See [`super::forward()`].
pub fn forward(
    driver: &dyn Driver,
    planned: &Planned,
    shape: &ConvShape,
    input: Address,
    weights: Address,
    epilogue: &ForwardEpilogue,
    output: Address,
) -> Result<()> {
    shape.check()?;
    let rung = planned.rung;
    let (side, channels) = (shape.out_side(), shape.out_channels);
    let inputs =
        Images { address: input, batch: shape.batch, side: shape.in_side, channels: shape.in_channels };
    let like_output = |address| {
        let images = Images { address, batch: shape.batch, side, channels };
        match rung.loads {
            Loads::Planes => images.stage(driver, [0, 0], 1, planned),
            Loads::Im2col => images.stage_in_order(driver),
        }
    };
    let pixel_maps = if rung.loads == Loads::Planes { shape.stride * shape.stride } else { 1 };
    let mut params = ForwardParams {
        operands: Operands {
            pixels: match rung.loads {
                Loads::Planes => inputs.slots(driver, shape.stride, planned)?,
                Loads::Im2col => [inputs.im2col(driver, shape.stride)?; 4],
            },
            weights: maps::weights(driver, weights, shape.in_channels, shape.taps(), channels)?,
        },
        output: like_output(output)?,
        log2_out_channels: channels.ilog2(),
        plan: launched(driver, planned, pixel_maps),
        ..Zeroable::zeroed()
    };
    match *epilogue {
        ForwardEpilogue::Relu { bias, residual, mask } => {
            (params.bias, params.mask) = (bias, mask);
            if let Some(residual) = residual {
                params.residual = like_output(residual)?;
                params.has_residual = 1;
            }
        }
        ForwardEpilogue::Bias { bias } => params.bias = bias,
        ForwardEpilogue::Statistics { partials } => params.statistics = partials,
    }
    let kernel = Kernel::named(&format!("{}_wgmma_{}", epilogue.operation(), planned.block.name()))?;
    launch(driver, &kernel, [rung.blocks(planned), 1, 1], &params, forward_cost(shape, epilogue))
}

/// See [`super::input_gradient()`].
pub fn input_gradient(
    driver: &dyn Driver,
    planned: &Planned,
    shape: &ConvShape,
    output_gradient: Address,
    weights: Address,
    epilogue: &InputGradientEpilogue,
    input_gradient: Address,
) -> Result<()> {
    shape.check()?;
    let rung = planned.rung;
    let (batch, grid, channels) = (shape.batch, shape.out_side(), shape.in_channels);
    let gathered = Images { address: output_gradient, batch, side: grid, channels: shape.out_channels };
    // A strided gradient is written parity by parity, but for the compact one of a 1 x 1 kernel.
    let phases = planned.plan.phase_count as usize;
    let every = if phases == 4 { 2 } else { 1 };
    let target = Images { address: input_gradient, batch, side: grid * every, channels };
    let parities = if phases == 4 { PARITIES } else { [(0, 0); 4] };
    let stage = |images: Images, parity: (usize, usize), every| match rung.loads {
        Loads::Planes => images.stage(driver, [parity.0, parity.1], every, planned),
        Loads::Im2col => images.stage_in_order(driver),
    };
    let mut params = GradientParams {
        operands: Operands {
            pixels: match rung.loads {
                Loads::Planes => gathered.slots(driver, 1, planned)?,
                Loads::Im2col => [gathered.im2col(driver, 1)?; 4],
            },
            weights: maps::weights(driver, weights, channels, shape.taps(), shape.out_channels)?,
        },
        mask: epilogue.mask.unwrap_or(Address::NULL),
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
    if let Some(address) = epilogue.residual {
        // Like the gradient, or compact and of the even pixels: in both cases on the grid, in the last phase.
        params.residual = stage(Images { address, batch, side: grid, channels }, (0, 0), 1)?;
        params.residual_phase = phases as u32 - 1;
    }
    let kernel = Kernel::named(&format!("conv_input_gradient_wgmma_{}", planned.block.name()))?;
    launch(driver, &kernel, [rung.blocks(planned), 1, 1], &params, input_gradient_cost(shape, epilogue))
}
