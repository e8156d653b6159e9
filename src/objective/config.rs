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
        };
        section.check(objective.validate())?;
        section.finish()?;
        Ok(objective)
    }

    /// Gradients of a minibatch in an epoch of the schedule: train passes forward and backward.
    pub fn gradients(&self, _epoch: usize) -> usize {
        self.replays
    }

    /// Refuses smoothed labels and replays where the method has none.
    pub fn validate(&self) -> Result<(), Refusal> {
        let row = self.method.row();
        if let Some(why) = row.hard_labels.filter(|_| self.label_smoothing > 0.0) {
            return Err(Refusal::new("label_smoothing", self.label_smoothing, format!("0: {why}")));
        }
        if !row.attack.is_replayed() && self.replays > 1 {
            let expected = format!("1: {} trains once on each minibatch", self.method);
            return Err(Refusal::new("replays", self.replays, expected));
        }
        Ok(())
    }
}
