//! `secateur train`: a recipe, images and a device become a run folder.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::console::Console;
use super::{open_interruptible, or_set};
use crate::engine::DeviceChoice;
use crate::recipe::Recipe;
use crate::train::metrics::Seconds;
use crate::train::result::Summary;
use crate::train::run_folder::{RunFolder, RunFolderError, State};
use crate::train::{self, TrainingRun, TrainingSetup};

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
    let recipe = recipe(&args)?;
    train::Protocols::of_recipe(&recipe)?;
    let data = recipe.data.open(args.data.as_deref()).map_err(or_set)?;
    let mut engine = open_interruptible(args.device, train::network(&recipe), recipe.batch, console)?;
    let engine = &mut engine;
    let setup = TrainingSetup { recipe: &recipe, data: &data, data_path: args.data.as_deref() };
    let name = engine.device().name.clone();
    let kind = engine.device().kind;

    // Only now: a mistake above leaves no folder.
    let mut run = match &args.out {
        Some(path) if args.resume => TrainingRun::start_or_resume(engine, setup, path)?,
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
        "{} on {name} ({kind}): {} images of {}{}, {} epochs, into {}",
        recipe.name,
        data.train.len(),
        data.name,
        extra,
        recipe.epoch_schedule().epochs(),
        run.folder().path().display()
    ));
    let summary = run.run(console)?;
    console.lines(summary_lines(&summary));
    Ok(())
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
