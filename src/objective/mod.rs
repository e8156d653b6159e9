//! What a training step minimises: the attack it needs, its loss, and the train passes behind its gradients.
//!
//! A new objective is one more file here with its row, and one line in the table [`Method`]. Most rows construct `attacked`: an
//! attack, then one of the losses of `loss`.

mod attacked;
mod awp;
mod config;
mod fgsm_rs;
mod free;
mod loss;
mod mart;
mod n_fgsm;
mod pgd_at;
mod row;
mod standard;
mod trades;

pub use config::ObjectiveConfig;
pub use row::{AttackKind, ObjectiveParts, ObjectiveRow, TrainPasses};

use crate::attack::AttackWork;
use crate::batch::Batch;
use crate::engine::{Engine, Result, Tensor};
use crate::model::Weights;
use crate::names::table;
use crate::philox::Key;

table! {
    /// What a training step minimises.
    pub enum Method: ObjectiveRow {
        Standard = standard::ROW,
        PgdAt = pgd_at::ROW,
        Trades = trades::ROW,
        Mart = mart::ROW,
        FgsmRs = fgsm_rs::ROW,
        NFgsm = n_fgsm::ROW,
        Free = free::ROW,
    }
}

/// The objective of a configuration at the start of a run.
pub fn build(parts: ObjectiveParts) -> Box<dyn Objective> {
    let config = parts.config;
    let objective = (config.method.row().new)(parts);
    match config.awp > 0.0 {
        true => Box::new(awp::Awp::new(objective, config)),
        false => objective,
    }
}

/// One way to train.
///
/// On each minibatch the loop calls [`Objective::attack`], then [`Objective::gradient`], then steps the optimizer, and
/// that [`Objective::replays`] times.
pub trait Objective {
    /// Whether [`Objective::attack`] needs the folded weights of this step.
    fn needs_fold(&self) -> bool;

    /// Optimizer steps on each minibatch.
    fn replays(&self) -> usize {
        1
    }

    /// Whether [`Objective::gradient`] also passes the clean images, and leaves their logits in the batch.
    fn has_clean_pass(&self) -> bool {
        false
    }

    /// Training goes on in an epoch of the schedule, counted from 0; at its start, or within it after a resume.
    fn begin_epoch(&mut self, _epoch: usize) {}

    /// Makes `batch.perturbed` from `batch.images`.
    fn attack(&mut self, engine: &mut Engine, key: Key, batch: &Batch) -> Result<AttackWork>;

    /// Train passes, losses and backward: leaves the gradient of the mean loss, over the shares of all ranks, in the engine, the loss and the
    /// prediction of each adversarial image in the batch, whose weights are factors on the samples. Where the weights of the
    /// network were moved for that, they still are: returns the displacement that the optimizer step takes back.
    fn gradient(&mut self, engine: &mut Engine, batch: &Batch) -> Result<Option<Tensor<f32>>>;

    /// The loss alone: per-sample losses, predictions and logit gradients (times `scale`) of the logits that the batch
    /// holds, of the clean images too where [`Objective::has_clean_pass`].
    fn loss(&self, engine: &mut Engine, batch: &Batch, scale: f32) -> Result<()>;

    /// What it carries from minibatch to minibatch, for checkpoints; empty where there is nothing.
    fn state(&self) -> Weights {
        Weights::default()
    }

    /// Takes back what [`Objective::state`] gave; says why it cannot.
    fn restore(&mut self, _state: &Weights) -> Result<(), String> {
        Ok(())
    }
}
