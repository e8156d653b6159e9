//! `secateur eval`: accuracy of a weights file or a run under protocols, as lines and as JSON.
//!
//! `report` is what `--out` holds; `corruptions` evaluates on CIFAR-10-C and CIFAR-100-C instead.

mod corruptions;
mod report;

use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};

use super::console::Console;
use super::{CheckFailed, Interrupted, inputs, open_interruptible, radius, write, write_json};
use crate::config::Fraction;
use crate::engine::DeviceChoice;
use crate::evaluate::{EvaluatedImages, Evaluation, EvaluationPlan, IMAGES_SUFFIX, Part, Protocol, sanity};
use crate::files::{Files, LOCK_SUFFIX, Output, OutputError, Place};
use crate::model::WeightsFile;
use crate::train::{run_folder, trained};

/// Measure the accuracy of weights under evaluation protocols
#[derive(clap::Args)]
pub struct Args {
    /// A safetensors file, a run folder (its best weights) or a checkpoint folder
    #[arg(long, value_name = "FILE|DIR")]
    weights: PathBuf,
    /// CIFAR files: a folder or an archive, binary or Python version; without it, generated images
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// clean, fgsm, pgdN, pgdNxR (R restarts, worst case per image), pgdN-0.003 (step of the TRADES papers), cw, aa (AutoAttack) or
    /// its parts apgd-ce, apgd-t, fab-t, square
    #[arg(long, value_delimiter = ',', default_value = "clean,pgd20")]
    protocol: Vec<Protocol>,
    /// The first N images; with --corruptions, of each severity [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    samples: Option<u32>,
    /// Images of the training set instead of the test set
    #[arg(long)]
    training_images: bool,
    /// Corrupted test images instead: the folder of the .npy files of CIFAR-10-C or CIFAR-100-C; the mean over severities of each
    /// corruption, and over corruptions
    #[arg(long, value_name = "DIR", conflicts_with_all = ["data", "training_images", "dump", "state", "resume"])]
    corruptions: Option<PathBuf>,
    /// Radius of the L-infinity ball
    #[arg(long, default_value = "8/255", value_parser = radius, allow_hyphen_values = true)]
    eps: Fraction,
    /// Keys the random starts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images a batch
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// auto, cpu, cpu:bf16, cuda, cuda:N, emulated or emulated:sm_90a
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the adversarial images of aa or of one of its parts as safetensors
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
    /// Where the evaluation keeps its state until it is done [default: beside --out]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Go on from the state, where there is one
    #[arg(long)]
    resume: bool,
}

impl Args {
    /// Where the state lies.
    fn state(&self, out: Option<&Output>) -> anyhow::Result<Option<PathBuf>> {
        let beside = |out: &Output| {
            let mut name = out.path().as_os_str().to_os_string();
            name.push(".state");
            PathBuf::from(name)
        };
        // Next to a device or a pipe there is no place for one.
        let out = out.filter(|out| out.place().is_some());
        let state = self.state.clone().or_else(|| out.map(beside));
        if state.is_none() && self.resume {
            bail!("--resume: needs --state FILE or --out FILE, where the state is");
        }
        Ok(state)
    }

    /// Refuses a protocol that needs more classes than the network has.
    fn check_classes(&self, weights: &WeightsFile) -> anyhow::Result<()> {
        let (path, classes) = (weights.path.display(), weights.network.classes);
        let targeted = self.protocol.iter().any(|protocol| protocol.parts().contains(&Part::ApgdT));
        match targeted && classes < 4 {
            true => bail!("{path}: {classes} classes, and the targeted DLR loss of apgd-t needs 4 at least"),
            false => Ok(()),
        }
    }

    /// The protocol whose adversarial images are dumped.
    fn dumped(&self) -> anyhow::Result<Option<&Protocol>> {
        if self.dump.is_none() {
            return Ok(None);
        }
        let mut searches = self.protocol.iter().filter(|protocol| !protocol.parts().is_empty());
        match (searches.next(), searches.next()) {
            (Some(one), None) => Ok(Some(one)),
            _ => bail!("--dump: needs exactly one of aa, apgd-ce, apgd-t, fab-t, square in --protocol"),
        }
    }
}

/// The file of the state, declared with those that go with it.
fn place_of_state(files: &mut Files, state: &Path) -> Result<Place, OutputError> {
    let declared = files.writes("the state", state)?;
    let Some(place) = declared.place() else {
        let source = std::io::Error::other("not a file, and a state is kept in one");
        return Err(OutputError::Io { path: state.into(), source });
    };
    for suffix in [IMAGES_SUFFIX, LOCK_SUFFIX] {
        files.writes("the state's file", &place.with_suffix(suffix).path())?;
    }
    Ok(place.clone())
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    Protocol::check_list(&args.protocol).map_err(|reason| anyhow!("--protocol {reason}"))?;
    if let Some(folder) = &args.corruptions {
        return corruptions::run(&args, folder, console);
    }
    let dumped = args.dumped()?;
    let mut files = inputs([], args.data.as_deref())?;
    let out = files.may_write("--out", args.out.as_ref())?;
    let dump = files.may_write("--dump", args.dump.as_ref())?;
    let state = args.state(out.as_ref())?.map(|state| place_of_state(&mut files, &state)).transpose()?;
    let weights = trained::weights(&args.weights, console)?;
    files.reads("--weights", &weights.path)?;
    files.reads_folder("--weights", &args.weights, run_folder::is_of_a_run)?;
    args.check_classes(&weights)?;
    let data = trained::images(&args.weights, args.data.as_deref(), weights.network.classes)?;
    let count = args.samples.map_or(usize::MAX, |samples| samples as usize);
    let images = match args.training_images {
        true => EvaluatedImages::train(&data, count),
        false => EvaluatedImages::test(&data, count),
    };
    let total = images.count();
    if let Some(samples) = args.samples.filter(|&samples| samples as usize > total) {
        bail!("--samples {samples}: there are {total} images");
    }

    let batch = (args.batch as usize).min(total);
    let mut engine = open_interruptible(args.device, weights.network, batch, console)?;
    let engine = &mut engine;
    let plan = EvaluationPlan {
        images,
        protocols: args.protocol.clone(),
        epsilon: args.eps.clone(),
        seed: args.seed,
        batch,
        dumped: dumped.cloned(),
    };
    let mut evaluation = match state.clone() {
        Some(state) if args.resume => Evaluation::resume(engine, &weights, plan, state)?,
        state => Evaluation::start(engine, &weights, plan, state)?,
    };
    let complete = evaluation.run(console)?;

    let outcomes: Vec<_> = evaluation.outcomes().collect();
    let mut warnings = sanity::alarms(&outcomes);
    let mut failures: Vec<String> =
        outcomes.iter().filter_map(|(protocol, outcome)| sanity::failure(protocol, outcome)).collect();
    for search in evaluation.finished().iter().filter_map(|finished| finished.progress.as_ref()) {
        warnings.extend(sanity::warnings(search));
        failures.extend(search.extent.failures());
    }
    for warning in &warnings {
        console.note(format!("warning: {warning}"));
    }
    if let Some(out) = out.as_ref().filter(|_| !evaluation.finished().is_empty()) {
        let report = report::report(&weights, &evaluation, &warnings);
        write_json(out, &report)?;
    }
    if !complete {
        let hint = |state: Place| {
            let state = state.path();
            format!("the state is in {}; continue with the same command and --resume", state.display())
        };
        bail!(Interrupted(state.map(hint)));
    }
    if let (Some(dump), Some(protocol)) = (&dump, dumped) {
        let bytes = evaluation.dump()?.unwrap_or_default();
        write(dump, &bytes)?;
        console.line(format!("{}: adversarial images of {protocol}", dump.path().display()));
    }
    evaluation.close()?;
    match failures.is_empty() {
        true => Ok(()),
        false => bail!(CheckFailed(failures.join("; "))),
    }
}
