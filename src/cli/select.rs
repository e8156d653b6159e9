//! `secateur select`: one selection of training samples under given weights, as a file; on request with the factors of the
//! last-layer gradients it was made from, so that another program can select from the same input.
//!
//! The files are described in `prune::file`.

use std::ffi::OsString;
use std::path::PathBuf;

use super::console::Console;
use super::{
    check_selection, inputs, method, method_overrides, open_interruptible, or_set, selection_failed,
    weights_for, write,
};
use crate::engine::DeviceChoice;
use crate::prune::{Coverage, SelectionMethod, SelectionRun};
use crate::recipe::Recipe;

/// Choose the training samples that a recipe would train on next, and write them as a file
#[derive(clap::Args)]
pub struct Args {
    /// A safetensors file
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// CIFAR files: a folder or an archive, binary or Python version, where the recipe's set needs it
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// A built-in recipe's name or a TOML file: its data, objective and attack, and the constants of the method
    #[arg(long, value_name = "NAME|FILE", default_value = "quick")]
    recipe: OsString,
    /// Change a value of the recipe: --set selection.ridge=0
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How to choose [default: the recipe's selection.method]; "grand" is the gradient norm of the last layer alone, which correlates
    /// by 0.23 with GraNd, that of all layers
    #[arg(long, value_name = "NAME", value_parser = |name: &str| method(name, is_of_samples))]
    method: Option<SelectionMethod>,
    /// Share of the training samples [default: the recipe's selection.fraction]
    #[arg(long, value_name = "SHARE")]
    fraction: Option<f64>,
    /// Keys the draws and the starts of the attack [default: the recipe's seed]
    #[arg(long)]
    seed: Option<u64>,
    /// Also tell the residual on a second draw of augmentation and attack: attacks every candidate once more
    #[arg(long)]
    holdout_draw: bool,
    /// auto, cpu, cpu:bf16, cuda, cuda:N, emulated or emulated:sm_90a
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// File of the chosen indices (i64), weights (f32) and residuals (f64)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Also write logit gradients, features, labels, losses and indices of every candidate: attacks them once more
    #[arg(long, value_name = "FILE")]
    factors: Option<PathBuf>,
}

/// Whether what the method chooses is a set of samples, all of them perhaps.
fn is_of_samples(method: SelectionMethod) -> bool {
    !matches!(method.row().coverage, Coverage::FewerEpochs)
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    let recipe = recipe(&args)?;
    let mut files = inputs([&args.recipe], args.data.as_deref())?;
    files.reads("--weights", &args.weights)?;
    let out = files.writes("--out", &args.out)?;
    let factors = files.may_write("--factors", args.factors.as_ref())?;
    let file = weights_for(&recipe, &args.weights)?;
    let data = recipe.data.open_set(args.data.as_deref()).map_err(or_set)?;
    let mut engine = open_interruptible(args.device, file.network, recipe.batch, console)?;
    let engine = &mut engine;
    let device = engine.device().name.clone();
    let failed = |error| selection_failed(error, None);
    let mut run =
        SelectionRun::start(engine, &file.weights, &recipe, &data, args.seed.unwrap_or(recipe.seed))
            .map_err(failed)?;
    let chosen = run.run(console).map_err(failed)?;
    write(&out, &chosen.to_bytes())?;
    if let Some(factors) = &factors {
        write(factors, &run.factors(console).map_err(failed)?)?;
    }

    let (size, diagnosis) = (chosen.subset.len(), &chosen.diagnosis);
    console.line(format!(
        "{}: {}, {size} of {} training images ({:.1} %), {diagnosis}; {:.1} s on {device}",
        args.out.display(),
        recipe.selection.method,
        chosen.candidates,
        100.0 * size as f64 / chosen.candidates as f64,
        chosen.seconds
    ));
    if let Some(warning) = diagnosis.warning() {
        console.note(format!("warning: {warning}"));
    }
    if recipe.model.width != file.network.width {
        console.note(format!("note: the weights' width {} is used, not the recipe's", file.network.width));
    }
    Ok(())
}

/// The recipe with the method and the fraction that were asked for.
fn recipe(args: &Args) -> anyhow::Result<Recipe> {
    let mut overrides = args.set.clone();
    overrides.extend(args.method.into_iter().flat_map(method_overrides));
    if args.holdout_draw {
        overrides.push("selection.holdout_draw=true".into());
    }
    overrides.extend(args.fraction.map(|fraction| format!("selection.fraction={fraction:?}")));
    let recipe = Recipe::load(&args.recipe, &overrides)?;
    // Training would have left losses to rank by; here there are none.
    check_selection(&recipe, is_of_samples, false)?;
    Ok(recipe)
}
