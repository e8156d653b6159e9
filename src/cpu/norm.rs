//! BatchNorm: folding into weights, batch statistics, normalisation with ReLU, and the backward pass.
//!
//! Sums over pixels are f32 within an image and f64 across images, images in their order. The variance is biased
//! for the normalisation and unbiased in the running statistics, as in PyTorch.

#![allow(clippy::needless_range_loop)] // indices stand for lanes

use rayon::prelude::*;

use super::eval::task_images;
use super::maps::Maps;
use super::numbers::Numbers;
use super::tiles::LANES;
use super::vectorised::{load, store, vectorised};
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

/// Two sums of each channel over images: `per_image(image index, sums)`, all first sums before the second ones.
fn two_sums(
    batch: usize,
    channels: usize,
    per_image: impl Fn(usize, &mut [f32]) + Sync,
) -> (Vec<f64>, Vec<f64>) {
    let mut partial = vec![0.0f32; batch * 2 * channels];
    partial.par_chunks_exact_mut(2 * channels).enumerate().for_each(|(n, sums)| per_image(n, sums));
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
    /// Statistics of `y`, maps of `batch` images; moves the running mean and variance.
    pub fn measure(
        numbers: Numbers,
        maps: Maps,
        y: &[f32],
        batch: usize,
        (weight, bias): (&[f32], &[f32]),
        running: (&mut [f32], &mut [f32]),
    ) -> Self {
        let (sums, squares) = two_sums(batch, maps.channels, |n, sums| {
            let y = &y[n * maps.image()..][..maps.image()];
            sums_of_image(numbers, maps, y, y, &vec![0.0; maps.channels], sums);
        });
        let count = (batch * maps.side * maps.side) as f64;
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

    /// `z = relu(norm(y) + residual)` of `batch` images, all of them maps.
    pub fn apply(
        &self,
        numbers: Numbers,
        maps: Maps,
        batch: usize,
        y: &[f32],
        residual: Residual,
        z: &mut [f32],
    ) {
        in_tasks(batch, maps, z, |first, z| {
            for (n, z) in z.chunks_exact_mut(maps.image()).enumerate() {
                let image = (first + n) * maps.image()..(first + n + 1) * maps.image();
                let y = &y[image.clone()];
                let residual = match residual {
                    Residual::Nothing => Residual::Nothing,
                    Residual::Activation(x) => Residual::Activation(&x[image]),
                    Residual::Normalised(norm, x) => Residual::Normalised(norm, &x[image]),
                };
                apply(numbers, self, maps, y, residual, z);
            }
        });
    }

    /// Gradients of weight and bias, and `dy` from `dz`, the gradient after the normalisation: maps of `batch` images.
    pub fn backward(
        &self,
        numbers: Numbers,
        maps: Maps,
        batch: usize,
        y: &[f32],
        dz: &[f32],
        dy: &mut [f32],
    ) -> (Vec<f32>, Vec<f32>) {
        let channels = maps.channels;
        let image = |of: usize| of * maps.image()..(of + 1) * maps.image();
        // Sums of dz and of dz * (y - mean): the second becomes the weight's gradient by one factor.
        let (sums, products) = two_sums(batch, channels, |n, sums| {
            let (y, dz) = (&y[image(n)], &dz[image(n)]);
            sums_of_image(numbers, maps, dz, y, &self.mean, sums);
        });
        let count = (batch * maps.side * maps.side) as f64;
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
        in_tasks(batch, maps, dy, |first, dy| {
            for (n, dy) in dy.chunks_exact_mut(maps.image()).enumerate() {
                let (y, dz) = (&y[image(first + n)], &dz[image(first + n)]);
                gradient(numbers, self, maps, y, dz, &slope, &offset, dy);
            }
        });
        (weight, bias)
    }
}

vectorised! {
    fn apply<E>(norm: &BatchNorm, maps: Maps, y: &[f32], residual: Residual, z: &mut [f32]) {
        for line in 0..maps.side {
            let (y, z): (&[E], &mut [E]) = (maps.line(y, line), maps.line_mut(z, line));
            let residual_line: Option<&[E]> = match residual {
                Residual::Nothing => None,
                Residual::Activation(x) | Residual::Normalised(_, x) => Some(maps.line(x, line)),
            };
            for channel in (0..maps.channels).step_by(LANES) {
                let of = |values: &[f32]| load(values, channel);
                let (scale, shift) = (of(&norm.scale), of(&norm.shift));
                let (second_scale, second_shift) = match residual {
                    Residual::Normalised(second, _) => (of(&second.scale), of(&second.shift)),
                    _ => ([1.0; LANES], [0.0; LANES]),
                };
                for at in (channel..z.len()).step_by(maps.channels) {
                    let mut values = load(y, at);
                    for i in 0..LANES {
                        values[i] = scale[i] * values[i] + shift[i];
                    }
                    if let Some(x) = residual_line {
                        let x = load(x, at);
                        for i in 0..LANES {
                            values[i] += second_scale[i] * x[i] + second_shift[i];
                        }
                    }
                    for i in 0..LANES {
                        values[i] = relu(values[i]);
                    }
                    store(z, at, &values);
                }
            }
        }
    }
}

vectorised! {
    /// Sums of `x` and of `x * (y - mean)` over the pixels of an image, pixels in their order: all first sums before the second ones.
    fn sums_of_image<E>(maps: Maps, x: &[f32], y: &[f32], mean: &[f32], sums: &mut [f32]) {
        let (first, second) = sums.split_at_mut(maps.channels);
        for channel in (0..maps.channels).step_by(LANES) {
            let mean = load(mean, channel);
            let (mut a, mut b) = ([0.0f32; LANES], [0.0f32; LANES]);
            for line in 0..maps.side {
                let (x, y): (&[E], &[E]) = (maps.line(x, line), maps.line(y, line));
                for at in (channel..x.len()).step_by(maps.channels) {
                    let (x, y) = (load(x, at), load(y, at));
                    for i in 0..LANES {
                        a[i] += x[i];
                        b[i] += x[i] * (y[i] - mean[i]);
                    }
                }
            }
            store(first, channel, &a);
            store(second, channel, &b);
        }
    }
}

vectorised! {
    fn gradient<E>(
        norm: &BatchNorm,
        maps: Maps,
        y: &[f32],
        dz: &[f32],
        slope: &[f32],
        offset: &[f32],
        dy: &mut [f32],
    ) {
        for line in 0..maps.side {
            let (y, dz): (&[E], &[E]) = (maps.line(y, line), maps.line(dz, line));
            let dy: &mut [E] = maps.line_mut(dy, line);
            for channel in (0..maps.channels).step_by(LANES) {
                let of = |values: &[f32]| load(values, channel);
                let (scale, mean, slope, offset) = (of(&norm.scale), of(&norm.mean), of(slope), of(offset));
                for at in (channel..dy.len()).step_by(maps.channels) {
                    let (y, dz) = (load(y, at), load(dz, at));
                    let mut values = [0.0f32; LANES];
                    for i in 0..LANES {
                        values[i] = scale[i] * dz[i] + (slope[i] * (y[i] - mean[i]) + offset[i]);
                    }
                    store(dy, at, &values);
                }
            }
        }
    }
}

/// Tasks of a few images: `task(first image, their part of out)`.
pub fn in_tasks(batch: usize, maps: Maps, out: &mut [f32], task: impl Fn(usize, &mut [f32]) + Sync) {
    let images = task_images(batch);
    let parts = out[..batch * maps.image()].par_chunks_mut(images * maps.image());
    parts.enumerate().for_each(|(at, part)| task(at * images, part));
}

/// What is added before the ReLU.
#[derive(Clone, Copy)]
pub enum Residual<'a> {
    Nothing,
    Activation(&'a [f32]),
    /// Normalised on the way by its own BatchNorm.
    Normalised(&'a BatchNorm, &'a [f32]),
}

/// Keeps NaN, unlike `f32::max`.
#[inline(always)]
pub fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}
