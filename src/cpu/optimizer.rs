//! SGD with momentum and weight decay over the flat arena, and the moving average of the weights.
//!
//! PyTorch's form with the velocity starting at zero: `g += decay * w; v = momentum * v + g; w -= rate * v`. The
//! first step that asks for a moving average copies the weights after that step, as PyTorch's AveragedModel does.

use rayon::prelude::*;

use crate::engine::Sgd;

/// Elements of one task.
const CHUNK: usize = 1 << 14;

pub fn step(
    sgd: &Sgd,
    live: &mut [f32],
    velocity: &mut [f32],
    gradient: &[f32],
    average: &mut Option<Vec<f32>>,
) {
    let Sgd { learning_rate, momentum, weight_decay, average_decay } = *sgd;
    live[..velocity.len()]
        .par_chunks_mut(CHUNK)
        .zip(velocity.par_chunks_mut(CHUNK))
        .zip(gradient.par_chunks(CHUNK))
        .for_each(|((weights, velocity), gradient)| {
            for ((w, v), g) in weights.iter_mut().zip(velocity).zip(gradient) {
                *v = momentum * *v + (g + weight_decay * *w);
                *w -= learning_rate * *v;
            }
        });
    let Some(decay) = average_decay else { return };
    match average {
        None => *average = Some(live.to_vec()),
        Some(average) => blend(decay, average, live),
    }
}

/// `average <- decay * average + (1 - decay) * live`.
fn blend(decay: f32, average: &mut [f32], live: &[f32]) {
    average.par_chunks_mut(CHUNK).zip(live.par_chunks(CHUNK)).for_each(|(average, live)| {
        for (average, live) in average.iter_mut().zip(live) {
            *average = decay * *average + (1.0 - decay) * live;
        }
    });
}
