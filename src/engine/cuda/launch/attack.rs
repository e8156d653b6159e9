//! The random start of an attack and the stem's packed input: `kernels/attack/`. Checked by `tests/kernel_attack.rs`.

use super::{BF16, Cost, F32, Philox, U32, run_flat};
use crate::engine::cuda::driver::{Address, Driver};
use crate::engine::cuda::layout::STEM_CHANNELS;
use crate::engine::{Noise, Result};
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use crate::philox::Key;

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct PerturbParams {
    samples: Address,
    images: Address,
    perturbed: Address,
    random: Philox,
    blocks: u32,
    size: f32,
}

/// `perturbed = images + noise` for `batch` images (f32), the noise keyed by `samples` (u32); clipped as [`Noise`] says.
/// `perturbed` may be `images`.
pub fn perturb(
    driver: &dyn Driver,
    noise: Noise,
    key: Key,
    batch: usize,
    samples: Address,
    images: Address,
    perturbed: Address,
) -> Result<()> {
    // Scale and shift, or Box-Muller, and the sum with the image.
    let (name, size, operations) = match noise {
        Noise::Uniform { radius } => ("perturb_uniform", radius, 3),
        Noise::Normal { deviation } => ("perturb_normal", deviation, 6),
    };
    let elements = batch * IMAGE_LEN;
    let cost = Cost::new(operations * elements, 2 * elements * F32 + batch * U32);
    let blocks = (batch * IMAGE_LEN / 4) as u32;
    let params = PerturbParams { samples, images, perturbed, random: key.into(), blocks, size };
    run_flat(driver, name, blocks, &params, cost)
}

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
