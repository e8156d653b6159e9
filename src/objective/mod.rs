//! What a training step minimises: the attack it needs, its loss, and the train passes behind its gradients.
//!
//! A new objective is one more file here, one line in [`of_recipe`] and one name in `recipe::Method`. Called by the
//! training loop and by `secateur dump`. Checked by `tests/training.rs`.

mod pgd_at;

pub use pgd_at::PgdAt;

use crate::batch::Batch;
use crate::engine::{Engine, Result, Tensor};
use crate::philox::Key;
use crate::recipe::{Method, Recipe};

/// One way to train; the calls of a step come in the order of the methods.
pub trait Objective {
    /// Makes `batch.perturbed` from `batch.images`; may keep what it learns on the way (the clean logits) for
    /// [`Objective::gradient`]. The folded weights are those of this step.
    fn attack(&mut self, engine: &mut dyn Engine, key: Key, batch: &Batch) -> Result<()>;

    /// Train passes, losses and backward: leaves the gradient of the mean loss in the engine, the loss and the
    /// prediction of each adversarial image in the batch. `weights` are factors on the samples, 1 where absent.
    fn gradient(
        &mut self,
        engine: &mut dyn Engine,
        batch: &Batch,
        weights: Option<&Tensor<f32>>,
    ) -> Result<()>;
}

/// The table of objectives.
pub fn of_recipe(recipe: &Recipe) -> Box<dyn Objective> {
    match recipe.objective.method {
        Method::PgdAt => Box::new(PgdAt::of_recipe(recipe)),
    }
}
