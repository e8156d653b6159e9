//! Tensor maps of the convolutions: how TMA sees pixels, weights and outputs.

use super::plan::{DEPTH_CHANNELS, GROUP_CHANNELS, Planned};
use crate::cuda::driver::{Address, Driver, MapSpec, Swizzle, TensorMap, TiledMap};
use crate::engine::Result;

const BF16: u64 = 2;
const BF16_BYTES: u32 = BF16 as u32;
/// Pixels that leave a block at a time.
pub const STAGE_PIXELS: usize = 64;

/// A batch of square images, NHWC in bf16, or every second row and column of them.
#[derive(Clone, Copy, Debug)]
pub struct Images {
    pub address: Address,
    pub batch: usize,
    pub side: usize,
    pub channels: usize,
}

impl Images {
    /// The map of the pixels (2 i + row, 2 j + column) with `every` = 2, of all with 1; boxes of 64 channels of `box_planes` rows
    /// by `images` images by a whole row. Planes are outermost: see `kernels/conv/wgmma/plan.cuh`.
    fn planes(
        &self,
        driver: &dyn Driver,
        [row, column]: [usize; 2],
        every: usize,
        images: usize,
        box_planes: usize,
    ) -> Result<TensorMap> {
        let pixel = self.channels as u64 * BF16;
        let line = self.side as u64 * pixel;
        let side = (self.side / every) as u64;
        let spread = every as u64;
        driver.tensor_map(&MapSpec::Tiled(TiledMap {
            address: self.address.offset::<u16>((row * self.side + column) * self.channels),
            element_bytes: BF16_BYTES,
            dims: vec![self.channels as u64, side, self.batch as u64, side],
            strides: vec![spread * pixel, self.side as u64 * line, spread * line],
            box_dims: vec![DEPTH_CHANNELS as u32, side as u32, images as u32, box_planes as u32],
            element_strides: vec![1; 4],
            swizzle: Swizzle::Bytes128,
        }))
    }

    /// What a pixel slot loads: one map, or with `every` = 2 one for each parity of row and column.
    pub fn slots(&self, driver: &dyn Driver, every: usize, planned: &Planned) -> Result<[TensorMap; 4]> {
        let mut maps = [bytemuck::Zeroable::zeroed(); 4];
        for (index, map) in maps.iter_mut().enumerate().take(every * every) {
            *map = self.planes(driver, [index / 2, index % 2], every, planned.images, planned.planes)?;
        }
        Ok(maps)
    }

    /// The 256 pixels of a group, without neighbours.
    pub fn group(&self, driver: &dyn Driver, planned: &Planned) -> Result<TensorMap> {
        self.planes(driver, [0, 0], 1, planned.images, planned.rows)
    }

    /// What leaves a block, or comes as a residual: 64 pixels of the grid at a time.
    pub fn stage(
        &self,
        driver: &dyn Driver,
        parity: [usize; 2],
        every: usize,
        planned: &Planned,
    ) -> Result<TensorMap> {
        let row = self.side / every * planned.images;
        self.planes(driver, parity, every, planned.images, STAGE_PIXELS / row)
    }
}

/// Weights as they lie, output channel by tap by input channel, in boxes of 64 by one tap by 64.
pub fn weights(
    driver: &dyn Driver,
    address: Address,
    in_channels: usize,
    taps: usize,
    out_channels: usize,
) -> Result<TensorMap> {
    let tap = in_channels as u64 * BF16;
    driver.tensor_map(&MapSpec::Tiled(TiledMap {
        address,
        element_bytes: BF16_BYTES,
        dims: vec![in_channels as u64, taps as u64, out_channels as u64],
        strides: vec![tap, taps as u64 * tap],
        box_dims: vec![DEPTH_CHANNELS as u32, 1, GROUP_CHANNELS as u32],
        element_strides: vec![1; 3],
        swizzle: Swizzle::Bytes128,
    }))
}
