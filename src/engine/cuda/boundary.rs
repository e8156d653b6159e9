//! Steps to decision boundaries on the cuda engine. Checked by `tests/fab.rs`; called by `attack/fab.rs`.

use super::engine::Cuda;
use super::launch::boundary::{
    self, BoundaryKeepParams, BoundaryStepParams, ClassDifferenceParams, RankedTargetParams,
};
use crate::engine::{BoundaryState, BoundaryStep, BoundarySteps, Engine, Error, Result, Tensor};
use crate::model::layers::IMAGE_LEN;

impl BoundarySteps for Cuda {
    fn ranked_targets(
        &mut self,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        rank: usize,
        targets: &Tensor<u32>,
    ) -> Result<()> {
        let (batch, classes) = (labels.len(), self.network().classes);
        if !(1..classes).contains(&rank) {
            return Err(Error::Invalid(format!(
                "rank {rank} among the wrong classes: expected 1 to {}",
                classes - 1
            )));
        }
        let params = RankedTargetParams {
            logits: self.logits(logits, batch)?,
            labels: self.address(labels)?,
            targets: self.sized(targets, batch)?,
            batch: batch as u32,
            classes: classes as u32,
            rank: rank as u32,
            padding: 0,
        };
        boundary::ranked_target(self.driver(), &params)
    }

    fn class_difference(
        &mut self,
        labels: &Tensor<u32>,
        targets: &Tensor<u32>,
        logit_gradient: &Tensor<f32>,
    ) -> Result<()> {
        let params = ClassDifferenceParams {
            labels: self.address(labels)?,
            targets: self.sized(targets, labels.len())?,
            gradient: self.logits(logit_gradient, labels.len())?,
            elements: logit_gradient.len() as u32,
            classes: self.network().classes as u32,
        };
        boundary::class_difference(self.driver(), &params)
    }

    fn boundary_step(
        &mut self,
        step: &BoundaryStep,
        logits: &Tensor<f32>,
        gradient: &Tensor<f32>,
        state: &BoundaryState,
    ) -> Result<()> {
        let batch = state.labels.len();
        let params = BoundaryStepParams {
            logits: self.logits(logits, batch)?,
            gradient: self.sized(gradient, batch * IMAGE_LEN)?,
            labels: self.address(state.labels)?,
            targets: self.sized(state.targets, batch)?,
            images: self.sized(state.images, batch * IMAGE_LEN)?,
            current: self.sized(state.current, batch * IMAGE_LEN)?,
            classes: self.network().classes as u32,
            largest_share: step.largest_share,
            overshoot: step.overshoot,
            padding: 0,
        };
        self.images_change();
        boundary::boundary_step(self.driver(), batch, &params)
    }

    fn boundary_keep(&mut self, backward: f32, logits: &Tensor<f32>, state: &BoundaryState) -> Result<()> {
        let batch = state.labels.len();
        let params = BoundaryKeepParams {
            logits: self.logits(logits, batch)?,
            labels: self.address(state.labels)?,
            images: self.sized(state.images, batch * IMAGE_LEN)?,
            current: self.sized(state.current, batch * IMAGE_LEN)?,
            closest: self.sized(state.closest, batch * IMAGE_LEN)?,
            distances: self.sized(state.distances, batch)?,
            classes: self.network().classes as u32,
            backward,
        };
        self.images_change();
        boundary::boundary_keep(self.driver(), batch, &params)
    }
}
