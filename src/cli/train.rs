//! `secateur train`: a recipe, images and a device become a run folder.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::console::Console;
use super::devices::{Devices, Ranks};
use super::or_set;
use crate::engine::{self, DeviceChoice, Engine};
use crate::recipe::Recipe;
use crate::train::metrics::Seconds;
use crate::train::result::Summary;
use crate::train::run_folder::{RunFolder, RunFolderError, State};
use crate::train::{self, TrainError, TrainingRun, TrainingSetup, ranks};

const DEFAULT_RECIPE: &str = "quick";
const DEFAULT_PARENT: &str = "runs";

/// Train a network: without arguments the quick recipe on generated images, about a minute
#[derive(clap::Args)]
pub struct Args {
    /// A built-in recipe's name (see `secateur recipes`) or a TOML file [default: quick]
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<OsString>,
    /// CIFAR files: a folder or an archive, binary or Python version
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// auto, cpu, cpu:bf16, cuda, cuda:N, emulated or emulated:sm_90a
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Engines that share every batch: a number, GPUs (0-7 or 0,2,3), or env for one process each under torchrun or srun
    #[arg(long, value_name = "N|LIST|env")]
    devices: Option<Devices>,
    /// Folder of the run; must be empty or absent [default: the next runs/RECIPE-N]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Change a value of the recipe: --set data.train_limit=2000
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Continue the run in --out, to the same bits as an unbroken one; start it where there is none yet
    #[arg(long, requires = "out")]
    resume: bool,
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    let ranks = Ranks::new(args.device, args.devices.as_ref())?;
    let recipe = recipe(&args)?;
    train::Protocols::of_recipe(&recipe)?;
    let data = recipe.data.open(args.data.as_deref()).map_err(or_set)?;
    let setup = TrainingSetup { recipe: &recipe, data: &data, data_path: args.data.as_deref() };
    let (folder, stop) = (args.out.as_deref(), console.catch_interrupts()?.clone());
    let open = |device| engine::open(device, train::network(&recipe), recipe.batch);
    let first = |engine: &mut Engine| {
        engine.stop_on(Some(stop));
        train(engine, setup, folder, args.resume, console)
    };
    let summary = match ranks {
        None => Some(first(&mut open(args.device)?)?),
        Some(Ranks::Threads(devices)) => {
            let open = |rank: usize| open(devices[rank]);
            Some(ranks::on_threads(devices.len(), &open, setup, folder, first)?)
        }
        Some(Ranks::Process(..)) if folder.is_none() => {
            bail!("--devices env: no --out, expected the folder of the run, the same for every process")
        }
        Some(Ranks::Process(info, device)) => {
            ranks::on_processes(&info, &|_| open(device), setup, folder, console, first)?
        }
    };
    console.lines(summary.iter().flat_map(summary_lines));
    Ok(())
}

/// Starts or resumes a run, and trains to its end.
fn train(
    engine: &mut Engine,
    setup: TrainingSetup,
    folder: Option<&Path>,
    resume: bool,
    console: &Console,
) -> Result<Summary, TrainError> {
    let TrainingSetup { recipe, data, .. } = setup;
    let device = engine.device();
    let mut device = format!("{} ({})", device.name, device.kind);
    if engine.ranks() > 1 {
        device = format!("{} engines, each {device}", engine.ranks());
    }
    // Only now: a mistake above leaves no folder.
    let mut run = match folder {
        Some(path) if resume => TrainingRun::start_or_resume(engine, setup, path)?,
        Some(path) => TrainingRun::start(engine, setup, RunFolder::create(path)?)?,
        None => {
            let folder = RunFolder::create_numbered(Path::new(DEFAULT_PARENT), &recipe.name)?;
            TrainingRun::start(engine, setup, folder)?
        }
    };
    let extra = match data.extra_count() {
        0 => String::new(),
        count => format!(" and {count} extra ones"),
    };
    console.line(format!(
        "{} on {device}: {} images of {}{}, {} epochs, into {}",
        recipe.name,
        data.train.len(),
        data.name,
        extra,
        recipe.epoch_schedule().epochs(),
        run.folder().path().display()
    ));
    run.run(console)
}

/// The recipe of the run that is continued, else the one that was asked for.
fn recipe(args: &Args) -> anyhow::Result<Recipe> {
    let named = args.recipe.as_deref();
    if let Some(path) = &args.out {
        let state = RunFolder::state(path);
        if !args.resume && !matches!(state, Ok(State::Fresh)) {
            state?;
            bail!(RunFolderError::NotEmpty { path: path.clone() });
        }
        if state? != State::Fresh {
            // The folder's recipe is the truth; one given besides must say the same.
            let file = RunFolder::open(path).recipe();
            let recipe = Recipe::load(&file, &[])?;
            let given = Recipe::load(named.unwrap_or(file.as_os_str()), &args.set)?;
            if given != recipe {
                bail!(
                    "{}: the run was started with another recipe ({}); resume without --recipe and --set, or name \
                     another --out",
                    file.display(),
                    given.differing_keys(&recipe)
                );
            }
            return Ok(recipe);
        }
    }
    Ok(Recipe::load(named.unwrap_or(OsStr::new(DEFAULT_RECIPE)), &args.set)?)
}

/// One line for each set of weights, then the cost.
fn summary_lines(summary: &Summary) -> Vec<String> {
    let mut lines = Vec::new();
    for weights in ["best", "last"] {
        let rows: Vec<_> = summary.test.iter().filter(|row| row.weights == weights).collect();
        let Some(first) = rows.first() else { continue };
        let accuracies: Vec<String> =
            rows.iter().map(|row| format!("{} {:.1} %", row.protocol, 100.0 * row.accuracy)).collect();
        lines.push(format!(
            "{weights} (epoch {}): {} on {} test images, eps {}",
            first.epoch,
            accuracies.join(", "),
            first.total,
            summary.epsilon
        ));
    }
    let Seconds { attack, train, select, evaluate, .. } = summary.seconds;
    let select = if select > 0.0 { format!("select {select:.1}, ") } else { String::new() };
    lines.push(format!(
        "{:.1} s: attack {attack:.1}, train {train:.1}, {select}validation {evaluate:.1}, test {:.1}; {:.0} images/s in \
         training",
        summary.seconds.total() + summary.seconds_test,
        summary.seconds_test,
        summary.images_per_second
    ));
    lines
}
