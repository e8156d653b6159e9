//! `secateur bench selection-error`: how far the gradient of each method's subset is from that of all samples, as a table.
//!
//! The network is a weights file, or trained by the recipe on all samples first, in a run folder of its own. The table is
//! written after each row, and the same command goes on where it was broken off. What is measured is
//! `measure::selection_error`'s.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, bail};
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::super::console::Console;
use super::super::{
    Interrupted, at, claim, inputs, open_interruptible, or_set, resume_hint, selection_failed, weights_for,
};
use super::options::filter;
use crate::data::DataSet;
use crate::digest::sha256;
use crate::engine::DeviceChoice;
use crate::files::{self, Existing, Folder, limit};
use crate::measure::selection_error::{RULES, Row, Rule, Subject, lines};
use crate::progress::watch;
use crate::recipe::Recipe;
use crate::train::run_folder::State;
use crate::train::{self, TrainError, TrainingRun, TrainingSetup};

/// The version of the JSON.
const VERSION: u32 = 1;
const JSON: &str = "selection-error.json";
const NETWORK: &str = "network";

#[derive(clap::Args)]
pub struct Args {
    /// A built-in recipe's name or a TOML file: images, objective and attack, and the training of the network
    #[arg(long, value_name = "NAME|FILE", default_value = "cifar10-selection-error")]
    recipe: OsString,
    /// Change a value of the recipe: --set attack.steps=3
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// CIFAR files: a folder or an archive, binary or Python version; not needed by generated images
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// The network whose gradients are compared [default: trained by the recipe on all samples]
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Share of the samples that a subset holds, where its method does not decide
    #[arg(long, value_name = "SHARE", default_value_t = 0.263)]
    fraction: f64,
    /// Fresh draws of augmentation and attack, each of which attacks every sample, and selections of a random rule that looks at
    /// the samples
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    draws: u32,
    /// Only rows whose name this regular expression finds
    #[arg(long, value_name = "REGEX", default_value = "", value_parser = filter)]
    filter: Regex,
    /// Folder of the network and the table; the same command goes on in it
    #[arg(long, value_name = "DIR", default_value = "runs/selection-error")]
    out: PathBuf,
    /// auto, cpu, cpu:bf16, cuda, cuda:N, emulated or emulated:sm_90a
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

/// Everything of one table.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Document {
    /// [`VERSION`].
    secateur_selection_error: u32,
    command: Vec<String>,
    /// Version and profile of the program.
    build: String,
    /// As in environment.json.
    device: serde_json::Value,
    threads: usize,
    subject: About,
    rows: Vec<Row>,
}

/// What the rows are of: a table goes on where all of it is the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct About {
    /// Resolved.
    recipe: String,
    /// SHA-256 of the images and labels.
    data: String,
    /// SHA-256 of the weights' file.
    weights: String,
    width: usize,
    candidates: usize,
    held_out: usize,
    fraction: f64,
    draws: u32,
}

pub fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    let recipe = network_recipe(args)?;
    let rows = RULES
        .iter()
        .map(|rule| Ok((rule, rule.recipe(&args.recipe, &args.set, args.fraction)?)))
        .collect::<Result<Vec<(&Rule, Recipe)>, String>>()
        .map_err(anyhow::Error::msg)?;
    // Whatever the filter, every row has the same samples: what the others validate with, Adv-GLISTER divides.
    let held_out_share = rows.iter().map(|(_, recipe)| recipe.selection.held_out_share()).fold(0.0, f64::max);
    let rows: Vec<_> = rows.into_iter().filter(|(rule, _)| args.filter.is_match(rule.name)).collect();
    if rows.is_empty() {
        bail!("--filter {}: matches no row", args.filter);
    }
    for (rule, recipe) in &rows {
        if let Err(refusal) = recipe.validate_attack_on_candidates(false) {
            bail!("{}: {refusal}", rule.name);
        }
    }
    let mut files = inputs([&args.recipe], args.data.as_deref())?;
    if let Some(weights) = &args.weights {
        files.reads("--weights", weights)?;
    }
    let data = recipe.data.open_set(args.data.as_deref()).map_err(or_set)?;
    let (out, _lock) = claim(&args.out)?;
    console.catch_interrupts()?;

    let weights = match &args.weights {
        Some(path) => path.clone(),
        None => trained(args, &recipe, &data, console)?,
    };
    let file = weights_for(&recipe, &weights)?;
    let split = recipe.split_holding_out(&data, held_out_share)?;
    let labels = bytemuck::cast_slice::<u32, u8>(&data.train.labels);
    let about = About {
        recipe: recipe.to_toml(),
        data: sha256([sha256(&data.train.pixels), sha256(labels)].concat().as_bytes()),
        weights: file.sha256,
        width: file.network.width,
        candidates: split.train.len(),
        held_out: split.held_out.len(),
        fraction: args.fraction,
        draws: args.draws,
    };
    let mut engine = open_interruptible(args.device, file.network, recipe.batch, console)?;
    engine.load_weights(&file.weights)?;
    let device = serde_json::json!(engine.device());
    let known = known(&out, &about, &device)?;
    let missing = rows.iter().any(|(rule, _)| known.iter().all(|row| row.name != rule.name));
    let mut document = Document {
        secateur_selection_error: VERSION,
        command: std::env::args().collect(),
        build: format!("secateur {}", env!("CARGO_PKG_VERSION")),
        device,
        threads: rayon::current_num_threads(),
        subject: about,
        rows: known,
    };
    if missing {
        let failed = |error| selection_failed(error, Some(resume_hint(&args.out)));
        let attacks = &mut watch(console, "attacks on the candidates".into());
        let mut subject =
            Subject::new(&mut engine, &recipe, &data, &split, args.draws, attacks).map_err(failed)?;
        for (rule, recipe) in &rows {
            if document.rows.iter().any(|row| row.name == rule.name) {
                continue;
            }
            let selections = &mut watch(console, rule.name.into());
            let row = subject.row(rule, recipe, selections).map_err(failed)?;
            document.rows.push(row);
            let place = |row: &Row| RULES.iter().position(|rule| rule.name == row.name);
            document.rows.sort_by_key(place);
            at(&args.out.join(JSON), out.write(JSON, &files::json(&document), Existing::Replace))?;
        }
        console.clear();
    }
    let About { candidates, width, draws, .. } = document.subject;
    console.line(format!(
        "error of the subset's gradient, relative to that of all {candidates} images, width {width}; mean and standard \
         deviation over {draws} fresh draws and the selections of random rules"
    ));
    let shown: Vec<Row> = document.rows.into_iter().filter(|row| args.filter.is_match(&row.name)).collect();
    console.lines(lines(&shown));
    Ok(())
}

/// The recipe without its selection.
fn network_recipe(args: &Args) -> anyhow::Result<Recipe> {
    let whole = ["method=full", "fraction=1", "every=0", "warm_start=0"];
    let whole = whole.iter().map(|set| format!("selection.{set}"));
    let set: Vec<String> = args.set.iter().cloned().chain(whole).collect();
    Ok(Recipe::load(&args.recipe, &set)?)
}

/// The weights of the last epoch of a training on all samples, in the run folder of this table.
fn trained(args: &Args, recipe: &Recipe, data: &DataSet, console: &Console) -> anyhow::Result<PathBuf> {
    let path = args.out.join(NETWORK);
    if TrainingRun::state(&path, recipe)? != State::Finished {
        console.line(format!(
            "{}: {} epochs on all samples, in {}",
            recipe.name,
            recipe.epoch_schedule().epochs(),
            path.display()
        ));
        let mut engine = open_interruptible(args.device, train::network(recipe), recipe.batch, console)?;
        let setup = TrainingSetup { recipe, data, data_path: args.data.as_deref() };
        match TrainingRun::start_or_resume(&mut engine, setup, &path)?.run(console) {
            Err(TrainError::Interrupted { .. }) => bail!(Interrupted(Some(resume_hint(&args.out)))),
            done => done.map(drop)?,
        }
    }
    Ok(path.join("last.safetensors"))
}

/// The rows of a table of the same subject; refuses another one's.
fn known(out: &Folder, about: &About, device: &serde_json::Value) -> anyhow::Result<Vec<Row>> {
    let path = out.path().join(JSON);
    if !at(&path, out.has(JSON))? {
        return Ok(Vec::new());
    }
    let bytes = at(&path, out.read(JSON, limit::JSON))?;
    let found: Document = serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
    if found.secateur_selection_error != VERSION || found.subject != *about || found.device != *device {
        bail!(
            "{}: a table of another recipe, network, device or number of draws; give the same options, or another --out",
            path.display()
        );
    }
    Ok(found.rows)
}
