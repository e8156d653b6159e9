//! `secateur bench`: how long a training step, an attack, an evaluation or each kernel takes, and whether two measurements
//! differ.
//!
//! The device block first, then a table of medians; sampling goes on until the noise is low enough or the time is up. On the
//! cuda device and the emulated one the operations and bytes of a row are counted launch by launch; the cpu engine counts its
//! convolutions. Checked by `tests/bench.rs`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;

use super::{CheckFailed, Interrupted, at, catch_interrupts, recipe_for, writable};
use crate::console::Console;
use crate::engine::{DeviceChoice, Launch, Record};
use crate::files::{Existing, write_atomic};
use crate::measure::ceilings::Ceilings;
use crate::measure::compare::{self, Change};
use crate::measure::document::{Document, Row};
use crate::measure::harness::{Rule, Samples, Verdict, sample};
use crate::measure::profile;
use crate::measure::workload::{Bench, Work};
use crate::recipe::Recipe;

/// Steps of one sample on a GPU, where a step is short; elsewhere one.
const STEPS_A_SAMPLE: usize = 8;

/// Measure how long the work of training takes, and compare two measurements
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// A whole training step of each recipe
    Step(Options),
    /// The attack of one batch by each recipe
    Attack(Options),
    /// PGD-20 of one batch, as an evaluation does it
    Eval(Options),
    /// Each kernel, in each shape that a training step has
    Kernels(Options),
    /// Say of each row of two JSON files whether it became faster or slower; exit code 1 where one is slower
    Compare(CompareArgs),
}

#[derive(clap::Args)]
struct Options {
    /// Built-in recipes or TOML files
    #[arg(
        long,
        value_name = "NAME|FILE",
        value_delimiter = ',',
        default_value = "cifar10-pgd-at,cifar10-trades,cifar10-mart"
    )]
    recipe: Vec<String>,
    /// auto, cpu, cuda, cuda:N or emulated
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Width of the network
    #[arg(long, value_name = "N", default_value_t = 64)]
    width: usize,
    /// Images a batch
    #[arg(long, value_name = "N", default_value_t = 128)]
    batch: usize,
    /// Change a value of the recipes: --set attack.steps=1
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Only rows whose name holds this text
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Samples of a row at least
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Relative standard error of the median at most, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    error: f64,
    /// Replay the steps of an attack as one CUDA graph, or launch every kernel; of steps and attacks, on a GPU
    #[arg(long, value_name = "on|off", default_value = "on")]
    graphs: Switch,
    /// Seconds of sampling a row (of kernels: a recipe) at most
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    timeout: f64,
    /// Write everything, every sample included, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(clap::Args)]
struct CompareArgs {
    /// JSON of an earlier measurement
    first: PathBuf,
    /// JSON of a later one
    second: PathBuf,
    /// Ratios of the medians within 1 + this, and 1 / (1 + this), count as the same
    #[arg(long, value_name = "SHARE", default_value_t = 0.03)]
    tolerance: f64,
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    match args.what {
        What::Step(options) => measure("step", &options, console),
        What::Attack(options) => measure("attack", &options, console),
        What::Eval(options) => measure("eval", &options, console),
        What::Kernels(options) => measure("kernels", &options, console),
        What::Compare(args) => run_compare(&args, console),
    }
}

fn measure(kind: &str, options: &Options, console: &Console) -> anyhow::Result<()> {
    if !(options.error > 0.0 && options.timeout >= 0.0) {
        bail!("--error {} --timeout {}: expected numbers above 0", options.error, options.timeout);
    }
    let kernels = kind == "kernels";
    if kernels && options.device == DeviceChoice::Cpu {
        bail!(
            "--device cpu: the reference engine has no kernels; use --device emulated or cuda, or bench step"
        );
    }
    let recipes = options
        .recipe
        .iter()
        .map(|name| recipe_for(name, Some(options.width), Some(options.batch), &options.set))
        .collect::<anyhow::Result<Vec<Recipe>>>()?;
    let wanted = |recipe: &&Recipe| kernels || row_name(kind, recipe).contains(&options.filter);
    let recipes: Vec<&Recipe> = recipes.iter().filter(wanted).collect();
    let Some(first) = recipes.first() else { bail!("--filter {}: no row has this text", options.filter) };
    for path in options.json.iter().chain(&options.csv) {
        writable(path)?;
    }
    let work = match kind {
        "attack" => Work::Attack,
        "eval" => Work::Evaluation("pgd20".parse().map_err(anyhow::Error::msg)?),
        _ => Work::Step,
    };
    let rule =
        Rule { samples: options.samples as usize, error: options.error / 100.0, seconds: options.timeout };
    let interrupt = catch_interrupts()?;
    let stop = || interrupt.requested();

    let open = |recipe: &Recipe| -> anyhow::Result<Bench> {
        let mut bench = Bench::open(options.device, kernels, recipe, STEPS_A_SAMPLE)?;
        bench.engine.replay_attacks(options.graphs == Switch::On);
        Ok(bench)
    };
    let mut bench = open(first)?;
    let ceilings = Ceilings::measure(bench.engine.as_mut())?;
    let names = recipes.iter().map(|recipe| recipe.name.clone()).collect();
    let mut document =
        Document::new(&format!("bench {kind}"), bench.engine.as_ref(), names, options.batch, &ceilings);
    for line in document.device_block() {
        console.line(line);
    }
    let mut all = Record::default();
    for recipe in recipes {
        if bench.recipe() != recipe {
            // The old engine's memory first: two may not fit.
            drop(bench);
            bench = open(recipe)?;
        }
        let name = row_name(kind, recipe);
        console.bar(name.clone(), rule.samples);
        if kernels {
            let rows = kernel_rows(&mut bench, &rule, &stop, &ceilings, &options.filter, &mut all)?;
            document.rows.extend(
                rows.into_iter().map(|row| Row { name: format!("{} {}", recipe.name, row.name), ..row }),
            );
        } else {
            let amounts = bench.amounts(&work)?;
            let times = if bench.engine.device().kind == "cuda" { bench.steps() } else { 1 };
            let mut done = 0;
            let mut once = || -> anyhow::Result<f64> {
                done += 1;
                let seconds = bench.run(&work, times)?;
                console.at(done);
                Ok(seconds / times as f64)
            };
            let Some(samples) = sample(&rule, &stop, &mut once)? else { bail!(Interrupted(None)) };
            document.rows.extend(Row::new(name, samples, recipe.batch as u64, amounts, &ceilings));
        }
        console.clear();
    }
    document.kernels = profile::kernels(&all, &ceilings, &bench.engine.device().code);
    for line in document.row_lines() {
        console.line(line);
    }
    if let Some(path) = &options.json {
        at(path, write_atomic(path, &document.to_json()?, Existing::Replace))?;
    }
    if let Some(path) = &options.csv {
        at(path, write_atomic(path, document.to_csv().as_bytes(), Existing::Replace))?;
    }
    Ok(())
}

fn row_name(kind: &str, recipe: &Recipe) -> String {
    format!("{kind} {}", recipe.name)
}

/// Samples every launch of training steps until each kernel in each of its shapes is known well enough, or the time is up.
fn kernel_rows(
    bench: &mut Bench,
    rule: &Rule,
    stop: &dyn Fn() -> bool,
    ceilings: &Ceilings,
    filter: &str,
    all: &mut Record,
) -> anyhow::Result<Vec<Row>> {
    // Loads code and touches memory.
    bench.run(&Work::Step, 1)?;
    let begin = Instant::now();
    let mut shapes: BTreeMap<String, (Launch, Vec<f64>)> = BTreeMap::new();
    loop {
        let record = bench.record(&Work::Step, 1)?;
        if stop() {
            bail!(Interrupted(None));
        }
        for launch in record.launches.iter().filter(|launch| launch.kernel.contains(filter)) {
            let [x, y, z] = launch.grid;
            let megabytes = launch.bytes as f64 / 1e6;
            let name = format!("{} {x}x{y}x{z} {megabytes:.3} MB", launch.kernel);
            shapes.entry(name).or_insert((*launch, Vec::new())).1.push(launch.seconds);
            all.launches.push(*launch);
        }
        if shapes.is_empty() {
            bail!("--filter {filter}: no kernel of a step has this text");
        }
        let elapsed = begin.elapsed().as_secs_f64();
        if shapes.values().all(|(_, values)| rule.verdict(values, elapsed) != Verdict::GoOn) {
            break;
        }
    }
    let row = |(name, (launch, values)): (String, (Launch, Vec<f64>))| {
        let samples =
            Samples { unmet: rule.unmet(&values).map(|unmet| format!("time is up: {unmet}")), values };
        Row::new(name, samples, 0, [launch.flops as f64, launch.bytes as f64], ceilings)
    };
    Ok(shapes.into_iter().filter_map(row).collect())
}

fn run_compare(args: &CompareArgs, console: &Console) -> anyhow::Result<()> {
    if !(args.tolerance > 0.0 && args.tolerance.is_finite()) {
        bail!("--tolerance {}: expected a number above 0, such as 0.03", args.tolerance);
    }
    let (first, second) = (Document::read(&args.first)?, Document::read(&args.second)?);
    let (rows, notes) = compare::compare_documents(&first, &second, args.tolerance);
    for note in notes {
        console.note(note);
    }
    if rows.is_empty() {
        bail!("{} and {} have no row in common", args.first.display(), args.second.display());
    }
    for line in compare::lines(&rows) {
        console.line(line);
    }
    let slower = rows.iter().filter(|row| row.change == Change::Slower).count();
    if slower > 0 {
        bail!(CheckFailed(format!("{slower} of {} rows SLOWER", rows.len())));
    }
    Ok(())
}
