//! `secateur eval`: accuracy of a weights file or a run under protocols, as lines and as JSON.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;

use super::{Interrupted, at, catch_interrupts, radius, writable};
use crate::batch::Batch;
use crate::console::Console;
use crate::data::{DataSet, SetKind};
use crate::engine::{DeviceChoice, DeviceInfo, WeightSet, open};
use crate::evaluate::{Protocol, Subject, evaluate};
use crate::files::{Existing, write_atomic};
use crate::model::Weights;
use crate::recipe::{Fraction, Recipe};
use crate::train::checkpoint::{self, sha256};
use crate::train::run_folder::RunFolder;

/// Measure the accuracy of weights under evaluation protocols
#[derive(clap::Args)]
pub struct Args {
    /// A safetensors file, a run folder (its best weights) or a checkpoint folder
    #[arg(long, value_name = "FILE|DIR")]
    weights: PathBuf,
    /// Folder of the CIFAR binary files; without it, generated images
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// clean, pgdN, pgdNxR (R restarts, worst case per image), pgdN-0.003 (step of the TRADES papers)
    #[arg(long, value_delimiter = ',', default_value = "clean,pgd20")]
    protocol: Vec<Protocol>,
    /// The first so many images [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    samples: Option<u32>,
    /// Images of the training set instead of the test set
    #[arg(long)]
    training_images: bool,
    /// Radius of the L-infinity ball
    #[arg(long, default_value = "8/255", value_parser = radius)]
    eps: Fraction,
    /// Keys the random starts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images a batch
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// auto, cpu, cuda, cuda:N or emulated
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What `--out` holds.
#[derive(Serialize)]
struct Report<'a> {
    weights: String,
    weights_sha256: String,
    width: usize,
    data: &'a str,
    split: &'static str,
    samples: usize,
    device: &'a DeviceInfo,
    results: Vec<Row>,
}

/// Accuracy under one protocol.
#[derive(Serialize)]
struct Row {
    protocol: String,
    /// Radius as it was given, "8/255"; absent for clean.
    epsilon: Option<String>,
    step_size: Option<&'static str>,
    steps: usize,
    restarts: u32,
    seed: u64,
    correct: usize,
    total: usize,
    accuracy: f64,
    seconds: f64,
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    let path = weights_file(&args.weights, console)?;
    let (network, weights) = Weights::read_network(&path)?;
    let data = images(&args, network.classes)?;
    let split = if args.training_images { &data.train } else { &data.test };
    let total = args.samples.map_or(split.len(), |samples| split.len().min(samples as usize));
    if let Some(wanted) = args.samples.filter(|&wanted| wanted as usize > total) {
        bail!("--samples {wanted}: there are {total} images");
    }
    if let Some(out) = &args.out {
        writable(out)?;
    }

    let batch = (args.batch as usize).min(total);
    let mut engine = open(args.device, network, batch)?;
    let engine = engine.as_mut();
    let interrupt = catch_interrupts()?;
    engine.load_weights(&weights)?;
    let set = engine.upload_images(&split.pixels, &split.labels)?;
    let scratch = Batch::alloc(engine, batch)?;
    let samples: Vec<u32> = (0..total as u32).collect();

    let mut results = Vec::new();
    for protocol in &args.protocol {
        let subject = Subject {
            set: &set,
            samples: &samples,
            weights: WeightSet::Live,
            epsilon: args.eps.as_f32(),
            seed: args.seed,
        };
        let mut shown = false;
        let outcome = evaluate(engine, subject, protocol, &scratch, &mut |done, total| {
            if !std::mem::replace(&mut shown, true) {
                console.bar(protocol.to_string(), total);
            }
            console.at(done);
            !interrupt.requested()
        })?;
        console.clear();
        let Some(outcome) = outcome else { bail!(Interrupted) };
        let row = row(&args, protocol, outcome.correct(), total, outcome.seconds);
        console.line(format!(
            "{protocol}: {:.2} % ({} of {total}){}, {:.1} s",
            100.0 * row.accuracy,
            row.correct,
            row.epsilon.as_ref().map_or(String::new(), |epsilon| format!(", eps {epsilon}")),
            row.seconds
        ));
        results.push(row);
    }

    if let Some(out) = &args.out {
        let report = Report {
            weights: path.display().to_string(),
            weights_sha256: sha256(&at(&path, std::fs::read(&path))?),
            width: network.width,
            data: &data.name,
            split: if args.training_images { "train" } else { "test" },
            samples: total,
            device: engine.device(),
            results,
        };
        let mut bytes = serde_json::to_vec_pretty(&report)?;
        bytes.push(b'\n');
        at(out, write_atomic(out, &bytes, Existing::Replace))?;
    }
    Ok(())
}

fn row(args: &Args, protocol: &Protocol, correct: usize, total: usize, seconds: f64) -> Row {
    let clean = Row {
        protocol: protocol.to_string(),
        epsilon: None,
        step_size: None,
        steps: 0,
        restarts: 0,
        seed: args.seed,
        correct,
        total,
        accuracy: correct as f64 / total as f64,
        seconds,
    };
    match protocol {
        Protocol::Clean => clean,
        Protocol::Pgd(pgd) => Row {
            epsilon: Some(args.eps.to_string()),
            step_size: Some(pgd.step_size.text()),
            steps: pgd.steps,
            restarts: pgd.restarts,
            ..clean
        },
    }
}

/// The file that stands for what `--weights` names.
fn weights_file(path: &Path, console: &Console) -> anyhow::Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    if path.join("manifest.json").is_file() {
        checkpoint::load(path)?;
        return Ok(checkpoint::weights_to_judge(path));
    }
    for name in ["best.safetensors", "last.safetensors"] {
        if path.join(name).is_file() {
            return Ok(path.join(name));
        }
    }
    // A run under way: its best epoch so far, or the newest.
    let folder = RunFolder::open(path).checkpoints();
    let warn = &mut |error: &checkpoint::CheckpointError| console.note(format!("warning: {error}"));
    let (newest, state) = checkpoint::load_newest(&folder, warn)?.with_context(|| {
        format!("{}: neither a weights file, a run with weights nor a checkpoint", path.display())
    })?;
    let best = state.progress.best.map(|best| folder.join(checkpoint::name(best.epoch, 0)));
    let chosen = best.filter(|best| checkpoint::load(best).is_ok()).unwrap_or(newest);
    Ok(checkpoint::weights_to_judge(&chosen))
}

/// The images to judge on: those of the run's recipe where there is one, else what `--data` must hold.
fn images(args: &Args, classes: usize) -> anyhow::Result<DataSet> {
    let recipe = args.weights.join("recipe.toml");
    if recipe.is_file() {
        let data = Recipe::load(&recipe.to_string_lossy(), &[])?.data;
        return Ok(DataSet::open(data.set, args.data.as_deref(), data.train_limit, data.test_limit)?);
    }
    let kind = match (&args.data, classes) {
        (None, _) => SetKind::Generated,
        (Some(_), 100) => SetKind::Cifar100,
        (Some(_), _) => SetKind::Cifar10,
    };
    if kind.classes() != classes {
        bail!(
            "{}: weights for {classes} classes, and {} has {}; give --data",
            args.weights.display(),
            kind,
            kind.classes()
        );
    }
    Ok(DataSet::open(kind, args.data.as_deref(), None, None)?)
}
