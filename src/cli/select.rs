//! `secateur select`: one selection of training samples under given weights, as a file; on request with the factors of the
//! last-layer gradients it was made from, so that another program can select from the same input.
//!
//! The files are described in `prune::file`. Checked by `tests/cli.rs`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::bail;

use super::{Interrupted, at, catch_interrupts, images_of, weights_for, writable};
use crate::batch::Batch;
use crate::console::Console;
use crate::data::order::split;
use crate::engine::{DeviceChoice, open};
use crate::files::{Existing, write_atomic};
use crate::names::Named;
use crate::objective;
use crate::philox::{Key, Purpose};
use crate::prune::{self, Candidates, PruneError, Survey};
use crate::recipe::{Recipe, SelectionMethod};

/// Choose the training samples that a recipe would train on next, and write them as a file
#[derive(clap::Args)]
pub struct Args {
    /// A safetensors file
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// Folder of the CIFAR binary files, where the recipe's set needs it
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A built-in recipe's name or a TOML file: its data, objective and attack, and the constants of the method
    #[arg(long, value_name = "NAME|FILE", default_value = "quick")]
    recipe: String,
    /// Change a value of the recipe: --set selection.ridge=0
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How to choose [default: the recipe's selection.method]
    #[arg(long, value_name = "NAME", value_parser = method)]
    method: Option<SelectionMethod>,
    /// Share of the training samples [default: the recipe's selection.fraction]
    #[arg(long, value_name = "SHARE")]
    fraction: Option<f64>,
    /// Keys the draws and the starts of the attack [default: the recipe's seed]
    #[arg(long)]
    seed: Option<u64>,
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

fn method(name: &str) -> Result<SelectionMethod, String> {
    let selects = |method: &SelectionMethod| *method != SelectionMethod::Short;
    SelectionMethod::from_name(name).filter(selects).ok_or_else(|| {
        let names = SelectionMethod::ALL.iter().filter(|(_, method)| selects(method));
        format!("expected {}", names.map(|(name, _)| *name).collect::<Vec<_>>().join(", "))
    })
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    let recipe = recipe(&args)?;
    let (network, weights) = weights_for(&recipe, &args.weights)?;
    for out in [Some(&args.out), args.factors.as_ref()].into_iter().flatten() {
        writable(out)?;
    }
    if args.factors.as_ref() == Some(&args.out) {
        bail!("--factors {}: also the file of --out", args.out.display());
    }
    let data = images_of(&recipe, args.data.as_deref())?;
    let kept = &recipe.data;
    let split = split(&data.train, data.classes, kept.validation, kept.validation_split, recipe.seed)?;

    let mut engine = open(args.device, network, recipe.batch)?;
    let engine = engine.as_mut();
    let interrupt = catch_interrupts()?;
    engine.load_weights(&weights)?;
    let set = engine.upload_images(&data.train.pixels, &data.train.labels)?;
    let scratch = Batch::alloc(engine, recipe.batch)?;
    let labels: Vec<u32> = split.train.iter().map(|&sample| data.train.labels[sample as usize]).collect();
    // The split stays that of the recipe's seed, whatever the draws.
    let seed = args.seed.unwrap_or(recipe.seed);
    let key = |purpose| Key { seed, purpose, epoch: 0, step: 0 };
    let candidates = Candidates {
        samples: &split.train,
        labels: &labels,
        classes: data.classes,
        held_out: &split.validation,
        budget: recipe.selection.budget(split.train.len()),
        losses: None,
        key: key(Purpose::Selection),
    };
    let mut objective = objective::of_recipe(&recipe);
    let mut watch = console.watch("candidates".into(), || interrupt.requested());
    let mut survey = Survey {
        set: &set,
        objective: objective.as_mut(),
        scratch: &scratch,
        key: key(Purpose::SelectionStart),
        watch: &mut watch,
    };
    let begin = Instant::now();
    let subset =
        prune::of_recipe(&recipe).select(engine, &candidates, &mut survey).map_err(what_went_wrong)?;
    engine.synchronize()?;
    let seconds = begin.elapsed().as_secs_f64();
    write(&args.out, &subset.to_bytes())?;
    if let Some(path) = &args.factors {
        let view = survey.last_layer(engine, candidates.samples).map_err(what_went_wrong)?;
        write(path, &view.to_bytes(engine, candidates.samples)?)?;
    }
    console.clear();

    let residual = subset.residuals.last().map_or(String::new(), |last| format!(", residual {last:.4}"));
    console.line(format!(
        "{}: {}, {} of {} training images ({:.1} %){residual}, {seconds:.1} s on {}",
        args.out.display(),
        recipe.selection.method,
        subset.len(),
        candidates.samples.len(),
        100.0 * subset.len() as f64 / candidates.samples.len() as f64,
        engine.device().name
    ));
    if recipe.model.width != network.width {
        console.note(format!("note: the weights' width {} is used, not the recipe's", network.width));
    }
    Ok(())
}

/// The recipe with the method and the fraction that were asked for; when to select is of no matter here.
fn recipe(args: &Args) -> anyhow::Result<Recipe> {
    let mut overrides = args.set.clone();
    if let Some(method) = args.method {
        overrides.push(format!("selection.method={method}"));
        overrides.push(format!("selection.every={}", method.default_every()));
        overrides.push("selection.warm_start=0".into());
        if !method.has_fraction() {
            overrides.push("selection.fraction=1".into());
        }
    }
    overrides.extend(args.fraction.map(|fraction| format!("selection.fraction={fraction:?}")));
    let recipe = Recipe::load(&args.recipe, &overrides)?;
    if recipe.selection.method == SelectionMethod::Short {
        bail!("recipe {}: selection.method = \"short\" selects nothing; give --method", recipe.name);
    }
    // Training would have left losses to rank by; here there are none.
    if let Some(refusal) = recipe.selection.attack_refused(&recipe, false) {
        bail!("recipe {}: {} = \"{}\", expected {}", recipe.name, refusal.key, refusal.met, refusal.wanted);
    }
    Ok(recipe)
}

fn what_went_wrong(error: PruneError) -> anyhow::Error {
    match error {
        PruneError::Engine(error) => error.into(),
        PruneError::Stopped => Interrupted(None).into(),
        PruneError::Invalid(reason) => anyhow::anyhow!("selection: {reason}"),
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    at(path, write_atomic(path, bytes, Existing::Replace))
}
