//! The head: average pool over all pixels and the linear layer, forward and backward.

use rayon::prelude::*;

use super::numbers::Format;

/// Means over the pixels of each channel: `batch x pixels x channels` to `batch x channels`.
pub fn average_pool(x: &[f32], features: &mut [f32], channels: usize) {
    let pixels = x.len() / features.len();
    features.par_chunks_exact_mut(channels).zip(x.par_chunks_exact(pixels * channels)).for_each(
        |(features, x)| {
            features.fill(0.0);
            for pixel in x.chunks_exact(channels) {
                features.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
            }
            features.iter_mut().for_each(|sum| *sum *= 1.0 / pixels as f32);
        },
    );
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

/// Gradient before the last ReLU: `dz = [activation > 0] * (dlogits * weight) / pixels`.
pub fn input_gradient(
    format: Format,
    dlogits: &[f32],
    weight: &[f32],
    classes: usize,
    activations: &[f32],
    dz: &mut [f32],
) {
    let channels = weight.len() / classes;
    let image = dz.len() / (dlogits.len() / classes);
    let pixels = image / channels;
    let inputs = dlogits.par_chunks_exact(classes).zip(activations.par_chunks_exact(image));
    dz.par_chunks_exact_mut(image).zip(inputs).for_each(|(dz, (dlogits, activations))| {
        let (first, rest) = dz.split_at_mut(channels);
        first.fill(0.0);
        for (factor, row) in dlogits.iter().zip(weight.chunks_exact(channels)) {
            first.iter_mut().zip(row).for_each(|(sum, w)| *sum += factor * w);
        }
        first.iter_mut().for_each(|sum| *sum *= 1.0 / pixels as f32);
        for pixel in rest.chunks_exact_mut(channels) {
            pixel.copy_from_slice(first);
        }
        mask(format, dz, activations);
    });
}

/// Zeroes a gradient where the ReLU did not pass.
pub fn mask(format: Format, gradient: &mut [f32], activations: &[f32]) {
    for (g, a) in gradient.iter_mut().zip(activations) {
        *g = if *a > 0.0 { format.round(*g) } else { 0.0 };
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
