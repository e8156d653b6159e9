//! `secateur select`: one selection of training samples under given weights, as a file; on request with the factors of the
//! last-layer gradients it was made from, so that another program can select from the same input.
//!
//! The files are described in `prune::file`. Checked by `tests/cli.rs`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;

use super::{Interrupted, catch_interrupts, images_of, inputs, or_set, weights_for, write};
use crate::batch::Batch;
use crate::console::Console;
use crate::data::order::split;
use crate::engine::{DeviceChoice, WeightSet, open};
use crate::names::Named;
use crate::ops::ImageSet;
use crate::philox::{Key, Purpose};
use crate::prune::{Candidates, Diagnosis, HoldoutDraw, Keeps, PruneError, Scores, SelectionMethod, Survey};
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
    #[arg(long, value_name = "NAME", value_parser = method)]
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
fn is_of_samples(method: &SelectionMethod) -> bool {
    !matches!(method.row().keeps, Keeps::FewerEpochs)
}

fn method(name: &str) -> Result<SelectionMethod, String> {
    SelectionMethod::from_name(name).filter(is_of_samples).ok_or_else(|| {
        let names = SelectionMethod::ALL.iter().filter(|(_, method)| is_of_samples(method));
        format!("expected {}", names.map(|(name, _)| *name).collect::<Vec<_>>().join(", "))
    })
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    let recipe = recipe(&args)?;
    let mut files = inputs([&args.recipe], args.data.as_deref())?;
    files.reads("--weights", &args.weights)?;
    let out = files.writes("--out", &args.out)?;
    let factors = files.may_write("--factors", args.factors.as_ref())?;
    let (network, weights) = weights_for(&recipe, &args.weights)?;
    let data = images_of(&recipe, args.data.as_deref()).map_err(or_set)?;
    let kept = &recipe.data;
    let split = split(&data.train, data.classes, kept.validation, kept.validation_split, recipe.seed)?
        .reserve(&data.train.labels, data.classes, recipe.selection.held_out_share(), recipe.seed);

    let mut engine = open(args.device, network, recipe.batch)?;
    let engine = &mut engine;
    let interrupt = catch_interrupts()?;
    engine.stop_on(Some(interrupt.flag()));
    engine.load_weights(&weights)?;
    let set = ImageSet::upload(&engine, &data.train.pixels, &data.train.labels)?;
    let scratch = Batch::alloc(engine, recipe.batch)?;
    let labels: Vec<u32> = split.train.iter().map(|&sample| data.train.labels[sample as usize]).collect();
    // The split stays that of the recipe's seed, whatever the draws.
    let seed = args.seed.unwrap_or(recipe.seed);
    let key = |purpose| Key { seed, purpose, epoch: 0, step: 0 };
    let candidates = Candidates {
        samples: &split.train,
        labels: &labels,
        classes: data.classes,
        held_out: &split.held_out,
        budget: recipe.selection.budget(split.train.len()),
        losses: None,
        scores: None,
        key: key(Purpose::Selection),
    };
    let mut objective = recipe.new_objective();
    let mut watch = console.watch("candidates".into(), || interrupt.requested());
    let mut survey = Survey {
        set: &set,
        objective: objective.as_mut(),
        weights: WeightSet::Live,
        augment: None,
        scratch: &scratch,
        key: key(Purpose::SelectionStart),
        watch: &mut watch,
    };
    let begin = Instant::now();
    let subset = recipe.new_selection().select(engine, &candidates, &mut survey).map_err(what_went_wrong)?;
    engine.synchronize()?;
    let seconds = begin.elapsed().as_secs_f64();
    if subset.is_empty() {
        bail!("selection: {} chose none of {} images", recipe.selection.method, candidates.samples.len());
    }
    let augment = recipe.augmentation(seed, 0);
    let holdout_draw =
        recipe.selection.holdout_draw.then(|| HoldoutDraw { augment, key: key(Purpose::AttackStart) });
    let diagnosis =
        Diagnosis::new(engine, &candidates, &split.validation, &mut survey, &subset, holdout_draw)
            .map_err(what_went_wrong)?;
    write(&out, &subset.to_bytes(&diagnosis))?;
    if let Some(factors) = &factors {
        let view = survey.last_layer(engine, candidates.samples).map_err(what_went_wrong)?;
        write(factors, &view.to_bytes(engine, candidates.samples)?)?;
    }
    console.clear();

    console.line(format!(
        "{}: {}, {} of {} training images ({:.1} %), {diagnosis}; {seconds:.1} s on {}",
        args.out.display(),
        recipe.selection.method,
        subset.len(),
        candidates.samples.len(),
        100.0 * subset.len() as f64 / candidates.samples.len() as f64,
        engine.device().name
    ));
    if let Some(warning) = diagnosis.warning() {
        console.note(format!("warning: {warning}"));
    }
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
        overrides.push(format!("selection.every={}", method.default_every(Scores::Accumulated)));
        overrides.push("selection.warm_start=0".into());
        if !method.has_fraction() {
            overrides.push("selection.fraction=1".into());
        }
    }
    if args.holdout_draw {
        overrides.push("selection.holdout_draw=true".into());
    }
    overrides.extend(args.fraction.map(|fraction| format!("selection.fraction={fraction:?}")));
    let recipe = Recipe::load(&args.recipe, &overrides)?;
    let method = recipe.selection.method;
    if !is_of_samples(&method) {
        bail!("recipe {}: selection.method = \"{method}\" selects nothing; give --method", recipe.name);
    }
    // Training would have left losses to rank by; here there are none.
    match recipe.validate_attack_on_candidates(false) {
        Ok(()) => Ok(recipe),
        Err(refusal) => bail!("recipe {}: {refusal}", recipe.name),
    }
}

fn what_went_wrong(error: PruneError) -> anyhow::Error {
    match error {
        PruneError::Engine(error) => error.into(),
        PruneError::Stopped => Interrupted(None).into(),
        PruneError::Invalid(reason) => anyhow::anyhow!("selection: {reason}"),
    }
}
