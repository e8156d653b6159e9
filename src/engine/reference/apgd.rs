//! [`AdaptiveSteps`] on the CPU: the books of each image and its moves, image by image in parallel.
//!
//! Formulas are those of the trait, rounded operation by operation as the kernels do: the same bits from the same inputs.
//! Checked by `tests/apgd.rs`.

use rayon::prelude::*;

use super::engine::Reference;
use super::invalid;
use super::memory::expect_len;
use crate::engine::{
    AdaptivePhase, AdaptivePoint, AdaptiveState, AdaptiveStep, AdaptiveSteps, Result, Tensor,
};
use crate::model::layers::IMAGE_LEN;
use crate::philox::{Key, symmetric};

/// What is remembered of one image besides its points.
#[derive(Clone, Copy, Default)]
struct Books {
    step_size: f32,
    best_loss: f32,
    checked_loss: f32,
    last_loss: f32,
    increases: u32,
    halved: bool,
    broken: bool,
}

/// What the books say must happen to the points.
#[derive(Clone, Copy)]
struct Orders {
    /// The point is predicted wrong: keep it.
    wrong: bool,
    /// The point is the best so far.
    improved: bool,
    /// Go back to the best point.
    back: bool,
}

impl Books {
    fn first(epsilon: f32, loss: f32, wrong: bool) -> Self {
        Self {
            step_size: 2.0 * epsilon,
            best_loss: loss,
            checked_loss: loss,
            last_loss: 0.0,
            increases: 0,
            halved: true,
            broken: wrong,
        }
    }

    fn keep(&mut self, loss: f32, wrong: bool, window: Option<u32>) -> Orders {
        self.broken |= wrong;
        self.increases += u32::from(loss > self.last_loss);
        self.last_loss = loss;
        let improved = loss > self.best_loss;
        if improved {
            self.best_loss = loss;
        }
        let back = window.is_some_and(|window| self.check(window));
        Orders { wrong, improved, back }
    }

    /// The checkpoint's rule; whether to go back.
    fn check(&mut self, window: u32) -> bool {
        let oscillates = self.increases as f32 <= 0.75 * window as f32;
        let stuck = !self.halved && self.checked_loss >= self.best_loss;
        self.halved = oscillates || stuck;
        self.checked_loss = self.best_loss;
        self.increases = 0;
        if self.halved {
            self.step_size *= 0.5;
        }
        self.halved
    }
}

fn project(moved: f32, x: f32, epsilon: f32) -> f32 {
    moved.max(x - epsilon).min(x + epsilon).clamp(0.0, 1.0)
}

/// The points of one image, by name.
struct Points<'a> {
    x: &'a [f32],
    gradient: &'a [f32],
    point: &'a mut [f32],
    previous: &'a mut [f32],
    best: &'a mut [f32],
    best_gradient: &'a mut [f32],
    adversarial: &'a mut [f32],
}

impl Points<'_> {
    fn follow(&mut self, orders: Orders) {
        if orders.wrong {
            self.adversarial.copy_from_slice(self.point);
        }
        if orders.improved {
            self.best.copy_from_slice(self.point);
            self.best_gradient.copy_from_slice(self.gradient);
        }
        if orders.back {
            self.point.copy_from_slice(self.best);
        }
    }

    fn step(&mut self, epsilon: f32, size: f32, first: bool, back: bool) {
        let gradient = if back { &*self.best_gradient } else { self.gradient };
        let (pull, momentum) = if first { (1.0, 0.0) } else { (0.75, 0.25) };
        for (i, point) in self.point.iter_mut().enumerate() {
            let (x, g, here) = (self.x[i], gradient[i], *point);
            let previous = if first { here } else { self.previous[i] };
            let sign = f32::from(g > 0.0) - f32::from(g < 0.0);
            let target = project(here + size * sign, x, epsilon);
            let moved = here + (target - here) * pull + (here - previous) * momentum;
            self.previous[i] = here;
            *point = project(moved, x, epsilon);
        }
    }
}

impl AdaptiveSteps for Reference {
    fn adaptive_start(
        &mut self,
        epsilon: f32,
        key: Key,
        samples: &Tensor<u32>,
        images: &Tensor<f32>,
        perturbed: &Tensor<f32>,
    ) -> Result<()> {
        expect_len(images, samples.len() * IMAGE_LEN)?;
        expect_len(perturbed, images.len())?;
        let heap = self.heap();
        let (samples, images) = (heap.copy(samples)?, heap.copy(images)?);
        let mut perturbed = heap.view_mut(perturbed)?;
        let rows = images.par_chunks_exact(IMAGE_LEN).zip(&samples);
        perturbed.par_chunks_exact_mut(IMAGE_LEN).zip(rows).for_each(|(perturbed, (image, &sample))| {
            let blocks = (0..IMAGE_LEN as u32 / 4).flat_map(|block| key.block(sample, block));
            let noise: Vec<f32> = blocks.map(|word| symmetric(word, 1.0)).collect();
            let largest = noise.iter().fold(0.0f32, |largest, t| largest.max(t.abs()));
            for ((out, x), t) in perturbed.iter_mut().zip(image).zip(noise) {
                *out = (x + epsilon * (t / largest)).clamp(0.0, 1.0);
            }
        });
        Ok(())
    }

    fn adaptive_step(
        &mut self,
        step: &AdaptiveStep,
        point: AdaptivePoint,
        state: &AdaptiveState,
    ) -> Result<()> {
        let batch = point.labels.len();
        if state.len() != batch {
            return invalid(format!("APGD state of {} images, expected {batch}", state.len()));
        }
        let heap = self.heap();
        expect_len(point.images, batch * IMAGE_LEN)?;
        expect_len(point.perturbed, batch * IMAGE_LEN)?;
        expect_len(point.predictions, batch)?;
        let (labels, predictions) = (heap.copy(point.labels)?, heap.copy(point.predictions)?);
        let wrong: Vec<bool> = labels.iter().zip(&predictions).map(|(label, met)| label != met).collect();

        if step.phase == AdaptivePhase::Last {
            let mut broken = heap.view_mut(&state.broken)?;
            let adversarial = heap.view(&state.adversarial)?;
            let mut perturbed = heap.view_mut(point.perturbed)?;
            for (n, wrong) in wrong.into_iter().enumerate() {
                let image = n * IMAGE_LEN..(n + 1) * IMAGE_LEN;
                if wrong {
                    broken[n] = 1;
                } else if broken[n] != 0 {
                    perturbed[image.clone()].copy_from_slice(&adversarial[image]);
                }
            }
            return Ok(());
        }

        expect_len(point.losses, batch)?;
        let losses = heap.copy(point.losses)?;
        let first = step.phase == AdaptivePhase::First;
        let window = match step.phase {
            AdaptivePhase::Checkpoint { window } => Some(window),
            _ => None,
        };
        let mut books = if first { vec![Books::default(); batch] } else { self.books(state)? };
        let orders: Vec<Orders> = books
            .iter_mut()
            .zip(losses)
            .zip(wrong)
            .map(|((books, loss), wrong)| match first {
                true => {
                    *books = Books::first(step.epsilon, loss, wrong);
                    Orders { wrong, improved: true, back: false }
                }
                false => books.keep(loss, wrong, window),
            })
            .collect();
        self.write_books(&books, state)?;

        let (images, gradient) = (heap.copy(point.images)?, heap.copy(&state.gradient)?);
        let mut perturbed = heap.view_mut(point.perturbed)?;
        let (mut previous, mut best) = (heap.view_mut(&state.previous)?, heap.view_mut(&state.best)?);
        let (mut best_gradient, mut adversarial) =
            (heap.view_mut(&state.best_gradient)?, heap.view_mut(&state.adversarial)?);
        let fixed = images.par_chunks_exact(IMAGE_LEN).zip(gradient.par_chunks_exact(IMAGE_LEN));
        let points = perturbed.par_chunks_exact_mut(IMAGE_LEN).zip(previous.par_chunks_exact_mut(IMAGE_LEN));
        let bests = best.par_chunks_exact_mut(IMAGE_LEN).zip(best_gradient.par_chunks_exact_mut(IMAGE_LEN));
        let rest = bests.zip(adversarial.par_chunks_exact_mut(IMAGE_LEN));
        let decided = books.par_iter().zip(&orders);
        fixed.zip(points).zip(rest).zip(decided).for_each(
            |(
                (((x, gradient), (point, previous)), ((best, best_gradient), adversarial)),
                (books, orders),
            )| {
                let mut points = Points { x, gradient, point, previous, best, best_gradient, adversarial };
                points.follow(*orders);
                points.step(step.epsilon, books.step_size, first, orders.back);
            },
        );
        Ok(())
    }
}

impl Reference {
    fn books(&self, state: &AdaptiveState) -> Result<Vec<Books>> {
        let heap = self.heap();
        let (step_size, best_loss) = (heap.view(&state.step_size)?, heap.view(&state.best_loss)?);
        let (checked_loss, last_loss) = (heap.view(&state.checked_loss)?, heap.view(&state.last_loss)?);
        let (increases, halved) = (heap.view(&state.increases)?, heap.view(&state.halved)?);
        let broken = heap.view(&state.broken)?;
        let books = |n: usize| Books {
            step_size: step_size[n],
            best_loss: best_loss[n],
            checked_loss: checked_loss[n],
            last_loss: last_loss[n],
            increases: increases[n],
            halved: halved[n] != 0,
            broken: broken[n] != 0,
        };
        Ok((0..state.len()).map(books).collect())
    }

    fn write_books(&self, books: &[Books], state: &AdaptiveState) -> Result<()> {
        let heap = self.heap();
        let float = |tensor: &Tensor<f32>, value: fn(&Books) -> f32| {
            let values: Vec<f32> = books.iter().map(value).collect();
            heap.view_mut(tensor).map(|mut view| view.copy_from_slice(&values))
        };
        let word = |tensor: &Tensor<u32>, value: fn(&Books) -> u32| {
            let values: Vec<u32> = books.iter().map(value).collect();
            heap.view_mut(tensor).map(|mut view| view.copy_from_slice(&values))
        };
        float(&state.step_size, |books| books.step_size)?;
        float(&state.best_loss, |books| books.best_loss)?;
        float(&state.checked_loss, |books| books.checked_loss)?;
        float(&state.last_loss, |books| books.last_loss)?;
        word(&state.increases, |books| books.increases)?;
        word(&state.halved, |books| books.halved.into())?;
        word(&state.broken, |books| books.broken.into())
    }
}
