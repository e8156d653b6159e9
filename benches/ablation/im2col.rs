//! Convolutions on wgmma whose pixels TMA gathers tap by tap: plan, tensor maps and launch of `kernels/extra/ablation/im2col.cu`.

use bytemuck::Zeroable;
use secateur::cuda::driver::{
    Address, Driver, Im2colMap, Kernel, MapSpec, Swizzle, TensorMap, TiledMap, launch,
};
use secateur::cuda::launch::conv::wgmma::maps::{self, STAGE_PIXELS};
use secateur::cuda::launch::conv::wgmma::params::{ForwardParams, GradientParams, Operands};
use secateur::cuda::launch::conv::wgmma::plan::{
    DEPTH_CHANNELS, GROUP_CHANNELS, GROUP_PIXELS, PIXEL_BYTES, Phase, Slot, slot,
};
use secateur::cuda::launch::conv::wgmma::{self, Block, Direction, Planned, launched};
use secateur::cuda::launch::conv::{
    ConvShape, ForwardEpilogue, InputGradientEpilogue, Mask, Product, forward_cost, input_gradient_cost,
};
use secateur::engine::Result;

/// Bytes of an element.
const BF16: u64 = 2;

/// The plan of the product, with a tap in each slot; `None` where im2col mode does not serve the convolution.
pub fn plan(shape: &ConvShape, direction: Direction, allowed: impl Fn(Block) -> bool) -> Option<Planned> {
    let built = |block| match block {
        Block::Wide | Block::Small => true,
        Block::Long => shape.stride == 1,
        Block::Split | Block::Resident => false,
    };
    let served = shape.kernel == 3 && (direction == Direction::Forward || shape.stride == 1);
    let mut planned = wgmma::plan(shape, direction, |block| served && built(block) && allowed(block))?;
    let at = |tap: u32| if direction == Direction::Gradient { 2 - tap } else { tap } as i8;
    planned.plan.slots = [Slot::default(); 12];
    for tap in 0..9 {
        planned.plan.slots[tap as usize] = slot(0, at(tap / 3), at(tap % 3), &[(0, tap)]);
    }
    planned.plan.phases =
        [Phase { first_slot: 0, slots: 9 }, Phase::default(), Phase::default(), Phase::default()];
    planned.plan.slot_bytes = (GROUP_PIXELS * PIXEL_BYTES) as u32;
    planned.planes = planned.rows;
    Some(planned)
}

/// Images in bf16 NHWC: address, batch, side and channels.
type Images = (Address, usize, usize, usize);

/// Taps of a 3 x 3 kernel with padding 1, loaded one by one.
fn taps(driver: &dyn Driver, (address, batch, side, channels): Images, stride: u32) -> Result<TensorMap> {
    let (pixel, side) = (channels as u64 * BF16, side as u64);
    driver.tensor_map(&MapSpec::Im2col(Im2colMap {
        address,
        element_bytes: BF16 as u32,
        dims: [channels as u64, side, side, batch as u64],
        strides: [pixel, side * pixel, side * side * pixel],
        lower: [-1, -1],
        upper: [-1, -1],
        channels: DEPTH_CHANNELS as u32,
        pixels: GROUP_PIXELS as u32,
        element_strides: [1, stride, stride, 1],
        swizzle: Swizzle::Bytes128,
    }))
}

/// What leaves a block, or comes as a residual: 64 pixels in the order of memory.
fn stage(driver: &dyn Driver, (address, batch, side, channels): Images) -> Result<TensorMap> {
    let (pixels, pixel) = ((batch * side * side) as u64, channels as u64 * BF16);
    driver.tensor_map(&MapSpec::Tiled(TiledMap {
        address,
        element_bytes: BF16 as u32,
        dims: vec![channels as u64, pixels, 1, 1],
        strides: vec![pixel, pixels * pixel, pixels * pixel],
        box_dims: vec![GROUP_CHANNELS as u32, STAGE_PIXELS as u32, 1, 1],
        element_strides: vec![1; 4],
        swizzle: Swizzle::Bytes128,
    }))
}

/// `output = relu(convolution + bias + residual)`, and the mask of what passed.
#[derive(Clone, Copy)]
pub struct Relu {
    pub bias: Address,
    pub residual: Option<Address>,
    pub mask: Address,
}

/// Forward convolution; `planned` is that of [`plan`].
pub fn forward(
    driver: &dyn Driver,
    planned: &Planned,
    Product { shape, from, weights, to }: Product,
    Relu { bias, residual, mask }: Relu,
) -> Result<()> {
    let like_output = |address| stage(driver, (address, shape.batch, shape.out_side(), shape.out_channels));
    let pixels = taps(driver, (from, shape.batch, shape.in_side, shape.in_channels), shape.stride as u32)?;
    let params = ForwardParams {
        operands: Operands {
            pixels: [pixels; 4],
            weights: maps::weights(driver, weights, shape.in_channels, shape.taps(), shape.out_channels)?,
        },
        output: like_output(to)?,
        residual: residual.map_or(Ok(TensorMap::zeroed()), like_output)?,
        bias,
        mask,
        has_residual: residual.is_some().into(),
        log2_out_channels: shape.out_channels.ilog2(),
        plan: launched(driver, planned, 1),
        ..Zeroable::zeroed()
    };
    let stride = if shape.stride == 2 { "stride2_" } else { "" };
    let kernel = Kernel::named(&format!("conv_forward_relu_wgmma_im2col_{stride}{}", planned.block.name()))?;
    let cost = forward_cost(shape, &ForwardEpilogue::Relu { bias, residual, mask: Mask::plain(mask) });
    launch(driver, &kernel, [planned.grid_blocks(), 1, 1], &params, cost)
}

/// Input gradient of a convolution with stride 1; `planned` is that of [`plan`].
pub fn input_gradient(
    driver: &dyn Driver,
    planned: &Planned,
    Product { shape, from, weights, to }: Product,
    epilogue: &InputGradientEpilogue,
) -> Result<()> {
    let like_input = |address| stage(driver, (address, shape.batch, shape.in_side, shape.in_channels));
    let pixels = taps(driver, (from, shape.batch, shape.out_side(), shape.out_channels), 1)?;
    let mut params = GradientParams {
        operands: Operands {
            pixels: [pixels; 4],
            weights: maps::weights(driver, weights, shape.in_channels, shape.taps(), shape.out_channels)?,
        },
        residual: epilogue.residual.map_or(Ok(TensorMap::zeroed()), like_input)?,
        residual_phase: if epilogue.residual.is_some() { 0 } else { 4 },
        mask: epilogue.mask.map_or(Address::NULL, |mask| mask.address),
        log2_in_channels: shape.in_channels.ilog2(),
        plan: launched(driver, planned, 1),
        ..Zeroable::zeroed()
    };
    params.output[0] = like_input(to)?;
    let kernel = Kernel::named(&format!("conv_input_gradient_wgmma_im2col_{}", planned.block.name()))?;
    launch(driver, &kernel, [planned.grid_blocks(), 1, 1], &params, input_gradient_cost(shape, epilogue))
}
