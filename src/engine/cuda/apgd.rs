//! [`AdaptiveSteps`] on our kernels. Checked by tests/apgd.rs.

use super::engine::Cuda;
use super::launch::adaptive::{self, AdaptiveOperands};
use crate::engine::{AdaptivePoint, AdaptiveState, AdaptiveStep, AdaptiveSteps, Result, Tensor};
use crate::model::layers::IMAGE_LEN;
use crate::philox::Key;

impl AdaptiveSteps for Cuda {
    fn adaptive_start(
        &mut self,
        epsilon: f32,
        key: Key,
        samples: &Tensor<u32>,
        images: &Tensor<f32>,
        perturbed: &Tensor<f32>,
    ) -> Result<()> {
        self.images_change();
        let batch = samples.len();
        let from = self.sized(images, batch * IMAGE_LEN)?;
        let to = self.sized(perturbed, batch * IMAGE_LEN)?;
        adaptive::adaptive_start(self.driver(), epsilon, key, batch, self.address(samples)?, from, to)
    }

    fn adaptive_step(
        &mut self,
        step: &AdaptiveStep,
        point: AdaptivePoint,
        state: &AdaptiveState,
    ) -> Result<()> {
        self.images_change();
        let batch = point.labels.len();
        let image = |tensor: &Tensor<f32>| self.sized(tensor, batch * IMAGE_LEN);
        let operands = AdaptiveOperands {
            images: image(point.images)?,
            labels: self.address(point.labels)?,
            losses: self.sized(point.losses, batch)?,
            predictions: self.sized(point.predictions, batch)?,
            step_size: self.sized(&state.step_size, batch)?,
            best_loss: self.sized(&state.best_loss, batch)?,
            checked_loss: self.sized(&state.checked_loss, batch)?,
            last_loss: self.sized(&state.last_loss, batch)?,
            increases: self.sized(&state.increases, batch)?,
            halved: self.sized(&state.halved, batch)?,
            broken: self.sized(&state.broken, batch)?,
            gradient: image(&state.gradient)?,
            perturbed: image(point.perturbed)?,
            previous: image(&state.previous)?,
            best: image(&state.best)?,
            best_gradient: image(&state.best_gradient)?,
            adversarial: image(&state.adversarial)?,
        };
        adaptive::adaptive_step(self.driver(), step, batch, &operands)
    }
}
