//! `secateur dump`: one training step without augmentation, as tensors that any other implementation can check: those of
//! `train::step_dump`.

use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::console::Console;
use super::{inputs, or_set, weights_for, write};
use crate::data::pixel_order::to_pixels;
use crate::engine::{DeviceChoice, open};
use crate::model::Weights;
use crate::model::layers::IMAGE_SIDE;
use crate::recipe::Recipe;
use crate::train::step_dump::dump_step;

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
    let file = weights_for(&recipe, &args.weights)?;
    let data = recipe.data.open_set(args.data.as_deref()).map_err(or_set)?;
    let range = args.samples.clone();
    if range.end > data.train.len() {
        bail!("--samples {}..{}: there are {} training images", range.start, range.end, data.train.len());
    }
    let given = args.x_adv.as_deref().map(|path| given_images(path, range.len())).transpose()?;

    let mut engine = open(args.device, file.network, range.len())?;
    let engine = &mut engine;
    engine.load_weights(&file.weights)?;
    let step = dump_step(engine, &recipe, &data, range.clone(), given.as_deref())?;

    write(&out, &step.to_bytes())?;
    let loss = step.tensors["loss"].values[0];
    console.line(format!(
        "{}: training images {}..{}, loss {loss:.6}, on {}",
        args.out.display(),
        range.start,
        range.end,
        engine.device().name
    ));
    if recipe.model.width != file.network.width {
        console.note(format!("note: the weights' width {} is used, not the recipe's", file.network.width));
    }
    Ok(())
}

/// The tensor `x_adv` of a file, as HWC pixels.
fn given_images(path: &Path, count: usize) -> anyhow::Result<Vec<f32>> {
    let file = Weights::read(path)?;
    let expected = [count, 3, IMAGE_SIDE, IMAGE_SIDE];
    let values = file.get("x_adv", &expected).with_context(|| path.display().to_string())?;
    if let Some(position) = values.iter().position(|value| !(0.0..=1.0).contains(value)) {
        bail!("{}: x_adv[{position}] = {}, expected 0 to 1", path.display(), values[position]);
    }
    Ok(to_pixels(values))
}
