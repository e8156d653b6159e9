//! Adversarial weight perturbation (Wu et al., NeurIPS 2020) of any objective: AT-AWP, TRADES-AWP, MART-AWP.
//!
//! The gradient is taken where the weights w were moved to w + v, v the step of [`PerturbWeights`] along the gradient at w on the same
//! minibatch; the optimizer step is made there, weight decay included, and takes v back. The attack is on w. Of the two train passes
//! the second moves the running statistics, as in the published code, whose first pass is that of a copy of the network.

use super::{Objective, ObjectiveConfig};
use crate::attack::AttackWork;
use crate::batch::Batch;
use crate::engine::{Engine, Result, Tensor};
use crate::model::{ParameterKind, Weights};
use crate::ops::{KeepStatistics, PerturbWeights};
use crate::philox::Key;

/// An objective at perturbed weights.
pub struct Awp {
    inner: Box<dyn Objective>,
    config: ObjectiveConfig,
    /// Of the schedule.
    epoch: usize,
    /// Running statistics and displacement, made when first used.
    memory: Option<[Tensor<f32>; 2]>,
}

impl Awp {
    pub fn new(inner: Box<dyn Objective>, config: &ObjectiveConfig) -> Self {
        Self { inner, config: config.clone(), epoch: 0, memory: None }
    }
}

fn allocate(engine: &Engine) -> Result<[Tensor<f32>; 2]> {
    let network = engine.network();
    let statistics = network.elements(|kind| !kind.trainable());
    let trainable = network.elements(ParameterKind::trainable);
    Ok([
        engine.alloc("kept running statistics", statistics)?,
        engine.alloc("weight perturbation", trainable)?,
    ])
}

impl Objective for Awp {
    fn needs_fold(&self) -> bool {
        self.inner.needs_fold()
    }

    fn replays(&self) -> usize {
        self.inner.replays()
    }

    fn has_clean_pass(&self) -> bool {
        self.inner.has_clean_pass()
    }

    fn begin_epoch(&mut self, epoch: usize) {
        self.epoch = epoch;
        self.inner.begin_epoch(epoch);
    }

    fn attack(&mut self, engine: &mut Engine, key: Key, batch: &Batch) -> Result<AttackWork> {
        self.inner.attack(engine, key, batch)
    }

    fn gradient(&mut self, engine: &mut Engine, batch: &Batch) -> Result<Option<Tensor<f32>>> {
        if !self.config.perturbs_weights(self.epoch) {
            return self.inner.gradient(engine, batch);
        }
        let [statistics, displacement] = match &mut self.memory {
            Some(memory) => memory,
            empty => empty.insert(allocate(engine)?),
        };
        let gamma = self.config.awp as f32;
        engine.run(&KeepStatistics { to: statistics })?;
        self.inner.gradient(engine, batch)?;
        engine.run(&PerturbWeights { gamma, statistics, displacement })?;
        self.inner.gradient(engine, batch)?;
        Ok(Some(displacement.clone()))
    }

    fn loss(&self, engine: &mut Engine, batch: &Batch, scale: f32) -> Result<()> {
        self.inner.loss(engine, batch, scale)
    }

    fn state(&self) -> Weights {
        self.inner.state()
    }

    fn restore(&mut self, state: &Weights) -> Result<(), String> {
        self.inner.restore(state)
    }
}
