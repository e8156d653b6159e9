//! The command line: what was typed becomes what it means, one file a command.
//!
//! Each command has `Args` (typed) and `run(Args, &Console)`. Errors are one line on stderr. Exit codes: 0 done,
//! 1 a check failed, 2 usage or data error, 3 device error, 130 interrupted.

mod bench;
mod console;
mod data;
mod devices;
mod dump;
mod eval;
mod interrupt;
mod kernel_table;
mod profile;
mod recipes;
mod report;
mod select;
mod train;
mod weights;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Fraction;
use crate::data::{self as sets, DataError, SetKind};
use crate::engine::{self, DeviceChoice, Engine};
use crate::files::{self, Files, Folder, Lock, Output};
use crate::model::{ResNet, WeightsFile};
use crate::names::Named;
use crate::prune::{PruneError, Scores, SelectionMethod};
use crate::recipe::Recipe;
use crate::train::TrainError;
use console::Console;
use interrupt::{EXIT_INTERRUPTED, survive_file_size_limit};

#[derive(Parser)]
#[command(name = "secateur", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(train::Args),
    Eval(eval::Args),
    Select(select::Args),
    Dump(dump::Args),
    Profile(profile::Args),
    Bench(bench::Args),
    Recipes(recipes::Args),
    Report(report::Args),
    Weights(weights::Args),
    Data(data::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let console = Console::new();
    // Later, where one cannot be started, it would be a panic in the middle of the work.
    if let Err(error) = rayon::ThreadPoolBuilder::new().build_global() {
        console.note(format!(
            "error: the threads of the CPU cannot be started: {error}; raise the limit (ulimit -u) or ask for fewer \
             (RAYON_NUM_THREADS)"
        ));
        return ExitCode::from(3);
    }
    if let Err(error) = survive_file_size_limit() {
        console.note(format!("warning: the limit on file sizes ends this program at once: {error}"));
    }
    let done = match cli.command {
        Command::Train(args) => train::run(args, &console),
        Command::Eval(args) => eval::run(args, &console),
        Command::Select(args) => select::run(args, &console),
        Command::Dump(args) => dump::run(args, &console),
        Command::Profile(args) => profile::run(args, &console),
        Command::Bench(args) => bench::run(args, &console),
        Command::Recipes(args) => recipes::run(args, &console),
        Command::Report(args) => report::run(args, &console),
        Command::Weights(args) => weights::run(args, &console),
        Command::Data(args) => data::run(args, &console),
    };
    let done = done.and(console.finish().map_err(|error| anyhow::anyhow!("stdout: {error}")));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console.clear();
            console.note(format!("error: {}", one_line(&error)));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// The user asked to stop; how to go on, where something was saved.
#[derive(Debug, thiserror::Error)]
#[error("interrupted{}", .0.as_ref().map_or(String::new(), |how| format!("; {how}")))]
pub(crate) struct Interrupted(Option<String>);

/// Something was looked at and found wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CheckFailed(pub String);

/// Another program that this one ran has failed, and for which reason: an exit code of the above.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct RunFailed {
    what: String,
    code: u8,
}

fn exit_code(error: &anyhow::Error) -> u8 {
    // In whichever session it was.
    if let Some(error) = error.chain().find_map(|cause| cause.downcast_ref::<engine::Error>()) {
        return match error {
            // Weights that do not fit, or a setting, are bad input, not a fault of the device.
            engine::Error::Model(_) | engine::Error::Setting(_) => 2,
            engine::Error::Stopped => EXIT_INTERRUPTED as u8,
            _ => 3,
        };
    }
    if let Some(mut error) = error.downcast_ref::<TrainError>() {
        while let TrainError::Rank { source, .. } = error {
            error = source;
        }
        return match error {
            TrainError::Diverged { .. }
            | TrainError::NonFinite { .. }
            | TrainError::DivergedWeights { .. }
            | TrainError::Overfitted { .. }
            | TrainError::Selection { .. } => 1,
            TrainError::Interrupted { .. } => EXIT_INTERRUPTED as u8,
            _ => 2,
        };
    }
    if let Some(failed) = error.downcast_ref::<RunFailed>() {
        return failed.code;
    }
    if error.is::<Interrupted>() {
        EXIT_INTERRUPTED as u8
    } else if error.is::<CheckFailed>() {
        1
    } else {
        2
    }
}

/// Help and version as clap prints them; a mistake as one line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    {
        // The reader of a help text may be gone (`secateur --help | head -1`): nothing to report.
        let _ = error.print();
        return ExitCode::from(error.exit_code() as u8);
    }
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let what: Vec<&str> =
        lines.filter(|line| !line.is_empty() && !line.starts_with("For more information")).collect();
    Console::new().note(format!("{}; see --help", what.join("; ").replace(":; ", ": ")));
    ExitCode::from(2)
}

/// An error and its causes in one line; a cause that the error above it quotes already is left out.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        // Libraries write messages of several lines.
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

/// A recipe of another width or batch, for measurements.
fn recipe_for(
    name: &OsStr,
    width: Option<usize>,
    batch: Option<usize>,
    set: &[String],
) -> anyhow::Result<Recipe> {
    let width = width.map(|width| format!("model.width={width}"));
    let batch = batch.map(|batch| format!("batch={batch}"));
    let overrides: Vec<String> = width.into_iter().chain(batch).chain(set.iter().cloned()).collect();
    Ok(Recipe::load(name, &overrides)?)
}

/// [`recipe_for`] each of several.
fn recipes_for(
    names: &[OsString],
    width: usize,
    batch: usize,
    set: &[String],
) -> anyhow::Result<Vec<Recipe>> {
    names.iter().map(|name| recipe_for(name, Some(width), Some(batch), set)).collect()
}

/// A selection method by its name, where it is allowed.
fn method(name: &str, allowed: fn(SelectionMethod) -> bool) -> Result<SelectionMethod, String> {
    SelectionMethod::from_name(name).filter(|&method| allowed(method)).ok_or_else(|| {
        let names = SelectionMethod::ALL.iter().filter(|(_, method)| allowed(*method));
        format!("expected {}", names.map(|(name, _)| *name).collect::<Vec<_>>().join(", "))
    })
}

/// What makes a recipe select by a method; when to select is of no matter here.
fn method_overrides(method: SelectionMethod) -> Vec<String> {
    let every = method.default_every(Scores::Accumulated);
    let mut overrides = vec![
        format!("selection.method={method}"),
        format!("selection.every={every}"),
        "selection.warm_start=0".into(),
    ];
    overrides.extend((!method.has_fraction()).then(|| "selection.fraction=1".into()));
    overrides
}

/// Refuses a recipe whose method is not allowed, or that cannot attack the candidates, which have a last loss or none.
fn check_selection(
    recipe: &Recipe,
    allowed: fn(SelectionMethod) -> bool,
    losses: bool,
) -> anyhow::Result<()> {
    let (name, method) = (&recipe.name, recipe.selection.method);
    if !allowed(method) {
        anyhow::bail!("recipe {name}: selection.method = \"{method}\" selects nothing; give --method");
    }
    let checked = recipe.validate_attack_on_candidates(losses);
    checked.map_err(|refusal| anyhow::anyhow!("recipe {name}: {refusal}"))
}

/// Makes a folder and keeps other processes out of it.
fn claim(path: &Path) -> anyhow::Result<(Folder, Lock)> {
    const LOCK: &str = ".lock";
    at(path, std::fs::create_dir_all(path))?;
    let folder = at(path, Folder::from(path).hold())?;
    let lock = folder.lock(LOCK).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => {
            anyhow::anyhow!("{}: {error} works in it; wait until it has ended", path.display())
        }
        _ => anyhow::anyhow!("{}: {error}", path.join(LOCK).display()),
    })?;
    Ok((folder, lock))
}

/// How to go on after an interrupt.
fn resume_hint(out: &Path) -> String {
    format!("what is done is kept in {}; the same command goes on there", out.display())
}

/// What is wrong with the images, for commands that can name another set by `--set`.
fn or_set(error: DataError) -> anyhow::Error {
    let set = match &error {
        DataError::Unwanted { .. } => "cifar10".to_string(),
        DataError::WrongSet { actual, .. } => actual.to_string(),
        _ => return error.into(),
    };
    anyhow::anyhow!("{error}; the recipe's data.set decides: --set data.set={set}, or another recipe")
}

/// A weights file whose network has as many classes as the recipe's images.
fn weights_for(recipe: &Recipe, path: &Path) -> anyhow::Result<WeightsFile> {
    let file = WeightsFile::read(path)?;
    let (set, classes) = (recipe.data.set, recipe.data.set.classes());
    if file.network.classes != classes {
        anyhow::bail!("{}: {} classes, and {set} has {classes}", path.display(), file.network.classes);
    }
    Ok(file)
}

/// Opens a device whose work ends where the user interrupts it.
fn open_interruptible(
    device: DeviceChoice,
    network: ResNet,
    max_batch: usize,
    console: &Console,
) -> anyhow::Result<Engine> {
    let mut engine = engine::open(device, network, max_batch)?;
    engine.stop_on(Some(console.catch_interrupts()?.clone()));
    Ok(engine)
}

/// A failed selection in words; `resume` says how to go on where it was interrupted.
fn selection_failed(error: PruneError, resume: Option<String>) -> anyhow::Error {
    match error {
        PruneError::Stopped => Interrupted(resume).into(),
        PruneError::Invalid(reason) => anyhow::anyhow!("selection: {reason}"),
        error => error.into(),
    }
}

/// A path's file operation, named in its error.
fn at<T>(path: &Path, result: io::Result<T>) -> anyhow::Result<T> {
    result.map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
}

/// The files of a command, with the inputs that many have: recipes, by name or file, and the folder of the images.
fn inputs<'a>(recipes: impl IntoIterator<Item = &'a OsString>, data: Option<&Path>) -> anyhow::Result<Files> {
    let mut files = Files::default();
    for file in recipes.into_iter().filter_map(|recipe| Recipe::file(recipe)) {
        files.reads("--recipe", file)?;
    }
    if let Some(data) = data {
        files.reads("--data", data)?;
        files.reads_folder("--data", data, sets::is_of_a_set)?;
    }
    Ok(files)
}

/// Writes an output.
fn write(output: &Output, bytes: &[u8]) -> anyhow::Result<()> {
    at(output.path(), output.write(bytes))
}

/// Writes an output that is too large to hold.
fn write_by(
    output: &Output,
    write: impl FnOnce(&mut dyn io::Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    output.write_by(write).map_err(|error| match error.downcast::<io::Error>() {
        Ok(error) => anyhow::anyhow!("{}: {error}", output.path().display()),
        Err(error) => error,
    })
}

/// Writes a plain struct as JSON.
fn write_json(output: &Output, value: &impl serde::Serialize) -> anyhow::Result<()> {
    write(output, &files::json(value))
}

/// The radius of a ball: a fraction or a number above 0 and up to 1.
fn radius(text: &str) -> Result<Fraction, String> {
    Fraction::parse(text)
        .filter(|radius| radius.value() > 0.0 && radius.value() <= 1.0 && !radius.vanishes())
        .ok_or_else(|| "expected a number above 0 and up to 1, such as 8/255 or 0.031".into())
}

/// A data set by its name.
fn set_kind(name: &str) -> Result<SetKind, String> {
    SetKind::from_name(name).ok_or_else(|| format!("expected {}", SetKind::names()))
}
