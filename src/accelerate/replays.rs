//! BulletTrain for Free-AT, whose attack steps are the replays of a minibatch.
//!
//! One clean forward before the first replay divides the minibatch into [`super::Groups`]. Outliers' x' is x in all of its
//! replays; boundary samples move after every replay; robust ones after the first `robust_steps` of them, and stay where
//! that brought them. No step changes its size. acc_ref follows the predictions of the last replay.
//!
//! This saves sign steps, not passes: the backward pass that moves the images is the one that the weights need anyway, so
//! a minibatch costs its plain replays and the clean forward. It is there so that every objective can be compared with
//! BulletTrain.

use super::{AccelerateConfig, Grouping, Groups};
use crate::attack::AttackWork;
use crate::batch::Batch;
use crate::engine::{Engine, Result, Tensor};
use crate::model::Weights;
use crate::model::layers::IMAGE_LEN;
use crate::ops::{GatherRows, ScatterRows};

/// The groups of the current minibatch, and what keeps images still.
#[derive(Clone, Debug)]
pub struct Replays {
    grouping: Grouping,
    /// Replays after which robust samples move.
    robust_steps: usize,
    groups: Groups,
    workspace: Option<Workspace>,
}

/// Memory for the images that stay.
#[derive(Clone, Debug)]
struct Workspace {
    /// Their places in the batch.
    places: Tensor<u32>,
    images: Tensor<f32>,
}

impl Replays {
    pub fn new(config: &AccelerateConfig) -> Self {
        Self {
            grouping: Grouping::new(config),
            robust_steps: config.robust_steps,
            groups: Groups::default(),
            workspace: None,
        }
    }

    /// Divides a new minibatch; needs [`Engine::fold_batch_norm`] after the last change of the weights.
    pub fn divide(&mut self, engine: &mut Engine, batch: &Batch) -> Result<AttackWork> {
        self.groups = self.grouping.divide(engine, batch)?;
        Ok(self.groups.work())
    }

    /// Places of the minibatch's outliers, ascending.
    pub fn outliers(&self) -> &[u32] {
        &self.groups.outliers
    }

    /// Indices in the minibatch of the robust samples, where no replay moves them: they carry their perturbation as it is.
    pub fn unmoved(&self) -> &[u32] {
        if self.robust_steps == 0 { &self.groups.robust } else { &[] }
    }

    /// Images that move after replay `replay`, counted from 0.
    pub fn steps(&self, replay: usize) -> u64 {
        let robust = if replay < self.robust_steps { self.groups.robust.len() } else { 0 };
        (self.groups.boundary.len() + robust) as u64
    }

    /// Takes a step that moves all of `batch.perturbed`, and puts back the images that stay after replay `replay`.
    pub fn step(
        &mut self,
        engine: &mut Engine,
        batch: &Batch,
        replay: usize,
        step: impl FnOnce(&mut Engine) -> Result<()>,
    ) -> Result<()> {
        let mut still = self.groups.outliers.clone();
        if replay >= self.robust_steps {
            still.extend(&self.groups.robust);
        }
        if still.is_empty() {
            return step(engine);
        }
        let workspace = match self.workspace.take() {
            Some(workspace) if workspace.places.len() >= batch.len() => workspace,
            _ => Workspace {
                places: engine.alloc("places of still images", batch.len())?,
                images: engine.alloc("still images", batch.len() * IMAGE_LEN)?,
            },
        };
        let (places, images) =
            (workspace.places.slice(0..still.len()), workspace.images.rows(0..still.len(), IMAGE_LEN));
        engine.write(&places, &still)?;
        engine.run(&GatherRows::new(&batch.perturbed, &places, &images))?;
        step(engine)?;
        engine.run(&ScatterRows::new(&images, &places, &batch.perturbed))?;
        self.workspace = Some(workspace);
        Ok(())
    }

    /// Learns from `batch.predictions` of the last replay.
    pub fn learn(&mut self, engine: &Engine, batch: &Batch) -> Result<()> {
        let (predictions, labels) = (engine.read(&batch.predictions)?, engine.read(&batch.labels)?);
        let Groups { boundary, robust, .. } = &self.groups;
        let right = |&&place: &&u32| predictions[place as usize] == labels[place as usize];
        self.grouping.learn(engine, boundary.iter().chain(robust).filter(right).count(), batch.len())
    }

    /// acc_ref, for checkpoints, which are taken between minibatches.
    pub fn state(&self) -> Weights {
        self.grouping.state()
    }

    /// Takes back what [`Replays::state`] gave; says why it cannot.
    pub fn restore(&mut self, state: &Weights) -> std::result::Result<(), String> {
        self.groups = Groups::default();
        self.grouping.restore(state)
    }
}
