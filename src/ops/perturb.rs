//! The random start of an attack. The noise of an image depends on its sample alone, not on where it lies in the batch.

use std::f32::consts::TAU;

use rayon::prelude::*;

use super::Op;
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::{Cost, F32, Philox, U32, run, run_flat};
use crate::engine::{Operands, Result, Tensor};
use crate::model::layers::IMAGE_LEN;
use crate::philox::{Key, symmetric, unit};

/// The random start of an attack; element `e` of a sample uses word `e % 4` of block `e / 4`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Noise {
    /// Uniform on [-radius, radius); the sum with the image is clipped to [0, 1].
    Uniform { radius: f32 },
    /// Normal with this standard deviation: Box-Muller on the word pairs (0, 1) and (2, 3) of a block,
    /// `sqrt(-2 ln(1 - u0)) * (cos, sin)(2 pi u1)`. The sum is not clipped: TRADES and MART take their first
    /// gradient there, and the first [`SignStep`](crate::engine::SignStep) returns to [0, 1].
    Normal { deviation: f32 },
    /// `radius * t / |t|_inf` for t uniform on [-1, 1), as APGD starts: one pixel of each image at least is on the surface of
    /// the ball. The sum is clipped to [0, 1].
    Surface { radius: f32 },
}

/// `perturbed = images + noise`, the noise of each image keyed by its sample; clipped as [`Noise`] says. `perturbed`
/// may be `images`.
#[derive(Clone, Copy, Debug)]
pub struct Perturb<'a> {
    pub noise: Noise,
    pub key: Key,
    pub samples: &'a Tensor<u32>,
    /// `samples x 32 x 32 x 3`.
    pub images: &'a Tensor<f32>,
    pub perturbed: &'a Tensor<f32>,
}

impl Op for Perturb<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let batch = self.samples.len();
        operands.reads(self.samples, batch)?;
        operands.maps(self.images, self.perturbed, batch * IMAGE_LEN)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (samples, images) = (cpu.input(self.samples)?, cpu.input(self.images)?);
        let mut perturbed = cpu.output(self.perturbed)?;
        let (noise, key) = (self.noise, self.key);
        let images = images.par_chunks_exact(IMAGE_LEN).zip(&samples[..]);
        perturbed.par_chunks_exact_mut(IMAGE_LEN).zip(images).for_each(|(perturbed, (image, &sample))| {
            let blocks = 0..IMAGE_LEN as u32 / 4;
            let mut drawn: Vec<f32> =
                blocks.flat_map(|block| draw(noise, key.block(sample, block))).collect();
            if let Noise::Surface { radius } = noise {
                let largest = drawn.iter().fold(0.0f32, |largest, t| largest.max(t.abs()));
                drawn.iter_mut().for_each(|t| *t = radius * (*t / largest));
            }
            for ((out, x), drawn) in perturbed.iter_mut().zip(image).zip(drawn) {
                *out = match noise {
                    Noise::Uniform { .. } | Noise::Surface { .. } => (x + drawn).clamp(0.0, 1.0),
                    Noise::Normal { .. } => x + drawn,
                };
            }
        });
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let (samples, images) = (cuda.address(self.samples)?, cuda.address(self.images)?);
        let (batch, perturbed) = (self.samples.len(), cuda.address(self.perturbed)?);
        perturb(cuda.driver(), self.noise, self.key, batch, samples, images, perturbed)
    }
}

/// Four numbers from the four words of a block; of [`Noise::Surface`] t.
fn draw(noise: Noise, words: [u32; 4]) -> [f32; 4] {
    match noise {
        Noise::Uniform { radius } => words.map(|word| symmetric(word, radius)),
        Noise::Surface { .. } => words.map(|word| symmetric(word, 1.0)),
        Noise::Normal { deviation } => {
            let pair = |u0: u32, u1: u32| {
                let radius = deviation * (-2.0 * (1.0 - unit(u0)).ln()).sqrt();
                let (sin, cos) = (TAU * unit(u1)).sin_cos();
                [radius * cos, radius * sin]
            };
            let ([a, b], [c, d]) = (pair(words[0], words[1]), pair(words[2], words[3]));
            [a, b, c, d]
        }
    }
}

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
    // Scale and shift, or Box-Muller, or scale and quotient, and the sum with the image.
    let (name, size, operations) = match noise {
        Noise::Uniform { radius } => ("perturb_uniform", radius, 3),
        Noise::Normal { deviation } => ("perturb_normal", deviation, 6),
        Noise::Surface { radius } => ("perturb_surface", radius, 5),
    };
    let elements = batch * IMAGE_LEN;
    let cost = Cost::new(operations * elements, 2 * elements * F32 + batch * U32);
    let blocks = (batch * IMAGE_LEN / 4) as u32;
    let params = PerturbParams { samples, images, perturbed, random: key.into(), blocks, size };
    match noise {
        Noise::Surface { .. } => run(driver, name, [batch as u32, 1, 1], &params, cost),
        _ => run_flat(driver, name, blocks, &params, cost),
    }
}
