//! The step of APGD (Croce and Hein, 2020): a momentum step whose size each image halves for itself.
//!
//! The state of every image lies on the device ([`ApgdState`]), and one call an iteration updates it and moves the image: the
//! host looks at none. The CPU rounds operation by operation as the kernel does: the same bits from the same inputs.

use std::ops::Range;

use rayon::prelude::*;

use super::Op;
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::{Cost, F32, U32, run};
use crate::engine::{Engine, Error, Operands, Result, Tensor};
use crate::model::layers::IMAGE_LEN;

/// Updates the state and steps, in this order:
///
/// 1. a wrong prediction marks the image broken and keeps the point;
/// 2. a loss above the last one counts as an increase; a loss above the best one makes this point the best;
/// 3. at a checkpoint of window k: if increases <= 0.75 k, or if the last checkpoint did not halve and the best loss has
///    not risen since, the step size is halved and point and gradient become those of the best point;
/// 4. with u = proj(x' + size * sign(gradient)): `x' <- proj(x' + a (u - x') + (1 - a) (x' - previous))`, a = 1 at the first
///    step and 0.75 later; proj is onto the ball, then onto [0, 1]; sign(0) = 0.
#[derive(Clone, Copy, Debug)]
pub struct ApgdStep<'a> {
    /// Radius of the ball.
    pub epsilon: f32,
    pub phase: ApgdPhase,
    pub point: ApgdPoint<'a>,
    pub state: &'a ApgdState,
}

/// Where in the attack a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApgdPhase {
    /// The network has seen the start: sets the state and takes the first step, of size 2 epsilon, without momentum.
    First,
    /// The network has seen the point of an iteration: updates the state and takes a step with momentum.
    Within,
    /// The same at a checkpoint, the end of a window of iterations: before the step, images that did not improve
    /// halve their step size and return to their best point.
    Checkpoint { window: u32 },
    /// The network has seen the last point: updates the state and moves `perturbed` to a wrongly predicted point where one
    /// was found.
    Last,
}

/// What APGD remembers of a batch; [`ApgdPhase::First`] sets all but the gradient.
#[derive(Clone, Debug)]
pub struct ApgdState {
    pub step_size: Tensor<f32>,
    pub best_loss: Tensor<f32>,
    /// The best loss at the last checkpoint.
    pub checked_loss: Tensor<f32>,
    /// The loss one iteration ago, 0 before the first one: the published code compares the first loss with a row of its
    /// zero-filled table.
    pub last_loss: Tensor<f32>,
    /// Iterations of the window whose loss exceeds that of the iteration before.
    pub increases: Tensor<u32>,
    /// 1 where the last checkpoint halved the step size; 1 before the first checkpoint.
    pub halved: Tensor<u32>,
    /// 1 where some point was predicted wrong.
    pub broken: Tensor<u32>,
    /// `batch x 32 x 32 x 3`, as those below: the gradient of the loss at the present point; the caller's to fill.
    pub gradient: Tensor<f32>,
    /// The point before the last step.
    pub previous: Tensor<f32>,
    /// The point of the best loss, and the gradient there.
    pub best: Tensor<f32>,
    pub best_gradient: Tensor<f32>,
    /// The last wrongly predicted point; unspecified where none was found.
    pub adversarial: Tensor<f32>,
}

/// The present point of each image and what the network said of it.
#[derive(Clone, Copy, Debug)]
pub struct ApgdPoint<'a> {
    /// The centres of the balls.
    pub images: &'a Tensor<f32>,
    pub labels: &'a Tensor<u32>,
    /// Loss and prediction at `perturbed`.
    pub losses: &'a Tensor<f32>,
    pub predictions: &'a Tensor<u32>,
    /// The point; moved.
    pub perturbed: &'a Tensor<f32>,
}

impl ApgdState {
    /// Of `len` images.
    pub fn alloc(engine: &Engine, len: usize) -> Result<Self> {
        Ok(Self {
            step_size: engine.alloc("APGD step sizes", len)?,
            best_loss: engine.alloc("APGD best losses", len)?,
            checked_loss: engine.alloc("APGD losses at the last checkpoint", len)?,
            last_loss: engine.alloc("APGD last losses", len)?,
            increases: engine.alloc("APGD increases", len)?,
            halved: engine.alloc("APGD halvings", len)?,
            broken: engine.alloc("APGD broken images", len)?,
            gradient: engine.alloc("APGD gradient", len * IMAGE_LEN)?,
            previous: engine.alloc("APGD previous points", len * IMAGE_LEN)?,
            best: engine.alloc("APGD best points", len * IMAGE_LEN)?,
            best_gradient: engine.alloc("APGD gradient at the best points", len * IMAGE_LEN)?,
            adversarial: engine.alloc("APGD adversarial images", len * IMAGE_LEN)?,
        })
    }

    /// Images that it is of.
    pub fn len(&self) -> usize {
        self.step_size.len()
    }

    pub fn is_empty(&self) -> bool {
        self.step_size.is_empty()
    }

    /// Images `range`: the same memory, narrowed.
    ///
    /// # Panics
    /// If the range does not lie inside the state.
    pub fn rows(&self, range: Range<usize>) -> Self {
        let image = |tensor: &Tensor<f32>| tensor.rows(range.clone(), IMAGE_LEN);
        Self {
            step_size: self.step_size.slice(range.clone()),
            best_loss: self.best_loss.slice(range.clone()),
            checked_loss: self.checked_loss.slice(range.clone()),
            last_loss: self.last_loss.slice(range.clone()),
            increases: self.increases.slice(range.clone()),
            halved: self.halved.slice(range.clone()),
            broken: self.broken.slice(range.clone()),
            gradient: image(&self.gradient),
            previous: image(&self.previous),
            best: image(&self.best),
            best_gradient: image(&self.best_gradient),
            adversarial: image(&self.adversarial),
        }
    }
}

impl Op for ApgdStep<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let ApgdStep { point, state, .. } = self;
        let batch = point.labels.len();
        if state.len() != batch {
            return Err(Error::Invalid(format!("APGD state of {} images, expected {batch}", state.len())));
        }
        operands.reads(point.labels, batch)?;
        operands.reads(point.images, batch * IMAGE_LEN)?;
        operands.reads(point.losses, batch)?;
        operands.reads(point.predictions, batch)?;
        operands.reads(&state.gradient, batch * IMAGE_LEN)?;
        operands.writes(point.perturbed, batch * IMAGE_LEN)?;
        for tensor in [&state.step_size, &state.best_loss, &state.checked_loss, &state.last_loss] {
            operands.writes(tensor, batch)?;
        }
        for tensor in [&state.increases, &state.halved, &state.broken] {
            operands.writes(tensor, batch)?;
        }
        for tensor in [&state.previous, &state.best, &state.best_gradient, &state.adversarial] {
            operands.writes(tensor, batch * IMAGE_LEN)?;
        }
        Ok(())
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let ApgdStep { point, state, .. } = self;
        let (labels, predictions) = (cpu.input(point.labels)?, cpu.input(point.predictions)?);
        let wrong = labels.iter().zip(&*predictions).map(|(label, predicted)| label != predicted);
        if self.phase == ApgdPhase::Last {
            return self.finish(cpu, wrong);
        }

        let losses = cpu.input(point.losses)?;
        let first = self.phase == ApgdPhase::First;
        let window = match self.phase {
            ApgdPhase::Checkpoint { window } => Some(window),
            _ => None,
        };
        let mut images =
            if first { vec![ImageState::default(); state.len()] } else { ImageState::read(cpu, state)? };
        let orders: Vec<Orders> = images
            .iter_mut()
            .zip(&*losses)
            .zip(wrong)
            .map(|((image, &loss), wrong)| match first {
                true => {
                    *image = ImageState::first(self.epsilon, loss, wrong);
                    Orders { wrong, improved: true, back: false }
                }
                false => image.update(loss, wrong, window),
            })
            .collect();
        ImageState::write(&images, cpu, state)?;

        let (x, gradient) = (cpu.input(point.images)?, cpu.input(&state.gradient)?);
        let mut perturbed = cpu.output(point.perturbed)?;
        let (mut previous, mut best) = (cpu.output(&state.previous)?, cpu.output(&state.best)?);
        let (mut best_gradient, mut adversarial) =
            (cpu.output(&state.best_gradient)?, cpu.output(&state.adversarial)?);
        let fixed = x.par_chunks_exact(IMAGE_LEN).zip(gradient.par_chunks_exact(IMAGE_LEN));
        let points = perturbed.par_chunks_exact_mut(IMAGE_LEN).zip(previous.par_chunks_exact_mut(IMAGE_LEN));
        let bests = best.par_chunks_exact_mut(IMAGE_LEN).zip(best_gradient.par_chunks_exact_mut(IMAGE_LEN));
        let rest = bests.zip(adversarial.par_chunks_exact_mut(IMAGE_LEN));
        let (decided, epsilon) = (images.par_iter().zip(&orders), self.epsilon);
        fixed.zip(points).zip(rest).zip(decided).for_each(
            |(
                (((x, gradient), (point, previous)), ((best, best_gradient), adversarial)),
                (image, orders),
            )| {
                let mut points = Points { x, gradient, point, previous, best, best_gradient, adversarial };
                points.follow(*orders);
                points.step(epsilon, image.step_size, first, orders.back);
            },
        );
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let ApgdStep { point, state, .. } = self;
        let operands = ApgdOperands {
            images: cuda.address(point.images)?,
            labels: cuda.address(point.labels)?,
            losses: cuda.address(point.losses)?,
            predictions: cuda.address(point.predictions)?,
            step_size: cuda.address(&state.step_size)?,
            best_loss: cuda.address(&state.best_loss)?,
            checked_loss: cuda.address(&state.checked_loss)?,
            last_loss: cuda.address(&state.last_loss)?,
            increases: cuda.address(&state.increases)?,
            halved: cuda.address(&state.halved)?,
            broken: cuda.address(&state.broken)?,
            gradient: cuda.address(&state.gradient)?,
            perturbed: cuda.address(point.perturbed)?,
            previous: cuda.address(&state.previous)?,
            best: cuda.address(&state.best)?,
            best_gradient: cuda.address(&state.best_gradient)?,
            adversarial: cuda.address(&state.adversarial)?,
        };
        apgd_step(cuda.driver(), self.epsilon, self.phase, state.len(), &operands)
    }
}

impl ApgdStep<'_> {
    /// The last call: moves `perturbed` to a wrongly predicted point where one was found.
    fn finish(&self, cpu: &Cpu, wrong: impl Iterator<Item = bool>) -> Result<()> {
        let mut broken = cpu.output(&self.state.broken)?;
        let adversarial = cpu.output(&self.state.adversarial)?;
        let mut perturbed = cpu.output(self.point.perturbed)?;
        for (n, wrong) in wrong.enumerate() {
            let image = n * IMAGE_LEN..(n + 1) * IMAGE_LEN;
            if wrong {
                broken[n] = 1;
            } else if broken[n] != 0 {
                perturbed[image.clone()].copy_from_slice(&adversarial[image]);
            }
        }
        Ok(())
    }
}

/// What is remembered of one image besides its points.
#[derive(Clone, Copy, Default)]
struct ImageState {
    step_size: f32,
    best_loss: f32,
    checked_loss: f32,
    last_loss: f32,
    increases: u32,
    halved: bool,
    broken: bool,
}

/// What the state says must happen to the points.
#[derive(Clone, Copy)]
struct Orders {
    /// The point is predicted wrong: keep it.
    wrong: bool,
    /// The point is the best so far.
    improved: bool,
    /// Go back to the best point.
    back: bool,
}

impl ImageState {
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

    fn update(&mut self, loss: f32, wrong: bool, window: Option<u32>) -> Orders {
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

impl ImageState {
    fn read(cpu: &Cpu, state: &ApgdState) -> Result<Vec<Self>> {
        let (step_size, best_loss) = (cpu.output(&state.step_size)?, cpu.output(&state.best_loss)?);
        let (checked_loss, last_loss) = (cpu.output(&state.checked_loss)?, cpu.output(&state.last_loss)?);
        let (increases, halved) = (cpu.output(&state.increases)?, cpu.output(&state.halved)?);
        let broken = cpu.output(&state.broken)?;
        let image = |n: usize| Self {
            step_size: step_size[n],
            best_loss: best_loss[n],
            checked_loss: checked_loss[n],
            last_loss: last_loss[n],
            increases: increases[n],
            halved: halved[n] != 0,
            broken: broken[n] != 0,
        };
        Ok((0..state.len()).map(image).collect())
    }

    fn write(images: &[Self], cpu: &Cpu, state: &ApgdState) -> Result<()> {
        fn fill<T: crate::engine::Element>(
            cpu: &Cpu,
            tensor: &Tensor<T>,
            images: &[ImageState],
            value: fn(&ImageState) -> T,
        ) -> Result<()> {
            cpu.output(tensor)?.iter_mut().zip(images).for_each(|(slot, image)| *slot = value(image));
            Ok(())
        }
        fill(cpu, &state.step_size, images, |image| image.step_size)?;
        fill(cpu, &state.best_loss, images, |image| image.best_loss)?;
        fill(cpu, &state.checked_loss, images, |image| image.checked_loss)?;
        fill(cpu, &state.last_loss, images, |image| image.last_loss)?;
        fill(cpu, &state.increases, images, |image| image.increases)?;
        fill(cpu, &state.halved, images, |image| image.halved.into())?;
        fill(cpu, &state.broken, images, |image| image.broken.into())
    }
}

/// Operands of a step, in the order of the kernel's parameters; f32 where nothing else is said.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ApgdOperands {
    /// batch x 3072.
    pub images: Address,
    /// u32, batch.
    pub labels: Address,
    /// batch.
    pub losses: Address,
    /// u32, batch.
    pub predictions: Address,
    /// batch, as the three below.
    pub step_size: Address,
    pub best_loss: Address,
    pub checked_loss: Address,
    pub last_loss: Address,
    /// u32, batch, as the two below.
    pub increases: Address,
    pub halved: Address,
    pub broken: Address,
    /// batch x 3072, as all below.
    pub gradient: Address,
    pub perturbed: Address,
    pub previous: Address,
    pub best: Address,
    pub best_gradient: Address,
    pub adversarial: Address,
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct ApgdStepParams {
    operands: ApgdOperands,
    epsilon: f32,
    phase: u32,
    window: u32,
    padding: u32,
}

/// Updates the state of `batch` images and moves them.
pub fn apgd_step(
    driver: &dyn Driver,
    epsilon: f32,
    phase: ApgdPhase,
    batch: usize,
    operands: &ApgdOperands,
) -> Result<()> {
    let (phase, window) = match phase {
        ApgdPhase::First => (0, 0),
        ApgdPhase::Within => (1, 0),
        ApgdPhase::Checkpoint { window } => (1, window),
        ApgdPhase::Last => (2, 0),
    };
    let params = ApgdStepParams { operands: *operands, epsilon, phase, window, padding: 0 };
    let elements = batch * IMAGE_LEN;
    // The last call moves nothing. Before it the clean image, the gradient, the current and the previous image are read, and
    // the latter two written; which of the best images are kept depends on the losses. Eleven words of state an image.
    let (operations, moved) = if phase == 2 { (0, 0) } else { (8 * elements, 6 * elements) };
    let cost = Cost::new(operations, moved * F32 + 11 * batch * U32);
    run(driver, "apgd_step", [batch as u32, 1, 1], &params, cost)
}
