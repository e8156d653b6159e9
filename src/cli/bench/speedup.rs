//! `secateur bench speedup`: recipes and their controls, trained and judged under the same seeds, as one table.
//!
//! Each run has its folder in `--out`, that of `secateur train`. One that is finished is taken as it is, one that was broken off
//! goes on, verdicts that are there are not made again; so the same command continues after an interrupt, and another choice of
//! protocols or test images trains nothing. Seeds are the outer loop: a machine that grows slower meets all rows alike. Which
//! runs there are and what the table says is `measure::speedup`'s. Checked by `tests/bench_speedup.rs`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::super::train::{begin_session, differing_keys};
use super::super::{Interrupted, at, catch_interrupts, writable};
use crate::batch::Batch;
use crate::console::Console;
use crate::data::{DataSet, SetKind};
use crate::engine::{DeviceChoice, Engine, open};
use crate::evaluate::Protocol;
use crate::files::{Existing, write_atomic};
use crate::measure::speedup::document::{Document, Run};
use crate::measure::speedup::judge::{Court, JudgeError};
use crate::measure::speedup::plan::{Entry, Plan, with_epochs};
use crate::recipe::Recipe;
use crate::train::result::TestAccuracy;
use crate::train::run_folder::{RunFolder, State};
use crate::train::{self, TrainError};

/// The table's files in --out.
const JSON: &str = "speedup.json";
const CSV: &str = "speedup.csv";

#[derive(clap::Args)]
pub struct Args {
    /// Built-in recipes or TOML files. A pruned one brings its controls: full (neither selection nor acceleration), short (all
    /// samples for fewer epochs), random and random-online; one that only attacks less brings full
    #[arg(long, value_name = "NAME|FILE,...", value_delimiter = ',', required = true)]
    recipes: Vec<String>,
    /// Folder of the CIFAR binary files; not needed by generated images and --dry-run
    #[arg(long, value_name = "DIR")]
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
    /// auto, cpu, cuda, cuda:N, emulated or emulated:sm_90a
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Change a value of every recipe: --set data.train_limit=2000
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Width of the networks [default: each recipe's]
    #[arg(long, value_name = "N")]
    width: Option<usize>,
    /// What the best and the last weights are judged by on the test images, as in `secateur eval`
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "clean,pgd50x10,aa")]
    protocol: Vec<Protocol>,
    /// Judge on the first so many test images [default: all]
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

/// Where a run stands before the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Fresh,
    BrokenOff,
    Finished,
}

/// What all runs share.
struct Work<'a> {
    args: &'a Args,
    console: &'a Console,
    stop: &'a dyn Fn() -> bool,
}

pub fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    if let Some((at, twice)) =
        args.protocol.iter().enumerate().find(|(at, protocol)| args.protocol[..*at].contains(protocol))
    {
        bail!("--protocol {twice}: named twice (place {}), expected each protocol once", at + 1);
    }
    let recipes = args.recipes.iter().map(|name| recipe(args, name)).collect::<anyhow::Result<Vec<_>>>()?;
    let plan = Plan::new(&recipes, &args.seeds)?;
    for path in args.json.iter().chain(&args.csv) {
        writable(path)?;
    }
    let protocols: Vec<String> = args.protocol.iter().map(|protocol| protocol.to_string()).collect();
    let mut document = Document::new(&plan, &protocols);
    if args.dry_run {
        console.line(
            "predicted, in millions of passes of an image through the network (one seed); nothing is trained",
        );
        return finish(args, &document, console, None);
    }

    // Everything that can be wrong, before the first hour of training.
    let mut sets: Vec<(Kept, DataSet)> = Vec::new();
    for entry in &plan.entries {
        let kept = Kept::of_recipe(&entry.recipe);
        if !sets.iter().any(|(known, _)| *known == kept) {
            let data = DataSet::open(kept.set, args.data.as_deref(), kept.train, kept.test)?;
            if let Some(wanted) = args.samples.filter(|&wanted| wanted as usize > data.test.len()) {
                bail!("--samples {wanted}: there are {} test images", data.test.len());
            }
            sets.push((kept, data));
        }
    }
    for entry in &plan.entries {
        for &seed in &plan.seeds {
            standing(&args.out.join(entry.folder(seed)), &entry.seeded(seed))?;
        }
    }
    at(&args.out, std::fs::create_dir_all(&args.out))?;
    for name in [JSON, CSV] {
        writable(&args.out.join(name))?;
    }
    let interrupt = catch_interrupts()?;
    let stop = || interrupt.requested();
    let work = Work { args, console, stop: &stop };

    let all = plan.entries.len() * plan.seeds.len();
    for (turn, &seed) in plan.seeds.iter().enumerate() {
        for (place, entry) in plan.entries.iter().enumerate() {
            let kept = Kept::of_recipe(&entry.recipe);
            let (_, data) = sets.iter().find(|(known, _)| *known == kept).context("a set was not opened")?;
            let number = turn * plan.entries.len() + place + 1;
            let done = work.one(entry, seed, data, &format!("run {number} of {all}"))?;
            document.rows[place].runs.push(done);
        }
    }
    note_devices(args, &mut document)?;
    document.samples = args.samples.map(|samples| samples as usize);
    document.finish();
    finish(args, &document, console, Some(&args.out))
}

/// What decides which images a recipe is trained and judged on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kept {
    set: SetKind,
    train: Option<usize>,
    test: Option<usize>,
}

impl Kept {
    fn of_recipe(recipe: &Recipe) -> Self {
        let data = &recipe.data;
        Self { set: data.set, train: data.train_limit, test: data.test_limit }
    }
}

fn recipe(args: &Args, name: &str) -> anyhow::Result<Recipe> {
    let width = args.width.map(|width| format!("model.width={width}"));
    let overrides: Vec<String> = args.set.iter().cloned().chain(width).collect();
    let recipe = Recipe::load(name, &overrides)?;
    Ok(match args.epochs {
        Some(epochs) => with_epochs(recipe, epochs as usize)?,
        None => recipe,
    })
}

/// Where the run in `path` stands; refuses one of another recipe.
fn standing(path: &Path, recipe: &Recipe) -> anyhow::Result<Standing> {
    if RunFolder::state(path)? == State::Fresh {
        return Ok(Standing::Fresh);
    }
    let file = path.join("recipe.toml");
    let met = Recipe::load(&file.to_string_lossy(), &[])?;
    if met != *recipe {
        let keys = differing_keys(&recipe.to_toml(), &met.to_toml());
        bail!(
            "{}: a run of another recipe ({keys}); give the same --set and --epochs, or another --out",
            file.display()
        );
    }
    let finished = path.join("result.json").is_file() && path.join("last.safetensors").is_file();
    Ok(if finished { Standing::Finished } else { Standing::BrokenOff })
}

impl Work<'_> {
    /// Trains and judges one run, or what of it is left to do.
    fn one(&self, entry: &Entry, seed: u64, data: &DataSet, label: &str) -> anyhow::Result<Run> {
        let (args, console) = (self.args, self.console);
        let recipe = entry.seeded(seed);
        let name = entry.folder(seed);
        let path = args.out.join(&name);
        let standing = standing(&path, &recipe)?;
        let epochs = recipe.timeline().epochs();
        let plural = if epochs == 1 { "" } else { "s" };
        let what = match standing {
            Standing::Fresh => format!("{epochs} epoch{plural}"),
            Standing::BrokenOff => format!("the rest of {epochs} epoch{plural}"),
            Standing::Finished => "trained already".into(),
        };
        console.line(format!("{label}: {}, seed {seed}: {what}, in {}", recipe.name, path.display()));

        let mut engine = None;
        let folder = RunFolder::open(&path);
        if standing != Standing::Finished {
            let engine = engine.insert(open(args.device, train::network(&recipe), recipe.batch)?);
            self.train(&recipe, &folder, standing, data, engine.as_mut())?;
        }
        let judged = self.judge(&recipe, &folder, data, engine)?;
        let best = judged.iter().find(|row| row.weights == "best").map(|row| row.epoch);
        let metrics = folder.read_metrics()?;
        if metrics.len() != epochs {
            bail!("{}: {} lines, expected {epochs} epochs", folder.metrics().display(), metrics.len());
        }
        Ok(Run::new(&recipe, name, &metrics, best, &judged))
    }

    fn train(
        &self,
        recipe: &Recipe,
        folder: &RunFolder,
        standing: Standing,
        data: &DataSet,
        engine: &mut dyn Engine,
    ) -> anyhow::Result<()> {
        if standing == Standing::Fresh {
            RunFolder::create(folder.path())?;
        }
        let _claim = folder.claim()?;
        if standing == Standing::Fresh {
            folder.write("recipe.toml", recipe.to_toml().as_bytes())?;
        }
        begin_session(folder, self.args.data.as_deref(), data, engine, self.console)?;
        let run = train::Run { recipe, data, folder, console: self.console, stop: self.stop };
        match train::run(engine, &run) {
            Ok(_) => Ok(()),
            Err(TrainError::Interrupted { .. }) => bail!(self.interrupted()),
            Err(error) => {
                Err(anyhow::Error::from(error).context(format!("{}, seed {}", recipe.name, recipe.seed)))
            }
        }
    }

    /// The verdicts on a trained run; the engine is opened only where one is missing.
    fn judge(
        &self,
        recipe: &Recipe,
        folder: &RunFolder,
        data: &DataSet,
        engine: Option<Box<dyn Engine>>,
    ) -> anyhow::Result<Vec<TestAccuracy>> {
        let samples = self.args.samples.map_or(data.test.len(), |samples| samples as usize);
        let session = folder.sessions()?;
        let trained_on = session.last().and_then(|session| session["device"]["kind"].as_str());
        let court = |device| Court {
            folder,
            recipe,
            protocols: &self.args.protocol,
            data: &data.name,
            samples,
            device,
            console: self.console,
            stop: self.stop,
        };
        if let (None, Some(device)) = (&engine, trained_on)
            && let Some(known) = court(device).known().map_err(of_judge)?
        {
            return Ok(known);
        }
        let mut engine = match engine {
            Some(engine) => engine,
            None => open(self.args.device, train::network(recipe), recipe.batch)?,
        };
        let engine = engine.as_mut();
        let kind = engine.device().kind;
        let set = engine.upload_images(&data.test.pixels, &data.test.labels)?;
        let scratch = Batch::alloc(engine, recipe.batch)?;
        let Some(judged) = court(kind).judge(engine, &set, &scratch).map_err(of_judge)? else {
            bail!(self.interrupted())
        };
        for weights in ["best", "last"] {
            let rows: Vec<String> = judged
                .iter()
                .filter(|row| row.weights == weights)
                .map(|row| format!("{} {:.1} %", row.protocol, 100.0 * row.accuracy))
                .collect();
            if !rows.is_empty() {
                self.console.line(format!("{weights}: {} of {samples} test images", rows.join(", ")));
            }
        }
        Ok(judged)
    }

    fn interrupted(&self) -> Interrupted {
        let out = self.args.out.display();
        Interrupted(Some(format!("what is done is kept in {out}; the same command goes on there")))
    }
}

fn of_judge(error: JudgeError) -> anyhow::Error {
    match error {
        JudgeError::Engine(error) => error.into(),
        error => error.into(),
    }
}

/// The device of the runs, and a warning where they had several: seconds of different machines are not compared.
fn note_devices(args: &Args, document: &mut Document) -> anyhow::Result<()> {
    let mut met: Vec<(serde_json::Value, serde_json::Value)> = Vec::new();
    for run in document.rows.iter().flat_map(|row| &row.runs) {
        for session in RunFolder::open(&args.out.join(&run.folder)).sessions()? {
            let device = (session["device"].clone(), session["threads"].clone());
            if !met.contains(&device) {
                met.push(device);
            }
        }
    }
    if met.len() > 1 {
        let names: Vec<String> = met
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
    if let Some((device, threads)) = met.into_iter().next() {
        document.device = device;
        document.threads = threads.as_u64().unwrap_or(0) as usize;
    }
    Ok(())
}

/// Prints the table and writes its files.
fn finish(args: &Args, document: &Document, console: &Console, out: Option<&Path>) -> anyhow::Result<()> {
    for line in document.lines() {
        console.line(line);
    }
    let write = |path: &Path, bytes: &[u8]| at(path, write_atomic(path, bytes, Existing::Replace));
    let json = out.map(|out| out.join(JSON)).into_iter().chain(args.json.clone());
    for path in json {
        write(&path, &document.to_json()?)?;
    }
    let csv = out.map(|out| out.join(CSV)).into_iter().chain(args.csv.clone());
    for path in csv {
        write(&path, document.to_csv().as_bytes())?;
    }
    Ok(())
}
