//! The head: average pool over all pixels and the linear layer, forward and backward.

use rayon::prelude::*;

use super::maps::Maps;
use super::numbers::Numbers;
use super::vectorised::vectorised;

/// Means over the pixels of each channel: [`Maps`] to `batch x channels`.
pub fn average_pool(numbers: Numbers, maps: Maps, x: &[f32], features: &mut [f32]) {
    let images = x.par_chunks_exact(maps.image());
    features.par_chunks_exact_mut(maps.channels).zip(images).for_each(|(features, x)| {
        pool(numbers, maps, x, features);
    });
}

vectorised! {
    fn pool<E>(maps: Maps, x: &[f32], features: &mut [f32]) {
        features.fill(0.0);
        for y in 0..maps.side {
            for pixel in maps.line::<E>(x, y).chunks_exact(maps.channels) {
                features.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value.get());
            }
        }
        features.iter_mut().for_each(|sum| *sum *= 1.0 / (maps.side * maps.side) as f32);
    }
}

/// `logits = features * weight^T + bias`; `weight` is classes x channels.
pub fn linear(features: &[f32], weight: &[f32], bias: &[f32], logits: &mut [f32]) {
    let channels = weight.len() / bias.len();
    logits.par_chunks_exact_mut(bias.len()).zip(features.par_chunks_exact(channels)).for_each(
        |(logits, features)| {
            for ((logit, row), bias) in logits.iter_mut().zip(weight.chunks_exact(channels)).zip(bias) {
                *logit = dot(features, row) + bias;
            }
        },
    );
}

/// Sixteen running sums, added pairwise at the end: vectorises, and the order is fixed.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Gradient before the last ReLU: `dz = [activation > 0] * (dlogits * weight) / pixels`; activations and `dz` are [`Maps`].
pub fn input_gradient(
    numbers: Numbers,
    maps: Maps,
    dlogits: &[f32],
    weight: &[f32],
    activations: &[f32],
    dz: &mut [f32],
) {
    let classes = weight.len() / maps.channels;
    let inputs = dlogits.par_chunks_exact(classes).zip(activations.par_chunks_exact(maps.image()));
    dz.par_chunks_exact_mut(maps.image()).zip(inputs).for_each(|(dz, (dlogits, activations))| {
        let mut pixel = vec![0.0f32; maps.channels];
        for (factor, row) in dlogits.iter().zip(weight.chunks_exact(maps.channels)) {
            pixel.iter_mut().zip(row).for_each(|(sum, w)| *sum += factor * w);
        }
        pixel.iter_mut().for_each(|sum| *sum *= 1.0 / (maps.side * maps.side) as f32);
        spread(numbers, maps, &pixel, activations, dz);
    });
}

vectorised! {
    /// The same gradient in every pixel, where the ReLU passed.
    fn spread<E>(maps: Maps, pixel: &[f32], activations: &[f32], dz: &mut [f32]) {
        for y in 0..maps.side {
            let pixels = maps.line_mut::<E>(dz, y).chunks_exact_mut(maps.channels);
            for (dz, activations) in pixels.zip(maps.line::<E>(activations, y).chunks_exact(maps.channels)) {
                for ((dz, gradient), activation) in dz.iter_mut().zip(pixel).zip(activations) {
                    *dz = E::nearest(if activation.get() > 0.0 { *gradient } else { 0.0 });
                }
            }
        }
    }
}

/// Gradients of weight and bias, samples added in their order; sets, or adds where `accumulate`.
pub fn parameter_gradient(
    dlogits: &[f32],
    features: &[f32],
    weight: &mut [f32],
    bias: &mut [f32],
    accumulate: bool,
) {
    let classes = bias.len();
    let channels = weight.len() / classes;
    if !accumulate {
        weight.fill(0.0);
        bias.fill(0.0);
    }
    let rows = weight.par_chunks_exact_mut(channels).zip(bias.par_iter_mut());
    rows.enumerate().for_each(|(c, (row, bias))| {
        for (dlogits, features) in dlogits.chunks_exact(classes).zip(features.chunks_exact(channels)) {
            let factor = dlogits[c];
            *bias += factor;
            row.iter_mut().zip(features).for_each(|(sum, f)| *sum += factor * f);
        }
    });
}
