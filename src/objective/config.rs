//! `[objective]`: what a training step minimises.

use serde::Serialize;

use super::Method;
use crate::config::{ConfigError, Refusal, Section};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ObjectiveConfig {
    pub method: Method,
    /// Target (1 - s) one_hot + s / classes of the cross-entropy: in TRADES that of the clean images.
    pub label_smoothing: f64,
    /// Factor on the divergence: beta of TRADES, lambda of MART; unused by the others.
    pub beta: f64,
    /// Optimizer steps on each minibatch: m of Free-AT, 1 for the others.
    pub replays: usize,
    /// Gamma of adversarial weight perturbation, 0 for none.
    pub awp: f64,
    /// Epochs of the schedule before it begins.
    pub awp_warmup: usize,
}

impl ObjectiveConfig {
    pub(crate) fn read(mut section: Section) -> Result<Self, ConfigError> {
        let method = section.name("method", Some(Method::PgdAt))?;
        let row = method.row();
        let objective = Self {
            method,
            label_smoothing: section.number("label_smoothing", 0.0..1.0, Some(0.0))?,
            beta: section.number("beta", 0.0..=1000.0, Some(row.beta))?,
            replays: section.integer("replays", 1..=1000, Some(row.attack.replays()))?,
            awp: section.number("awp", 0.0..=1.0, Some(0.0))?,
            awp_warmup: section.integer("awp_warmup", 0..=100_000, Some(0))?,
        };
        section.finish(objective, Self::validate)
    }

    /// Gradients of a minibatch in an epoch of the schedule: train passes forward and backward.
    pub fn gradients(&self, epoch: usize) -> usize {
        self.replays * if self.perturbs_weights(epoch) { 2 } else { 1 }
    }

    /// Whether the weights are perturbed in an epoch of the schedule.
    pub fn perturbs_weights(&self, epoch: usize) -> bool {
        self.awp > 0.0 && epoch >= self.awp_warmup
    }

    /// Refuses smoothed labels, replays and perturbed weights where the method has none.
    pub fn validate(&self) -> Result<(), Refusal> {
        let row = self.method.row();
        if let Some(why) = row.hard_labels.filter(|_| self.label_smoothing > 0.0) {
            return Err(Refusal::new("label_smoothing", self.label_smoothing, format!("0: {why}")));
        }
        if !row.attack.is_replayed() && self.replays > 1 {
            let expected = format!("1: {} trains once on each minibatch", self.method);
            return Err(Refusal::new("replays", self.replays, expected));
        }
        if row.attack.is_replayed() && self.awp > 0.0 {
            let expected = format!("0: {} moves its images by the gradient of each step", self.method);
            return Err(Refusal::new("awp", self.awp, expected));
        }
        Ok(())
    }
}
