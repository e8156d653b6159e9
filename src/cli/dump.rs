//! `secateur dump`: one training step without augmentation, as tensors that any other implementation can check.
//!
//! The file (safetensors, all F32, images N x 3 x 32 x 32 as PyTorch wants them) holds:
//!
//! | tensor | what |
//! |---|---|
//! | `x`, `y` | clean images in [0, 1]; labels |
//! | `x_adv` | adversarial images: attacked here, or those of `--x-adv` |
//! | `logits_eval` | logits of x_adv before the step, BatchNorm with running statistics |
//! | `logits` | logits of x_adv in the train pass, BatchNorm with the batch's statistics |
//! | `logits_clean` | the same of x, where the objective passes it too (TRADES, MART) |
//! | `losses`, `loss` | of each sample; their mean |
//! | `grad.NAME` | gradient of the mean loss with respect to parameter NAME |
//! | `after.NAME` | running statistic NAME behind the train pass |
//!
//! Checked by `tests/cli.rs`, and against PyTorch by `scripts/compare-dump.py`.

use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{images_of, inputs, or_set, weights_for, write};
use crate::attack::BatchNorm;
use crate::batch::Batch;
use crate::console::Console;
use crate::engine::{DeviceChoice, Engine, Pass, WeightSet, open};
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use crate::model::{ParameterKind, Weights};
use crate::ops::{GatherImages, ImageSet};
use crate::philox::{Key, Purpose};
use crate::recipe::Recipe;

/// Write one training step, without augmentation, as tensors to compare with
#[derive(clap::Args)]
pub struct Args {
    /// A safetensors file
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// CIFAR files: a folder or an archive, binary or Python version, where the recipe's set needs it
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// A built-in recipe's name or a TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "quick")]
    recipe: OsString,
    /// Change a value of the recipe: --set attack.steps=7
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Training images of the batch, the end not included
    #[arg(long, value_name = "FROM..TO", default_value = "0..8", value_parser = range)]
    samples: Range<usize>,
    /// Take the tensor `x_adv` of this safetensors file instead of attacking
    #[arg(long, value_name = "FILE")]
    x_adv: Option<PathBuf>,
    /// auto, cpu, cpu:bf16, cuda, cuda:N, emulated or emulated:sm_90a
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

fn range(text: &str) -> Result<Range<usize>, String> {
    let parse = || {
        let (from, to) = text.split_once("..")?;
        let range = from.parse().ok()?..to.parse().ok()?;
        (range.start < range.end && range.end <= u32::MAX as usize).then_some(range)
    };
    parse().ok_or_else(|| "expected FROM..TO with FROM < TO, such as 0..8".into())
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    let recipe = Recipe::load(&args.recipe, &args.set)?;
    let mut files = inputs([&args.recipe], args.data.as_deref())?;
    files.reads("--weights", &args.weights)?;
    args.x_adv.iter().try_for_each(|path| files.reads("--x-adv", path))?;
    let out = files.writes("--out", &args.out)?;
    let (network, weights) = weights_for(&recipe, &args.weights)?;
    let data = images_of(&recipe, args.data.as_deref()).map_err(or_set)?;
    let range = args.samples.clone();
    if range.end > data.train.len() {
        bail!("--samples {}..{}: there are {} training images", range.start, range.end, data.train.len());
    }
    let given = args.x_adv.as_deref().map(|path| given_images(path, range.len())).transpose()?;

    let mut engine = open(args.device, network, range.len())?;
    let engine = &mut engine;
    engine.load_weights(&weights)?;
    let set = ImageSet::upload(&engine, &data.train.pixels, &data.train.labels)?;
    let batch = Batch::alloc(engine, range.len())?;
    let samples: Vec<u32> = range.clone().map(|sample| sample as u32).collect();
    engine.write(&batch.samples, &samples)?;
    engine.run(&GatherImages {
        set: &set,
        samples: &batch.samples,
        augment: None,
        images: &batch.images,
        labels: &batch.labels,
    })?;
    let step = step(engine, &recipe, given.as_deref(), &batch)?;

    write(&out, &step.to_bytes())?;
    let loss = step.tensors["loss"].values[0];
    console.line(format!(
        "{}: training images {}..{}, loss {loss:.6}, on {}",
        args.out.display(),
        range.start,
        range.end,
        engine.device().name
    ));
    if recipe.model.width != network.width {
        console.note(format!("note: the weights' width {} is used, not the recipe's", network.width));
    }
    Ok(())
}

/// One step on the gathered batch; everything that it computes, by the names of the table above.
fn step(
    engine: &mut Engine,
    recipe: &Recipe,
    given: Option<&[f32]>,
    batch: &Batch,
) -> anyhow::Result<Weights> {
    let count = batch.len();
    let classes = engine.network().classes;
    let mut objective = recipe.new_objective();
    engine.fold_batch_norm(WeightSet::Live)?;
    match given {
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
    step.insert("x", &image_shape, planar(&engine.read(&batch.images)?));
    // Before the gradient: that of Free-AT moves the images.
    step.insert("x_adv", &image_shape, planar(&engine.read(&batch.perturbed)?));
    objective.gradient(engine, batch, None)?;
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

/// The tensor `x_adv` of a file, as NHWC.
fn given_images(path: &Path, count: usize) -> anyhow::Result<Vec<f32>> {
    let file = Weights::read(path)?;
    let wanted = [count, 3, IMAGE_SIDE, IMAGE_SIDE];
    let values = file.get("x_adv", &wanted).with_context(|| path.display().to_string())?;
    if let Some(position) = values.iter().position(|value| !(0.0..=1.0).contains(value)) {
        bail!("{}: x_adv[{position}] = {}, expected 0 to 1", path.display(), values[position]);
    }
    Ok(interleaved(values))
}

/// NHWC to NCHW.
pub(super) fn planar(images: &[f32]) -> Vec<f32> {
    let image = |image: &[f32]| -> Vec<f32> {
        (0..3).flat_map(|channel| image.iter().skip(channel).step_by(3).copied()).collect()
    };
    images.chunks_exact(IMAGE_LEN).flat_map(image).collect()
}

/// NCHW to NHWC.
fn interleaved(images: &[f32]) -> Vec<f32> {
    let plane = IMAGE_LEN / 3;
    let image = |image: &[f32]| -> Vec<f32> {
        (0..IMAGE_LEN).map(|position| image[position % 3 * plane + position / 3]).collect()
    };
    images.chunks_exact(IMAGE_LEN).flat_map(image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_inverse_and_put_channels_where_they_belong() {
        let planes: Vec<f32> = (0..2 * IMAGE_LEN).map(|i| i as f32).collect();
        let images = interleaved(&planes);
        // Pixel (0, 1) of image 0: the second value of each plane.
        assert_eq!(images[3..6], [1.0, 1025.0, 2049.0]);
        assert_eq!(planar(&images), planes);
    }
}
