//! What a training step minimises: the attack it needs, its loss, and the train passes behind its gradients.
//!
//! A new objective is one more file here, one line in [`of_recipe`] and one name in `recipe::Method`. Most are a constructor:
//! of `single`, which trains on the adversarial images alone, or of `paired`, which trains on both. Called by the training
//! loop and by `secateur dump`. Checked by `tests/training.rs` and `tests/methods.rs`.

mod fgsm_rs;
mod free;
mod mart;
mod n_fgsm;
mod paired;
mod passes;
mod pgd_at;
mod single;
mod standard;
mod trades;

use crate::attack::AttackWork;
use crate::batch::Batch;
use crate::engine::{Engine, Result, Tensor};
use crate::model::Weights;
use crate::philox::Key;
use crate::recipe::{Method, Recipe};

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

    /// Makes `batch.perturbed` from `batch.images`.
    fn attack(&mut self, engine: &mut Engine, key: Key, batch: &Batch) -> Result<AttackWork>;

    /// Train passes, losses and backward: leaves the gradient of the mean loss in the engine, the loss and the
    /// prediction of each adversarial image in the batch. `weights` are factors on the samples, 1 where absent.
    fn gradient(&mut self, engine: &mut Engine, batch: &Batch, weights: Option<&Tensor<f32>>) -> Result<()>;

    /// The loss alone: per-sample losses, predictions and logit gradients (times `scale`) of the logits that the batch
    /// holds, of the clean images too where [`Objective::has_clean_pass`].
    fn loss(
        &self,
        engine: &mut Engine,
        batch: &Batch,
        scale: f32,
        weights: Option<&Tensor<f32>>,
    ) -> Result<()>;

    /// What it carries from minibatch to minibatch, for checkpoints; empty where there is nothing.
    fn state(&self) -> Weights {
        Weights::default()
    }

    /// Takes back what [`Objective::state`] gave; says why it cannot.
    fn restore(&mut self, _state: &Weights) -> Result<(), String> {
        Ok(())
    }
}

/// The table of objectives.
pub fn of_recipe(recipe: &Recipe) -> Box<dyn Objective> {
    match recipe.objective.method {
        Method::Standard => Box::new(standard::of_recipe(recipe)),
        Method::PgdAt => Box::new(pgd_at::of_recipe(recipe)),
        Method::Trades => Box::new(trades::of_recipe(recipe)),
        Method::Mart => Box::new(mart::of_recipe(recipe)),
        Method::FgsmRs => Box::new(fgsm_rs::of_recipe(recipe)),
        Method::NFgsm => Box::new(n_fgsm::of_recipe(recipe)),
        Method::Free => Box::new(free::Free::of_recipe(recipe)),
    }
}
