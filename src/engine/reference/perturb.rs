//! The two moves of an attack: the random start and the sign step.
//!
//! The sign step and the uniform start end in [0, 1]. The noise of an image depends on its sample alone, not on where it
//! lies in the batch.

use std::f32::consts::TAU;

use rayon::prelude::*;

use crate::engine::{Noise, SignStep};
use crate::model::layers::IMAGE_LEN;
use crate::philox::{Key, symmetric, unit};

/// `perturbed = images + noise`, clipped to [0, 1] where the noise is uniform.
pub fn random_start(noise: Noise, key: Key, samples: &[u32], images: &[f32], perturbed: &mut [f32]) {
    let images = images.par_chunks_exact(IMAGE_LEN).zip(samples);
    perturbed.par_chunks_exact_mut(IMAGE_LEN).zip(images).for_each(|(perturbed, (image, &sample))| {
        let blocks = perturbed.chunks_exact_mut(4).zip(image.chunks_exact(4));
        for (block, (perturbed, image)) in blocks.enumerate() {
            let drawn = draw(noise, key.block(sample, block as u32));
            for ((out, x), drawn) in perturbed.iter_mut().zip(image).zip(drawn) {
                *out = match noise {
                    Noise::Uniform { .. } => (x + drawn).clamp(0.0, 1.0),
                    Noise::Normal { .. } => x + drawn,
                };
            }
        }
    });
}

/// Four numbers from the four words of a block.
fn draw(noise: Noise, words: [u32; 4]) -> [f32; 4] {
    match noise {
        Noise::Uniform { radius } => words.map(|word| symmetric(word, radius)),
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

/// `x' <- clip01(proj(x' + step_size * sign(gradient)))`, with sign(0) = 0.
pub fn sign_step(step: &SignStep, images: &[f32], gradient: &[f32], perturbed: &mut [f32]) {
    let SignStep { step_size, epsilon } = *step;
    let inputs = images.par_chunks(IMAGE_LEN).zip(gradient.par_chunks(IMAGE_LEN));
    perturbed.par_chunks_mut(IMAGE_LEN).zip(inputs).for_each(|(perturbed, (images, gradient))| {
        for ((out, x), g) in perturbed.iter_mut().zip(images).zip(gradient) {
            let sign = f32::from(*g > 0.0) - f32::from(*g < 0.0);
            let moved = *out + step_size * sign;
            *out = moved.max(x - epsilon).min(x + epsilon).clamp(0.0, 1.0);
        }
    });
}
