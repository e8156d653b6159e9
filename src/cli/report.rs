//! `secateur report`: run folders become one self-contained HTML page.

use std::path::{Path, PathBuf};

use anyhow::bail;

use super::console::Console;
use super::interrupt::EXIT_INTERRUPTED;
use super::{Interrupted, exit_code, inputs, open_interruptible, write};
use crate::clock;
use crate::data::SetKind;
use crate::engine::DeviceChoice;
use crate::evaluate::{PgdProtocol, StepSize};
use crate::progress::ProgressSink;
use crate::recipe::Recipe;
use crate::report::{Gallery, Kernels, Page, RunRecord, attack, examples, read_runs};
use crate::train::run_folder::{self, RunFolder};
use crate::train::trained;

/// Steps of the attack on the images shown.
const ATTACK_STEPS: usize = 10;
const MAX_IMAGES: u32 = 100;

/// Show runs side by side on one HTML page that needs no network
#[derive(clap::Args)]
pub struct Args {
    /// Run folders; finished, under way or broken off
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The page
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// Robust accuracy against time by itself, as an SVG file
    #[arg(long, value_name = "FILE")]
    figure: Option<PathBuf>,
    /// CIFAR files: a folder or an archive, binary or Python version, for pictures of runs on them
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Kernels of `secateur bench kernels --json`, for a roofline
    #[arg(long, value_name = "FILE")]
    kernels: Option<PathBuf>,
    /// Test images to attack and show for each run; 0 for no pictures
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_IMAGES)))]
    images: u32,
    /// Where the images are attacked: auto, cpu, cpu:bf16, cuda, cuda:N, emulated or emulated:sm_90a
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    let runs = read_runs(&args.runs)?;
    let kernels = args.kernels.as_deref().map(Kernels::read).transpose()?;
    let mut files = inputs([], args.data.as_deref())?;
    args.kernels.iter().try_for_each(|path| files.reads("--kernels", path))?;
    for run in &args.runs {
        files.reads_folder("the run", run, run_folder::is_of_a_run)?;
    }
    let out = files.writes("--out", &args.out)?;
    let figure = files.may_write("--figure", args.figure.as_ref())?;
    console.catch_interrupts()?;
    let mut page = Page { runs, kernels, ..Page::default() };
    if let Some(output) = &figure {
        let Some(svg) = page.figure() else {
            bail!(
                "--figure: no run has a test accuracy under attack, expected one that is finished and tested"
            );
        };
        write(output, svg.as_bytes())?;
    }
    for run in &page.runs {
        for note in &run.notes {
            console.note(format!("warning: {}: {note}", run.name));
        }
        if args.images == 0 {
            continue;
        }
        match pictures(&args, run, console) {
            Ok(gallery) => page.galleries.push(gallery),
            Err(error) if exit_code(&error) == EXIT_INTERRUPTED as u8 => return Err(error),
            Err(error) => {
                let note = format!("{}: no pictures: {}", run.name, super::one_line(&error));
                console.note(format!("warning: {note}"));
                page.notes.push(note);
            }
        }
    }
    page.made = clock::now().as_secs();
    let html = page.html();
    write(&out, html.as_bytes())?;
    let runs = page.runs.len();
    console.line(format!(
        "{}: {runs} run{}, {} kB",
        args.out.display(),
        if runs == 1 { "" } else { "s" },
        html.len().div_ceil(1000)
    ));
    Ok(())
}

/// The first test images under attack, and the newest selection.
fn pictures(args: &Args, run: &RunRecord, console: &Console) -> anyhow::Result<Gallery> {
    if console.stop() {
        bail!(Interrupted(None));
    }
    let recipe = Recipe::load(RunFolder::open(&run.path).recipe(), &[])?;
    // A generated set has no files, whatever the other runs of the page are made of.
    let folder = args.data.as_deref().filter(|_| recipe.data.set != SetKind::Generated);
    let data = recipe.data.open_set(folder)?;
    let mut gallery = Gallery { run: run.name.clone(), ..Gallery::default() };
    let count = args.images as usize;
    if let Some(chosen) = &run.chosen {
        let split = recipe.split(&data)?;
        let (kept, dropped) = examples(chosen, &split.train, &data, count).map_err(anyhow::Error::msg)?;
        gallery.selection = Some((chosen.epoch, kept, dropped));
    }
    let file = trained::weights(&run.path, console)?;
    let count = count.min(data.test.len());
    let mut engine = open_interruptible(args.device, file.network, count, console)?;
    engine.load_weights(&file.weights)?;
    let protocol = PgdProtocol { steps: ATTACK_STEPS, restarts: 1, step_size: StepSize::TwoLevels };
    let epsilon = &recipe.attack.epsilon;
    gallery.attacked = attack(&mut engine, &data, &protocol, epsilon.as_f32(), recipe.seed, count)?;
    gallery.attack = format!(
        "PGD-{ATTACK_STEPS}, eps {epsilon}, step {}, on {}.",
        protocol.step_size.text(),
        file.path.strip_prefix(&run.path).unwrap_or(Path::new("the weights")).display()
    );
    Ok(gallery)
}
