//! One training step without augmentation, as tensors that any other implementation can check.
//!
//! All F32, images N x 3 x 32 x 32 as PyTorch wants them:
//!
//! | tensor | what |
//! |---|---|
//! | `x`, `y` | clean images in [0, 1]; labels |
//! | `x_adv` | adversarial images: attacked here, or given |
//! | `logits_eval` | logits of x_adv before the step, BatchNorm with running statistics |
//! | `logits` | logits of x_adv in the train pass, BatchNorm with the batch's statistics |
//! | `logits_clean` | the same of x, where the objective passes it too (TRADES, MART) |
//! | `losses`, `loss` | of each sample; their mean |
//! | `grad.NAME` | gradient of the mean loss with respect to parameter NAME |
//! | `after.NAME` | running statistic NAME after the train pass |

use std::ops::Range;

use crate::attack::BatchNorm;
use crate::batch::Batch;
use crate::data::DataSet;
use crate::data::pixel_order::to_planes;
use crate::engine::{self, Engine, Pass, WeightSet};
use crate::model::layers::IMAGE_SIDE;
use crate::model::{ParameterKind, Weights};
use crate::ops::ImageSet;
use crate::philox::{Key, Purpose};
use crate::recipe::Recipe;

/// A step of `recipe` on training images `range` with the engine's weights. Takes `x_adv` (HWC pixels of all images) where it is
/// given instead of attacking.
///
/// # Errors
/// Those of the engine.
pub fn dump_step(
    engine: &mut Engine,
    recipe: &Recipe,
    data: &DataSet,
    range: Range<usize>,
    x_adv: Option<&[f32]>,
) -> engine::Result<Weights> {
    let set = ImageSet::upload(engine, &data.train.pixels, &data.train.labels)?;
    let samples: Vec<u32> = range.map(|sample| sample as u32).collect();
    let batch = &Batch::alloc(engine, samples.len())?.gathered(engine, &set, &samples, None)?;
    let count = batch.len();
    let classes = engine.network().classes;
    let mut objective = recipe.new_objective();
    engine.fold_batch_norm(WeightSet::Live)?;
    match x_adv {
        Some(images) => engine.write(&batch.perturbed, images)?,
        None => {
            let key = Key { seed: recipe.seed, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
            objective.attack(engine, key, batch)?;
        }
    }
    // An attack in train mode has moved the running statistics.
    if recipe.attack.batch_norm == BatchNorm::Train {
        engine.fold_batch_norm(WeightSet::Live)?;
    }
    let mut step = Weights::default();
    engine.forward(Pass::Eval, &batch.perturbed, &batch.logits)?;
    step.insert("logits_eval", &[count, classes], engine.read(&batch.logits)?);

    let image_shape = [count, 3, IMAGE_SIDE, IMAGE_SIDE];
    step.insert("x", &image_shape, to_planes(&engine.read(&batch.images)?));
    // Before the gradient: that of Free-AT moves the images.
    step.insert("x_adv", &image_shape, to_planes(&engine.read(&batch.perturbed)?));
    objective.gradient(engine, batch)?;
    let labels = engine.read(&batch.labels)?;
    step.insert("y", &[count], labels.iter().map(|&label| label as f32).collect());
    step.insert("logits", &[count, classes], engine.read(&batch.logits)?);
    if objective.has_clean_pass() {
        step.insert("logits_clean", &[count, classes], engine.read(&batch.clean_logits)?);
    }
    let losses = engine.read(&batch.losses)?;
    let mean = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / count as f64;
    step.insert("losses", &[count], losses);
    step.insert("loss", &[1], vec![mean as f32]);
    for (name, gradient) in engine.weights(WeightSet::Gradients)?.tensors {
        step.insert(format!("grad.{name}"), &gradient.shape, gradient.values);
    }
    let after = engine.weights(WeightSet::Live)?;
    for parameter in engine.network().parameters() {
        if matches!(parameter.kind, ParameterKind::BnRunningMean | ParameterKind::BnRunningVar) {
            let tensor = &after.tensors[&parameter.name];
            step.insert(format!("after.{}", parameter.name), &tensor.shape, tensor.values.clone());
        }
    }
    Ok(step)
}
