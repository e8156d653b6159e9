//! Launch of the weight gradient on wgmma: `kernels/conv/wgmma/weight_gradient.cu`.

use bytemuck::Zeroable;

use super::maps::Images;
use super::params::WeightGradientParams;
use super::plan::{BLOCKS, DEPTH_CHANNELS, GROUP_CHANNELS, Planned};
use super::{launched, weight_plan};
use crate::cuda::driver::{Address, Driver, Kernel, launch};
use crate::cuda::launch::conv::{ConvShape, weight_gradient_cost};
use crate::engine::Result;

/// How the reduction over pixels is divided.
pub struct WeightParts {
    /// Groups of 256 pixels, and how many of them one block adds up.
    groups: usize,
    pub groups_a_part: usize,
    /// Blocks of the grid along columns and along output channels.
    pub blocks_a_part: [usize; 2],
    /// Groups of 64 output channels of a block.
    pub channel_groups: usize,
    /// Warpgroups of a block that make a part of their own.
    shares: usize,
}

impl WeightParts {
    /// `planned` is that of [`super::weight_product`].
    pub fn new(shape: &ConvShape, planned: &Planned) -> Self {
        let groups = planned.groups;
        // Two warpgroups a block: 64 output channels each, or half of the pixels each.
        let channel_groups = if shape.out_channels.is_multiple_of(2 * GROUP_CHANNELS) { 2 } else { 1 };
        let slots = planned.plan.phases[0].slots as usize;
        let across = slots * shape.in_channels / DEPTH_CHANNELS;
        let down = shape.out_channels / (GROUP_CHANNELS * channel_groups);
        let parts = (planned.most_blocks / (across * down)).clamp(1, groups);
        Self {
            groups,
            groups_a_part: groups.div_ceil(parts),
            blocks_a_part: [across, down],
            channel_groups,
            shares: 2 / channel_groups,
        }
    }

    /// Parts that are blocks of their own.
    pub fn blocks(&self) -> usize {
        self.groups.div_ceil(self.groups_a_part)
    }

    /// Parts in the workspace.
    fn parts(&self) -> usize {
        self.blocks() * self.shares
    }
}

/// Parts that the workspace has room for at most; `None` where these kernels do not serve the shape.
pub fn most_parts(shape: &ConvShape) -> Option<usize> {
    let planned = weight_plan(shape)?;
    let WeightParts { groups, blocks_a_part: [across, down], shares, .. } = WeightParts::new(shape, &planned);
    Some((BLOCKS / (across * down)).clamp(1, groups) * shares)
}

/// Writes the parts to `workspace`, and says how many they are; `planned` is that of [`super::weight_product`].
pub fn weight_gradient_parts(
    driver: &dyn Driver,
    planned: &Planned,
    shape: &ConvShape,
    input: Address,
    output_gradient: Address,
    workspace: Address,
) -> Result<usize> {
    let split = WeightParts::new(shape, planned);
    let batch = shape.batch;
    let inputs = Images { address: input, batch, side: shape.in_side, channels: shape.in_channels };
    let gradients =
        Images { address: output_gradient, batch, side: shape.out_side(), channels: shape.out_channels };
    let params = WeightGradientParams {
        pixels: inputs.slots(driver, shape.stride, planned)?,
        output_gradient: gradients.group(driver, planned)?,
        workspace,
        columns: (shape.taps() * shape.in_channels) as u32,
        log2_in_channels: shape.in_channels.ilog2(),
        log2_out_channels: shape.out_channels.ilog2(),
        groups: split.groups as u32,
        groups_a_part: split.groups_a_part as u32,
        plan: launched(driver, planned, shape.stride * shape.stride),
        ..Zeroable::zeroed()
    };
    let name = format!("conv_weight_gradient_wgmma_{}x192", split.channel_groups * GROUP_CHANNELS);
    let [across, down] = split.blocks_a_part.map(|blocks| blocks as u32);
    let grid = [across, down, split.blocks() as u32];
    let cost = weight_gradient_cost(shape, split.parts());
    launch(driver, &Kernel::named(&name)?, grid, &params, cost)?;
    Ok(split.parts())
}
