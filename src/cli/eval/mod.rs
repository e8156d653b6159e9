//! `secateur eval`: accuracy of a weights file or a run under protocols, as lines and as JSON.
//!
//! `subject` finds weights and images, `session` keeps the state of long evaluations, `report` writes what was found. Checked by
//! `tests/cli.rs` and `tests/autoattack.rs`.

mod report;
mod session;
pub(super) mod subject;

use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};

use super::{CheckFailed, Interrupted, catch_interrupts, inputs, radius, write};
use crate::batch::Batch;
use crate::config::Fraction;
use crate::console::Console;
use crate::engine::{DeviceChoice, WeightSet, open};
use crate::evaluate::state::{Settings, device_name};
use crate::evaluate::{Part, Protocol, Subject, evaluate, sanity};
use crate::files::{Files, LOCK_SUFFIX, Output, OutputError, Place};
use crate::ops::ImageSet;
use crate::train::run_folder;
use session::{IMAGES_SUFFIX, Session};
use subject::NamedWeights;

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
    /// The first so many images [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    samples: Option<u32>,
    /// Images of the training set instead of the test set
    #[arg(long)]
    training_images: bool,
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
    let dumped = args.dumped()?;
    let mut files = inputs([], args.data.as_deref())?;
    let out = files.may_write("--out", args.out.as_ref())?;
    let dump = files.may_write("--dump", args.dump.as_ref())?;
    let state = args.state(out.as_ref())?.map(|state| place_of_state(&mut files, &state)).transpose()?;
    let NamedWeights { file: path, sha256, network, weights } = subject::weights(&args.weights, console)?;
    files.reads("--weights", &path)?;
    files.reads_folder("--weights", &args.weights, run_folder::is_of_a_run)?;
    let targeted = args.protocol.iter().any(|protocol| protocol.parts().contains(&Part::ApgdT));
    if targeted && network.classes < 4 {
        bail!(
            "{}: {} classes, and the targeted DLR loss of apgd-t needs 4 at least",
            path.display(),
            network.classes
        );
    }
    let data = subject::images(&args.weights, args.data.as_deref(), network.classes)?;
    let split = if args.training_images { &data.train } else { &data.test };
    let total = args.samples.map_or(split.len(), |samples| split.len().min(samples as usize));
    if let Some(wanted) = args.samples.filter(|&wanted| wanted as usize > total) {
        bail!("--samples {wanted}: there are {total} images");
    }

    let batch = (args.batch as usize).min(total);
    let mut engine = open(args.device, network, batch)?;
    let engine = &mut engine;
    let interrupt = catch_interrupts()?;
    engine.stop_on(Some(interrupt.flag()));
    engine.load_weights(&weights)?;
    let set = ImageSet::upload(&engine, &split.pixels, &split.labels)?;
    let scratch = Batch::alloc(engine, batch)?;
    let samples: Vec<u32> = (0..total as u32).collect();

    let settings = Settings {
        weights_sha256: sha256,
        data: data.name.clone(),
        split: if args.training_images { "train" } else { "test" }.into(),
        samples: total,
        images_sha256: split.sha256(total),
        epsilon: args.eps.to_string(),
        seed: args.seed,
        protocols: args.protocol.iter().map(|protocol| protocol.to_string()).collect(),
        device: device_name(engine.device().kind, &engine.device().code),
        build: env!("CARGO_PKG_VERSION").into(),
        dump: dumped.is_some(),
    };
    let mut session = Session::open(settings, state, args.resume)?;
    let subject = Subject {
        set: &set,
        samples: &samples,
        weights: WeightSet::Live,
        epsilon: args.eps.as_f32(),
        seed: args.seed,
    };
    let mut stopped = false;
    for (number, protocol) in args.protocol.iter().enumerate() {
        if session.finished().len() <= number {
            let keeps = dumped == Some(protocol);
            let finished = match protocol.parts() {
                [] => {
                    let watch = &mut console.watch(protocol.to_string(), || interrupt.requested());
                    let outcome = evaluate(engine, subject, protocol, &scratch, watch)?;
                    outcome.map(|outcome| (outcome, None))
                }
                _ => session.search(engine, subject, protocol, &scratch, keeps, (console, &interrupt))?,
            };
            console.clear();
            let Some((outcome, progress)) = finished else {
                stopped = true;
                break;
            };
            session.finish(protocol, outcome, progress)?;
        }
        let outcome = &session.finished()[number].outcome;
        console.line(report::line(protocol, outcome, &args.eps, session.settings()));
    }

    let outcomes: Vec<_> = args
        .protocol
        .iter()
        .zip(session.finished())
        .map(|(protocol, done)| (protocol, &done.outcome))
        .collect();
    let mut warnings = sanity::alarms(&outcomes);
    let mut failures: Vec<String> =
        outcomes.iter().filter_map(|(protocol, outcome)| sanity::failure(protocol, outcome)).collect();
    for progress in session.finished().iter().filter_map(|finished| finished.progress.as_ref()) {
        warnings.extend(sanity::warnings(progress));
        failures.extend(progress.extent.failures());
    }
    for warning in &warnings {
        console.note(format!("warning: {warning}"));
    }
    if stopped {
        session.save()?;
    }
    if let Some(out) = out.as_ref().filter(|_| !session.finished().is_empty()) {
        let report = report::report(&path, network, &session, &args.protocol, engine.device(), &warnings);
        let mut bytes = serde_json::to_vec_pretty(&report)?;
        bytes.push(b'\n');
        write(out, &bytes)?;
    }
    if stopped {
        bail!(Interrupted(session.hint()));
    }
    if let (Some(dump), Some(protocol)) = (&dump, dumped) {
        let bytes = session.dump(protocol, split)?;
        write(dump, &bytes)?;
        console.line(format!("{}: adversarial images of {protocol}", dump.path().display()));
    }
    session.close()?;
    match failures.is_empty() {
        true => Ok(()),
        false => bail!(CheckFailed(failures.join("; "))),
    }
}
