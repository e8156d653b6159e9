//! BulletTrain (Hua et al., NeurIPS 2021): the full attack only for the samples near the decision boundary.
//!
//! One clean forward divides the batch into [`super::Groups`]. Outliers (wrong already) are not attacked, robust samples
//! briefly, the boundary between them in full. Groups are compacted on the device, so the work shrinks with them. Formulas:
//! as in public descendants of the authors' code.
//!
//! With a full attack of one step (FGSM-RS, N-FGSM) the short one is that step too, and only the outliers are spared. A
//! plain step is two passes an image, forward and backward; here each image costs the clean forward, and each attacked one
//! the two passes and the forward that tells whether it is robust. So there the attack is cheaper while less than a third
//! of the images are attacked, and dearer beyond.

use super::{AccelerateConfig, AccelerationRow, Grouping, Groups, Replays};
use crate::attack::{Adversary, AttackWork, Pgd, ScheduledPgd};
use crate::batch::Batch;
use crate::engine::{Engine, Pass, Result, Tensor};
use crate::model::Weights;
use crate::ops::{AscentLoss, Noise, ScatterRows};
use crate::philox::Key;

pub(super) const ROW: AccelerationRow = AccelerationRow {
    name: "bullet-train",
    title: "BulletTrain",
    about: "the full attack only near the decision boundary",
    paper: "Hua et al., NeurIPS 2021",
    // What the 5.66x of Li et al. (2023) leaves where pruning alone gives 3.44x: 4.4 of 10 steps. A network that predicts little
    // right makes far fewer.
    step_share: 0.44,
    groups: true,
    adversary: |full, config| Box::new(BulletTrain::new(full, config)),
    replays: |config| Some(Replays::new(config)),
};

/// PGD with steps by group.
pub struct BulletTrain {
    /// The attack of the boundary.
    full: ScheduledPgd,
    /// The attack of robust samples, from the same start.
    robust_steps: usize,
    robust_step_size: f32,
    grouping: Grouping,
    workspace: Option<Workspace>,
}

/// Memory for one group at a time.
struct Workspace {
    /// Places of the group's samples in the batch.
    places: Tensor<u32>,
    group: Batch,
}

impl BulletTrain {
    /// `full` for the boundary, the constants of `config` for the rest.
    pub fn new(full: ScheduledPgd, config: &AccelerateConfig) -> Self {
        Self {
            full,
            robust_steps: config.robust_steps,
            robust_step_size: config.robust_step_size.as_f32(),
            grouping: Grouping::new(config),
            workspace: None,
        }
    }

    /// acc_ref, the reference accuracy behind the threshold.
    pub fn accuracy(&self) -> f32 {
        self.grouping.accuracy()
    }

    /// Sets acc_ref, in [0, 1].
    pub fn set_accuracy(&mut self, accuracy: f32) {
        self.grouping.set_accuracy(accuracy);
    }

    /// The attack of robust samples next to this full one: never more steps than it has. A full attack of one step keeps its
    /// step size: another would make it another method.
    fn short(&self, full: &Pgd) -> Pgd {
        let mut short = Pgd { steps: self.robust_steps.min(full.steps), ..*full };
        if full.steps > 1 {
            short.step.step_size = self.robust_step_size;
        }
        short
    }
}

impl Workspace {
    fn alloc(engine: &Engine, len: usize) -> Result<Self> {
        Ok(Self { places: engine.alloc("places of a group", len)?, group: Batch::alloc(engine, len)? })
    }

    /// Attacks the samples of `batch` at `places` with `pgd`, compacted; returns how many are predicted right afterwards. Their
    /// x' is x before it; one that nothing moves was predicted right.
    fn attack(
        &self,
        engine: &mut Engine,
        ascent: AscentLoss,
        pgd: &Pgd,
        key: Key,
        batch: &Batch,
        places: &[u32],
    ) -> Result<usize> {
        if places.is_empty() || !pgd.moves() {
            return Ok(places.len());
        }
        let rows = self.places.slice(0..places.len());
        engine.write(&rows, places)?;
        let group = self.group.rows(0..places.len());
        batch.compact(engine, &rows, &group, ascent.needs_clean_logits())?;

        // The start is keyed by the sample, so it is the one that the sample would have had in the whole batch.
        pgd.start(engine, key, &group)?;
        pgd.ascend(engine, ascent, &group)?;
        engine.run(&ScatterRows::new(&group.perturbed, &rows, &batch.perturbed))?;

        for part in group.parts(engine.micro_batch()) {
            engine.forward(Pass::EvalSplit, &part.perturbed, &part.logits)?;
            engine.run(&part.cross_entropy(1.0))?;
        }
        let (predictions, labels) = (engine.read(&group.predictions)?, engine.read(&group.labels)?);
        Ok(predictions.iter().zip(&labels).filter(|(prediction, label)| prediction == label).count())
    }
}

impl Adversary for BulletTrain {
    fn needs_fold(&self) -> bool {
        true
    }

    fn perturb(
        &mut self,
        engine: &mut Engine,
        ascent: AscentLoss,
        key: Key,
        batch: &Batch,
    ) -> Result<AttackWork> {
        let workspace = match self.workspace.take() {
            Some(workspace) if workspace.places.len() >= batch.len() => workspace,
            _ => Workspace::alloc(engine, batch.len())?,
        };
        let groups = self.grouping.divide(engine, batch)?;
        let mut work = groups.work();
        let Groups { boundary, robust, .. } = groups;

        // x' = x to begin with, which is all that an outlier gets; a radius of zero copies.
        engine.run(&batch.perturb(Noise::Uniform { radius: 0.0 }, key))?;
        let full = self.full.at(key.epoch);
        let short = self.short(&full);
        work.steps = (boundary.len() * full.steps + robust.len() * short.steps) as u64;
        let right = if short == full {
            // One attack for both groups: micro-batches are fuller.
            let mut attacked = [boundary, robust].concat();
            attacked.sort_unstable();
            workspace.attack(engine, ascent, &full, key, batch, &attacked)?
        } else {
            workspace.attack(engine, ascent, &full, key, batch, &boundary)?
                + workspace.attack(engine, ascent, &short, key, batch, &robust)?
        };
        self.workspace = Some(workspace);
        self.grouping.learn(engine, right, batch.len())?;
        Ok(work)
    }

    fn state(&self) -> Weights {
        self.grouping.state()
    }

    fn restore(&mut self, state: &Weights) -> std::result::Result<(), String> {
        self.grouping.restore(state)
    }
}
