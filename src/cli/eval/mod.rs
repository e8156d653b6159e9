//! `secateur eval`: accuracy of a weights file or a run under protocols, as lines and as JSON.
//!
//! `subject` finds weights and images, `session` keeps the state of long evaluations, `report` writes what was found. Checked by
//! `tests/cli.rs` and `tests/autoattack.rs`.

mod report;
mod session;
pub(super) mod subject;

use std::path::PathBuf;

use anyhow::bail;

use super::{CheckFailed, Interrupted, at, catch_interrupts, radius, writable};
use crate::batch::Batch;
use crate::console::Console;
use crate::digest::sha256;
use crate::engine::{DeviceChoice, WeightSet, open};
use crate::evaluate::state::Settings;
use crate::evaluate::{Part, Protocol, Subject, evaluate, sanity};
use crate::files::{Existing, write_atomic};
use crate::model::Weights;
use crate::recipe::Fraction;
use session::Session;

/// Measure the accuracy of weights under evaluation protocols
#[derive(clap::Args)]
pub struct Args {
    /// A safetensors file, a run folder (its best weights) or a checkpoint folder
    #[arg(long, value_name = "FILE|DIR")]
    weights: PathBuf,
    /// Folder of the CIFAR binary files; without it, generated images
    #[arg(long, value_name = "DIR")]
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
    /// Where aa and its parts keep their state until they are done [default: beside --out]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Go on from the state
    #[arg(long)]
    resume: bool,
}

impl Args {
    /// Where the state lies: only searches take long enough to need one.
    fn state(&self) -> anyhow::Result<Option<PathBuf>> {
        let beside = |out: &PathBuf| {
            let mut name = out.clone().into_os_string();
            name.push(".state");
            PathBuf::from(name)
        };
        let searches = self.protocol.iter().any(|protocol| !protocol.parts().is_empty());
        let state = self.state.clone().or_else(|| self.out.as_ref().map(beside)).filter(|_| searches);
        if state.is_none() && (self.resume || self.state.is_some()) {
            bail!(
                "--state and --resume: need one of aa, apgd-ce, apgd-t, fab-t, square in --protocol, and --state FILE or --out FILE"
            );
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

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    let (state, dumped) = (args.state()?, args.dumped()?);
    let path = subject::weights_file(&args.weights, console)?;
    let (network, weights) = Weights::read_network(&path)?;
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
    for file in [&args.out, &args.dump, &state].into_iter().flatten() {
        writable(file)?;
    }

    let batch = (args.batch as usize).min(total);
    let mut engine = open(args.device, network, batch)?;
    let engine = engine.as_mut();
    let interrupt = catch_interrupts()?;
    engine.load_weights(&weights)?;
    let set = engine.upload_images(&split.pixels, &split.labels)?;
    let scratch = Batch::alloc(engine, batch)?;
    let samples: Vec<u32> = (0..total as u32).collect();

    let settings = Settings {
        weights_sha256: sha256(&at(&path, std::fs::read(&path))?),
        data: data.name.clone(),
        split: if args.training_images { "train" } else { "test" }.into(),
        samples: total,
        epsilon: args.eps.to_string(),
        seed: args.seed,
        protocols: args.protocol.iter().map(|protocol| protocol.to_string()).collect(),
        device: engine.device().kind.into(),
        dump: dumped.is_some(),
    };
    let mut session = Session::open(settings, state, args.resume)?;
    let stop = || Interrupted(session::hint(&args));

    let subject = Subject {
        set: &set,
        samples: &samples,
        weights: WeightSet::Live,
        epsilon: args.eps.as_f32(),
        seed: args.seed,
    };
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
            let Some((outcome, progress)) = finished else { bail!(stop()) };
            session.finish(protocol, outcome, progress)?;
        }
        console.line(report::line(protocol, &session.finished()[number].outcome, &args.eps));
    }

    let outcomes: Vec<_> = args
        .protocol
        .iter()
        .zip(session.finished())
        .map(|(protocol, done)| (protocol, &done.outcome))
        .collect();
    let mut warnings = sanity::alarms(&outcomes);
    let mut failures = Vec::new();
    for progress in session.finished().iter().filter_map(|finished| finished.progress.as_ref()) {
        warnings.extend(sanity::warnings(progress));
        failures.extend(progress.extent.failures());
    }
    for warning in &warnings {
        console.note(format!("warning: {warning}"));
    }
    if let Some(out) = &args.out {
        let report = report::report(&path, network, &session, &args.protocol, engine.device(), &warnings);
        let mut bytes = serde_json::to_vec_pretty(&report)?;
        bytes.push(b'\n');
        at(out, write_atomic(out, &bytes, Existing::Replace))?;
    }
    if let (Some(dump), Some(protocol)) = (&args.dump, dumped) {
        let bytes = session.dump(protocol, split)?;
        at(dump, write_atomic(dump, &bytes, Existing::Replace))?;
        console.line(format!("{}: adversarial images of {protocol}", dump.display()));
    }
    session.close()?;
    match failures.is_empty() {
        true => Ok(()),
        false => bail!(CheckFailed(failures.join("; "))),
    }
}
