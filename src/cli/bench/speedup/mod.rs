//! `secateur bench speedup`: recipes and their controls, trained and evaluated under the same seeds, as one table.
//!
//! Each run has its folder in `--out`, that of `secateur train`. One that is finished is taken as it is, one that was broken off
//! goes on, results that are there are not measured again; so the same command continues after an interrupt, and another choice of
//! protocols or test images trains nothing. Seeds are the outer loop: a machine that grows slower slows all rows alike. Which
//! runs there are and what the table says is `measure::speedup`'s; how one is made is `one_run`'s.

mod one_run;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};

use super::super::console::Console;
use super::super::{claim, inputs, or_set, write, write_json};
use crate::data::{DataSet, SetKind};
use crate::engine::DeviceChoice;
use crate::evaluate::Protocol;
use crate::files::Output;
use crate::measure::speedup::document::Document;
use crate::measure::speedup::plan::{Plan, with_epochs};
use crate::recipe::Recipe;
use crate::train::TrainingRun;
use crate::train::run_folder::RunFolder;
use one_run::Work;

/// The table's files in --out.
const JSON: &str = "speedup.json";
const CSV: &str = "speedup.csv";

#[derive(clap::Args)]
pub struct Args {
    /// Built-in recipes or TOML files. A pruned one brings its controls: full (neither selection nor acceleration), short (all
    /// samples for fewer epochs), random and random-online; one that only attacks less brings full
    #[arg(long, value_name = "NAME|FILE,...", value_delimiter = ',', required = true)]
    recipes: Vec<OsString>,
    /// CIFAR files: a folder or an archive, binary or Python version; not needed by generated images and --dry-run
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Epochs of the schedule [default: each recipe's]. Epochs at which the learning rate drops move along
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    epochs: Option<u32>,
    /// Each row is trained once under each
    #[arg(long, value_name = "SEED,...", value_delimiter = ',', default_value = "0", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seeds: Vec<u64>,
    /// Folder of the runs and of the table; the same command goes on in it
    #[arg(long, value_name = "DIR", default_value = "runs/speedup")]
    out: PathBuf,
    /// auto, cpu, cpu:bf16, cuda, cuda:N, emulated or emulated:sm_90a
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Change a value of every recipe: --set data.train_limit=2000
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Width of the networks [default: each recipe's]
    #[arg(long, value_name = "N")]
    width: Option<usize>,
    /// What the best and the last weights are evaluated by on the test images, as in `secateur eval`
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "clean,pgd50x10,aa")]
    protocol: Vec<Protocol>,
    /// Evaluate the first N test images [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    samples: Option<u32>,
    /// Write the table, every run and prediction included, as JSON; --out holds it too, but for a --dry-run
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table as CSV; --out holds it too, but for a --dry-run
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Print what the cost model predicts for the same rows, in passes through the network, and train nothing
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    Protocol::check_list(&args.protocol).map_err(|reason| anyhow!("--protocol {reason}"))?;
    let recipes = args.recipes.iter().map(|name| recipe(args, name)).collect::<anyhow::Result<Vec<_>>>()?;
    let plan = Plan::new(&recipes, &args.seeds)?;
    let mut files = inputs(&args.recipes, args.data.as_deref())?;
    let tables = Tables {
        json: files.may_write("--json", args.json.as_ref())?,
        csv: files.may_write("--csv", args.csv.as_ref())?,
    };
    let protocols: Vec<String> = args.protocol.iter().map(|protocol| protocol.to_string()).collect();
    let mut document = Document::new(&plan, &protocols);
    if args.dry_run {
        console.line(
            "predicted, in millions of passes of an image through the network (one seed); nothing is trained",
        );
        return finish(&document, console, &tables);
    }

    // Everything that can be wrong, before the first hour of training.
    let mut sets: Vec<(Kept, DataSet)> = Vec::new();
    for entry in &plan.entries {
        for file in &entry.recipe.data.extra {
            files.reads("data.extra", file.as_ref())?;
        }
        let kept = Kept::of_recipe(&entry.recipe);
        if !sets.iter().any(|(known, _)| *known == kept) {
            let data = entry.recipe.data.open(args.data.as_deref()).map_err(or_set)?;
            if let Some(expected) = args.samples.filter(|&expected| expected as usize > data.test.len()) {
                bail!("--samples {expected}: there are {} test images", data.test.len());
            }
            sets.push((kept, data));
        }
    }
    for entry in &plan.entries {
        for &seed in &plan.seeds {
            TrainingRun::state(&args.out.join(entry.folder(seed)), &entry.seeded(seed))?;
        }
    }
    let _claim = claim(&args.out)?;
    let so_far = Tables {
        json: Some(files.writes("the table of --out", &args.out.join(JSON))?),
        csv: Some(files.writes("the table of --out", &args.out.join(CSV))?),
    };
    console.catch_interrupts()?;
    let work = Work { args, console };
    document.samples = args.samples.map(|samples| samples as usize);

    let all = plan.entries.len() * plan.seeds.len();
    for (turn, &seed) in plan.seeds.iter().enumerate() {
        for (place, entry) in plan.entries.iter().enumerate() {
            let kept = Kept::of_recipe(&entry.recipe);
            let (_, data) = sets.iter().find(|(known, _)| *known == kept).context("a set was not opened")?;
            let number = turn * plan.entries.len() + place + 1;
            let done = work.one(entry, seed, data, &format!("run {number} of {all}"))?;
            document.rows[place].runs.push(done);
            // What is done outlives an interrupt.
            document.finish();
            so_far.write(&document)?;
        }
    }
    note_devices(args, &mut document)?;
    so_far.write(&document)?;
    finish(&document, console, &tables)
}

/// Where the table is written besides the terminal.
struct Tables {
    json: Option<Output>,
    csv: Option<Output>,
}

impl Tables {
    fn write(&self, document: &Document) -> anyhow::Result<()> {
        if let Some(json) = &self.json {
            write_json(json, document)?;
        }
        if let Some(csv) = &self.csv {
            write(csv, document.to_csv().as_bytes())?;
        }
        Ok(())
    }
}

/// What decides which images a recipe is trained and evaluated on.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    set: SetKind,
    train: Option<usize>,
    test: Option<usize>,
    extra: Vec<String>,
}

impl Kept {
    fn of_recipe(recipe: &Recipe) -> Self {
        let data = &recipe.data;
        let extra = data.extra.clone();
        Self { set: data.set, train: data.train_limit, test: data.test_limit, extra }
    }
}

fn recipe(args: &Args, name: &OsStr) -> anyhow::Result<Recipe> {
    let width = args.width.map(|width| format!("model.width={width}"));
    let overrides: Vec<String> = args.set.iter().cloned().chain(width).collect();
    let recipe = Recipe::load(name, &overrides)?;
    Ok(match args.epochs {
        Some(epochs) => with_epochs(recipe, epochs as usize)?,
        None => recipe,
    })
}

/// The device of the runs, and a warning where they had several: seconds of different machines are not compared.
fn note_devices(args: &Args, document: &mut Document) -> anyhow::Result<()> {
    let mut actual: Vec<(serde_json::Value, serde_json::Value)> = Vec::new();
    for run in document.rows.iter().flat_map(|row| &row.runs) {
        for session in RunFolder::open(&args.out.join(&run.folder)).sessions()? {
            let device = (session["device"].clone(), session["threads"].clone());
            if !actual.contains(&device) {
                actual.push(device);
            }
        }
    }
    if actual.len() > 1 {
        let names: Vec<String> = actual
            .iter()
            .map(|(device, threads)| {
                format!("{} ({} threads)", device["name"].as_str().unwrap_or("unknown"), threads)
            })
            .collect();
        document.notes.push(format!(
            "the runs were made on several devices or builds, so speed-ups by seconds say little: {}",
            names.join(", ")
        ));
    }
    if let Some((device, threads)) = actual.into_iter().next() {
        document.device = device;
        document.threads = threads.as_u64().unwrap_or(0) as usize;
    }
    Ok(())
}

/// Prints the table and writes its files.
fn finish(document: &Document, console: &Console, tables: &Tables) -> anyhow::Result<()> {
    console.lines(document.lines());
    tables.write(document)
}
