//! BatchNorm: folding into weights, batch statistics, normalisation with ReLU, and the backward pass.
//!
//! Sums over pixels are f32 within an image and f64 across images, images in their order. The variance is biased
//! for the normalisation and unbiased in the running statistics, as in PyTorch.

use rayon::prelude::*;

use super::memory::Aligned;
use super::numbers::Format;
use crate::model::layers::{BN_EPSILON, BN_MOMENTUM};

/// Factor and offset of each channel: BatchNorm with fixed statistics is `scale * y + shift`.
pub fn fold(weight: &[f32], bias: &[f32], mean: &[f32], variance: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let scale: Vec<f32> =
        weight.iter().zip(variance).map(|(w, variance)| w / (variance + BN_EPSILON).sqrt()).collect();
    let shift = bias.iter().zip(mean).zip(&scale).map(|((b, mean), scale)| b - mean * scale).collect();
    (scale, shift)
}

/// Batch statistics of one BatchNorm, and what follows from them.
#[derive(Clone, Default)]
pub struct BatchNorm {
    mean: Vec<f32>,
    /// `1 / sqrt(biased variance + epsilon)`.
    inverse: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

/// Sixteen channels of per-image sums, pixels in their order.
#[inline(always)]
fn sums_of_block<const N: usize>(
    pixels: usize,
    channels: usize,
    at: usize,
    mut term: impl FnMut(usize) -> [[f32; 16]; N],
) -> [[f32; 16]; N] {
    let mut sums = [[0.0f32; 16]; N];
    for p in 0..pixels {
        for (sum, value) in sums.iter_mut().zip(term(p * channels + at)) {
            sum.iter_mut().zip(value).for_each(|(sum, value)| *sum += value);
        }
    }
    sums
}

#[inline(always)]
fn sixteen(values: &[f32], at: usize) -> [f32; 16] {
    values[at..at + 16].try_into().expect("sixteen values")
}

/// Adds two sums of each channel over images: `per_image(image index, channel) -> sums of sixteen channels`.
fn two_sums(
    batch: usize,
    channels: usize,
    per_image: impl Fn(usize, usize) -> [[f32; 16]; 2] + Sync,
) -> (Vec<f64>, Vec<f64>) {
    let mut partial = vec![0.0f32; batch * 2 * channels];
    partial.par_chunks_exact_mut(2 * channels).enumerate().for_each(|(n, partial)| {
        let (first, second) = partial.split_at_mut(channels);
        for at in (0..channels).step_by(16) {
            let [a, b] = per_image(n, at);
            first[at..at + 16].copy_from_slice(&a);
            second[at..at + 16].copy_from_slice(&b);
        }
    });
    let total = |offset: usize| {
        let mut sums = vec![0.0f64; channels];
        for partial in partial.chunks_exact(2 * channels) {
            sums.iter_mut().zip(&partial[offset..]).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        sums
    };
    (total(0), total(channels))
}

impl BatchNorm {
    /// Statistics of `y` (batch x pixels x channels); moves the running mean and variance.
    pub fn measure(
        y: &[f32],
        batch: usize,
        weight: &[f32],
        bias: &[f32],
        running: (&mut [f32], &mut [f32]),
    ) -> Self {
        let channels = weight.len();
        let image = y.len() / batch;
        let pixels = image / channels;
        let (sums, squares) = two_sums(batch, channels, |n, at| {
            let y = &y[n * image..][..image];
            sums_of_block(pixels, channels, at, |p| {
                let y = sixteen(y, p);
                [y, y.map(|y| y * y)]
            })
        });
        let count = (batch * pixels) as f64;
        let mut norm = Self::default();
        for (c, (sum, square)) in sums.iter().zip(squares).enumerate() {
            let mean = sum / count;
            let variance = (square / count - mean * mean).max(0.0);
            // One value a channel has no unbiased variance; PyTorch refuses it, here the biased one (zero) stands in.
            let unbiased = variance * count / (count - 1.0).max(1.0);
            let move_to = |slot: &mut f32, value: f64| {
                *slot = (1.0 - BN_MOMENTUM) * *slot + BN_MOMENTUM * value as f32;
            };
            move_to(&mut running.0[c], mean);
            move_to(&mut running.1[c], unbiased);
            let inverse = (1.0 / (variance + f64::from(BN_EPSILON)).sqrt()) as f32;
            let scale = weight[c] * inverse;
            norm.mean.push(mean as f32);
            norm.inverse.push(inverse);
            norm.scale.push(scale);
            norm.shift.push(bias[c] - mean as f32 * scale);
        }
        norm
    }

    /// `z = relu(norm(y) + added)`, as numbers of the format.
    pub fn apply(&self, format: Format, y: &[f32], added: Added, z: &mut [f32], batch: usize) {
        let image = y.len() / batch;
        let channels = self.scale.len();
        z.par_chunks_exact_mut(image).zip(y.par_chunks_exact(image)).enumerate().for_each(|(n, (z, y))| {
            let range = n * image..(n + 1) * image;
            let lines = z.chunks_exact_mut(channels).zip(y.chunks_exact(channels));
            match added {
                Added::Nothing => {
                    for (z, y) in lines {
                        for (((z, y), scale), shift) in z.iter_mut().zip(y).zip(&self.scale).zip(&self.shift)
                        {
                            *z = format.round(relu(scale * y + shift));
                        }
                    }
                }
                Added::Activation(x) => {
                    for ((z, y), x) in lines.zip(x[range].chunks_exact(channels)) {
                        let affine = self.scale.iter().zip(&self.shift);
                        for (((z, y), x), (scale, shift)) in z.iter_mut().zip(y).zip(x).zip(affine) {
                            *z = format.round(relu(scale * y + shift + x));
                        }
                    }
                }
                Added::Normalised(norm, x) => {
                    for ((z, y), x) in lines.zip(x[range].chunks_exact(channels)) {
                        let affine = self.scale.iter().zip(&self.shift);
                        let second = norm.scale.iter().zip(&norm.shift);
                        for ((((z, y), x), (a, b)), (c, d)) in
                            z.iter_mut().zip(y).zip(x).zip(affine).zip(second)
                        {
                            *z = format.round(relu(a * y + b + (c * x + d)));
                        }
                    }
                }
            }
        });
    }

    /// Gradients of weight and bias, and `dy` from `dz`, the gradient after the normalisation, as numbers of the format.
    pub fn backward(
        &self,
        format: Format,
        y: &[f32],
        dz: &[f32],
        dy: &mut [f32],
        batch: usize,
    ) -> (Vec<f32>, Vec<f32>) {
        let channels = self.scale.len();
        let image = y.len() / batch;
        let pixels = image / channels;
        // Sums of dz and of dz * (y - mean): the second becomes the weight's gradient by one factor.
        let (sums, products) = two_sums(batch, channels, |n, at| {
            let (y, dz) = (&y[n * image..][..image], &dz[n * image..][..image]);
            let mean = sixteen(&self.mean, at);
            sums_of_block(pixels, channels, at, |p| {
                let (y, dz) = (sixteen(y, p), sixteen(dz, p));
                let mut product = [0.0; 16];
                for i in 0..16 {
                    product[i] = dz[i] * (y[i] - mean[i]);
                }
                [dz, product]
            })
        });
        let count = (batch * pixels) as f64;
        let bias: Vec<f32> = sums.iter().map(|sum| *sum as f32).collect();
        let weight: Vec<f32> = products
            .iter()
            .zip(&self.inverse)
            .map(|(sum, inverse)| (*sum * f64::from(*inverse)) as f32)
            .collect();
        // dy = scale * (dz - mean(dz) - (y - mean) * inverse^2 * mean(dz * (y - mean)))
        let slope: Vec<f32> = (0..channels)
            .map(|c| {
                let inverse = f64::from(self.inverse[c]);
                (-f64::from(self.scale[c]) * inverse * inverse * products[c] / count) as f32
            })
            .collect();
        let offset: Vec<f32> =
            (0..channels).map(|c| (-f64::from(self.scale[c]) * sums[c] / count) as f32).collect();
        let inputs = y.par_chunks_exact(image).zip(dz.par_chunks_exact(image));
        dy.par_chunks_exact_mut(image).zip(inputs).for_each(|(dy, (y, dz))| {
            let lines =
                dy.chunks_exact_mut(channels).zip(y.chunks_exact(channels)).zip(dz.chunks_exact(channels));
            for ((dy, y), dz) in lines {
                let affine = self.scale.iter().zip(&slope).zip(&self.mean).zip(&offset);
                for (((dy, y), dz), (((scale, slope), mean), offset)) in
                    dy.iter_mut().zip(y).zip(dz).zip(affine)
                {
                    *dy = format.round(scale * dz + (slope * (y - mean) + offset));
                }
            }
        });
        (weight, bias)
    }
}

/// What is added before the ReLU.
#[derive(Clone, Copy)]
pub enum Added<'a> {
    Nothing,
    Activation(&'a [f32]),
    /// Normalised on the way by its own BatchNorm.
    Normalised(&'a BatchNorm, &'a Aligned),
}

/// Keeps NaN, unlike `f32::max`.
#[inline(always)]
pub fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}
