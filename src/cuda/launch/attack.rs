//! The stem's packed input: `kernels/attack/pack.cu`.

use super::{BF16, Cost, F32, run_flat};
use crate::cuda::driver::{Address, Driver};
use crate::cuda::layout::STEM_CHANNELS;
use crate::engine::Result;
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct PackParams {
    images: Address,
    packed: Address,
    pixels: u32,
    padding: u32,
}

/// `batch` f32 images to bf16 hi and lo parts, eight channels a pixel.
pub fn image_pack(driver: &dyn Driver, batch: usize, images: Address, packed: Address) -> Result<()> {
    let pixels = (batch * IMAGE_SIDE * IMAGE_SIDE) as u32;
    let params = PackParams { images, packed, pixels, padding: 0 };
    let image = batch * IMAGE_LEN;
    let cost = Cost::new(image, image * F32 + pixels as usize * STEM_CHANNELS * BF16);
    run_flat(driver, "image_pack", pixels, &params, cost)
}
