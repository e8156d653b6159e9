//! `secateur train`: a recipe, images and a device become a run folder.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde_json::json;

use super::{catch_interrupts, images_of, or_set};
use crate::clock;
use crate::console::Console;
use crate::data::DataSet;
use crate::digest::sha256;
use crate::engine::{DeviceChoice, DeviceInfo, Engine, open};
use crate::recipe::Recipe;
use crate::text::command_line;
use crate::train::metrics::Seconds;
use crate::train::result::Summary;
use crate::train::run_folder::{RunFolder, RunFolderError, State};
use crate::train::{self, Run};

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

/// What the arguments mean.
struct Plan {
    recipe: Recipe,
    /// Where the run is or will be; `None` for the next free default.
    out: Option<PathBuf>,
    /// Whether the folder holds the run already.
    resumed: bool,
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    let Plan { recipe, out, resumed } = plan(&args)?;
    train::Protocols::of_recipe(&recipe)?;
    let data = images_of(&recipe, args.data.as_deref()).map_err(or_set)?;
    let mut engine = open(args.device, train::network(&recipe), recipe.batch)?;
    let interrupt = catch_interrupts()?;
    engine.stop_on(Some(interrupt.flag()));

    // Only now: a mistake above leaves no folder behind.
    let folder = match &out {
        Some(path) if resumed => RunFolder::open(path),
        Some(path) => RunFolder::create(path)?,
        None => RunFolder::create_numbered(Path::new(DEFAULT_PARENT), &recipe.name)?,
    };
    let folder = folder.claim()?;
    if !resumed {
        folder.start(&recipe.to_toml())?;
    }
    begin_session(&folder, args.data.as_deref(), &data, engine.as_ref(), console)?;
    console.line(format!(
        "{} on {} ({}): {} images of {}, {} epochs, into {}",
        recipe.name,
        engine.device().name,
        engine.device().kind,
        data.train.len(),
        data.name,
        recipe.timeline().epochs(),
        folder.path().display()
    ));

    let stop = || interrupt.requested();
    let run = Run { recipe: &recipe, data: &data, folder: &folder, console, stop: &stop };
    let summary = train::run(engine.as_mut(), &run)?;
    for line in summary_lines(&summary) {
        console.line(line);
    }
    Ok(())
}

fn plan(args: &Args) -> anyhow::Result<Plan> {
    let named = args.recipe.as_deref();
    if let Some(path) = &args.out {
        let state = RunFolder::state(path);
        if !args.resume && !matches!(state, Ok(State::Fresh)) {
            state?;
            bail!(RunFolderError::NotEmpty { path: path.clone() });
        }
        if state? == State::Run {
            // The folder's recipe is the truth; one given besides must say the same.
            let file = RunFolder::open(path).recipe();
            let recipe = Recipe::load(&file, &[])?;
            let given = match named {
                Some(name) => Recipe::load(name, &args.set)?,
                None => Recipe::load(&file, &args.set)?,
            };
            if given.to_toml() != recipe.to_toml() {
                let keys = differing_keys(&given.to_toml(), &recipe.to_toml());
                bail!(
                    "{}: the run was started with another recipe ({keys}); resume without --recipe and --set, or \
                     name another --out",
                    file.display()
                );
            }
            return Ok(Plan { recipe, out: args.out.clone(), resumed: true });
        }
    }
    let recipe = Recipe::load(named.unwrap_or(OsStr::new(DEFAULT_RECIPE)), &args.set)?;
    Ok(Plan { recipe, out: args.out.clone(), resumed: false })
}

/// The lines in which two resolved recipes differ, as "given, not met".
pub(super) fn differing_keys(given: &str, met: &str) -> String {
    let pairs = given.lines().zip(met.lines()).filter(|(given, met)| given != met);
    pairs.map(|(given, met)| format!("{given}, there {met}")).collect::<Vec<_>>().join("; ")
}

/// Writes the session into environment.json; a resumed run must see the same images. `path` is that of the images.
pub(super) fn begin_session(
    folder: &RunFolder,
    path: Option<&Path>,
    data: &DataSet,
    engine: &dyn Engine,
    console: &Console,
) -> anyhow::Result<()> {
    let device: &DeviceInfo = engine.device();
    let labels = |labels: &[u32]| bytemuck::cast_slice::<u32, u8>(labels).to_vec();
    let digests = [
        sha256(&data.train.pixels),
        sha256(&labels(&data.train.labels)),
        sha256(&data.test.pixels),
        sha256(&labels(&data.test.labels)),
    ];
    let digest = sha256(digests.concat().as_bytes());
    if let Some(first) = folder.sessions()?.first() {
        if first["data_sha256"] != json!(digest) {
            bail!(
                "{}: the run was started on other images (SHA-256 {}, now {digest}); give the same --data",
                folder.path().display(),
                first["data_sha256"].as_str().unwrap_or("unknown")
            );
        }
        if first["device"] != json!(device) {
            console.note("warning: the run was started on another device or build: its bits will differ");
        }
    }
    folder.add_session(json!({
        "secateur": env!("CARGO_PKG_VERSION"),
        "started_unix_seconds": clock::now().as_secs(),
        "command": command_line(),
        "device": device,
        "threads": rayon::current_num_threads(),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "data": path.map(Path::to_string_lossy),
        "data_sha256": digest,
        "training_images": data.train.len(),
        "test_images": data.test.len(),
    }))?;
    Ok(())
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
    let Seconds { attack, train, select, evaluate } = summary.seconds;
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
