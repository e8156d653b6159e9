//! `secateur report`: run folders become one self-contained HTML page.

use std::path::{Path, PathBuf};

use super::eval::subject::weights_file;
use super::{Interrupted, at, catch_interrupts, images_of, writable};
use crate::clock;
use crate::console::Console;
use crate::data::SetKind;
use crate::data::order::split;
use crate::engine::{DeviceChoice, open};
use crate::evaluate::{PgdProtocol, StepSize};
use crate::files::{Existing, write_atomic};
use crate::model::Weights;
use crate::recipe::Recipe;
use crate::report::{Gallery, Kernels, Page, RunRecord, attack, examples, read_runs};
use crate::train::interrupt::Interrupt;
use crate::train::run_folder::RunFolder;

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
    /// Folder of the CIFAR binary files, for pictures of runs on them
    #[arg(long, value_name = "DIR")]
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
    writable(&args.out)?;
    let interrupt = catch_interrupts()?;
    let mut page = Page { runs, kernels, ..Page::default() };
    for run in &page.runs {
        for note in &run.notes {
            console.note(format!("warning: {}: {note}", run.name));
        }
        if args.images == 0 {
            continue;
        }
        match pictures(&args, run, &interrupt, console) {
            Ok(gallery) => page.galleries.push(gallery),
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                let note = format!("{}: no pictures: {}", run.name, super::one_line(&error));
                console.note(format!("warning: {note}"));
                page.notes.push(note);
            }
        }
    }
    page.made = clock::now().as_secs();
    let html = page.html();
    at(&args.out, write_atomic(&args.out, html.as_bytes(), Existing::Replace))?;
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
fn pictures(
    args: &Args,
    run: &RunRecord,
    interrupt: &Interrupt,
    console: &Console,
) -> anyhow::Result<Gallery> {
    if interrupt.requested() {
        anyhow::bail!(Interrupted(None));
    }
    let recipe = Recipe::load(&RunFolder::open(&run.path).recipe().to_string_lossy(), &[])?;
    // A generated set has no files, whatever the other runs of the page are made of.
    let folder = args.data.as_deref().filter(|_| recipe.data.set != SetKind::Generated);
    let data = images_of(&recipe, folder)?;
    let mut gallery = Gallery { run: run.name.clone(), ..Gallery::default() };
    let count = args.images as usize;
    if let Some(chosen) = &run.chosen {
        let how = &recipe.data;
        let split = split(&data.train, data.classes, how.validation, how.validation_split, recipe.seed)?;
        let (kept, dropped) = examples(chosen, &split.train, &data, count).map_err(anyhow::Error::msg)?;
        gallery.selection = Some((chosen.epoch, kept, dropped));
    }
    let weights = weights_file(&run.path, console)?;
    let (network, tensors) = Weights::read_network(&weights)?;
    let count = count.min(data.test.len());
    let mut engine = open(args.device, network, count)?;
    engine.load_weights(&tensors)?;
    let protocol = PgdProtocol { steps: ATTACK_STEPS, restarts: 1, step_size: StepSize::TwoLevels };
    let epsilon = &recipe.attack.epsilon;
    gallery.attacked = attack(engine.as_mut(), &data, &protocol, epsilon.as_f32(), recipe.seed, count)?;
    gallery.attack = format!(
        "PGD-{ATTACK_STEPS}, eps {epsilon}, step {}, on {}.",
        protocol.step_size.text(),
        weights.strip_prefix(&run.path).unwrap_or(Path::new("the weights")).display()
    );
    Ok(gallery)
}
