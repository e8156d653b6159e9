//! APGD: `kernels/attack/adaptive.cu`. Checked by `tests/kernel_apgd.rs`.

use super::{Cost, F32, Philox, U32, run};
use crate::engine::cuda::driver::{Address, Driver};
use crate::engine::{AdaptivePhase, AdaptiveStep, Result};
use crate::model::layers::IMAGE_LEN;
use crate::philox::Key;

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct AdaptiveStartParams {
    samples: Address,
    images: Address,
    perturbed: Address,
    random: Philox,
    epsilon: f32,
    padding: u32,
}

/// `perturbed = clip01(images + epsilon * t / |t|_inf)` for `batch` images (f32), t keyed by `samples` (u32).
pub fn adaptive_start(
    driver: &dyn Driver,
    epsilon: f32,
    key: Key,
    batch: usize,
    samples: Address,
    images: Address,
    perturbed: Address,
) -> Result<()> {
    let params = AdaptiveStartParams { samples, images, perturbed, random: key.into(), epsilon, padding: 0 };
    let elements = batch * IMAGE_LEN;
    // A scale, a quotient and a sum an element.
    let cost = Cost::new(5 * elements, 2 * elements * F32 + batch * U32);
    run(driver, "adaptive_start", [batch as u32, 1, 1], &params, cost)
}

/// Operands of a step, in the order of the kernel's parameters; f32 where nothing else is said.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct AdaptiveOperands {
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
struct AdaptiveStepParams {
    operands: AdaptiveOperands,
    epsilon: f32,
    phase: u32,
    window: u32,
    padding: u32,
}

/// Keeps the books of `batch` images and moves them.
pub fn adaptive_step(
    driver: &dyn Driver,
    step: &AdaptiveStep,
    batch: usize,
    operands: &AdaptiveOperands,
) -> Result<()> {
    let (phase, window) = match step.phase {
        AdaptivePhase::First => (0, 0),
        AdaptivePhase::Within => (1, 0),
        AdaptivePhase::Checkpoint { window } => (1, window),
        AdaptivePhase::Last => (2, 0),
    };
    let params = AdaptiveStepParams { operands: *operands, epsilon: step.epsilon, phase, window, padding: 0 };
    let elements = batch * IMAGE_LEN;
    // The last call moves nothing. Before it the clean image, the gradient, the current and the previous image are read, and
    // the latter two written; which of the best images are kept depends on the losses. Eleven words of books an image.
    let (operations, moved) = if phase == 2 { (0, 0) } else { (8 * elements, 6 * elements) };
    let cost = Cost::new(operations, moved * F32 + 11 * batch * U32);
    run(driver, "adaptive_step", [batch as u32, 1, 1], &params, cost)
}
