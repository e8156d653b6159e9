//! The sign step of an attack.

use rayon::prelude::*;

use crate::engine::SignStep;
use crate::model::layers::IMAGE_LEN;

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
