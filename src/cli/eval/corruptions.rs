//! `secateur eval --corruptions`: accuracy on CIFAR-10-C or CIFAR-100-C, corruption by corruption, with the mean over severities of
//! each and the mean over the corruptions of the benchmark.

use std::path::Path;

use anyhow::{anyhow, bail};
use serde::Serialize;

use super::Args;
use crate::cli::console::Console;
use crate::cli::{CheckFailed, Interrupted, open_interruptible, write_json};
use crate::data::corruptions::{self, Corruption, SEVERITIES, STANDARD};
use crate::engine::DeviceInfo;
use crate::evaluate::{EvaluatedImages, Evaluation, EvaluationPlan, sanity};
use crate::files::Files;
use crate::progress::Inner;
use crate::train::{run_folder, trained};

/// What `--out` holds.
#[derive(Serialize)]
struct Report<'a> {
    weights: String,
    weights_sha256: &'a str,
    width: usize,
    corruptions: String,
    /// Images of each severity.
    samples: usize,
    epsilon: String,
    seed: u64,
    device: DeviceInfo,
    /// Whether every corruption is among the results: not so where the command was interrupted.
    complete: bool,
    /// Of each protocol.
    means: Vec<Mean>,
    results: &'a [Row],
    warnings: &'a [String],
}

/// Over the corruptions of the benchmark that there are.
#[derive(Serialize)]
struct Mean {
    protocol: String,
    corruptions: usize,
    accuracy: f64,
}

/// One corruption under one protocol.
#[derive(Serialize)]
struct Row {
    corruption: &'static str,
    /// Whether it is one of the 15 that the mean is over.
    standard: bool,
    protocol: String,
    images_sha256: String,
    /// Accuracy at each severity, 1 to 5.
    severities: [f64; SEVERITIES],
    /// Their mean.
    accuracy: f64,
    seconds: f64,
    non_finite: usize,
}

pub fn run(args: &Args, folder: &Path, console: &Console) -> anyhow::Result<()> {
    let mut files = Files::default();
    files.reads_folder("--corruptions", folder, |path| path.extension().is_some_and(|end| end == "npy"))?;
    let out = files.may_write("--out", args.out.as_ref())?;
    let weights = trained::weights(&args.weights, console)?;
    files.reads("--weights", &weights.path)?;
    files.reads_folder("--weights", &args.weights, run_folder::is_of_a_run)?;
    args.check_classes(&weights)?;
    let all = corruptions::open(folder, weights.network.classes)?;
    let most = all.iter().map(Corruption::count).min().unwrap_or(0);
    let samples = args.samples.map_or(most, |samples| samples as usize);
    if samples > most {
        bail!("--samples {samples}: there are {most} images of each severity");
    }

    let batch = (args.batch as usize).min(SEVERITIES * samples);
    let mut engine = open_interruptible(args.device, weights.network, batch, console)?;
    let (mut rows, mut warnings, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    let mut complete = true;
    for corruption in &all {
        let images = corruption.load(samples)?;
        let plan = EvaluationPlan {
            images: EvaluatedImages::all(corruption.name, "corrupted", &images),
            protocols: args.protocol.clone(),
            epsilon: args.eps.clone(),
            seed: args.seed,
            batch,
            dumped: None,
        };
        let mut evaluation = Evaluation::start(&mut engine, &weights, plan, None)?;
        complete = evaluation.run(&Inner { outer: console, label: &format!("{} ", corruption.name) })?;
        for (protocol, outcome) in evaluation.outcomes() {
            let right = |robust: &[bool]| robust.iter().filter(|&&robust| robust).count();
            let share = |severity| right(&outcome.robust[severity * samples..][..samples]) as f64;
            let severities: [f64; SEVERITIES] =
                std::array::from_fn(|severity| share(severity) / samples as f64);
            let texts = severities.map(|accuracy| format!("{:.1}", 100.0 * accuracy)).join(", ");
            let (name, accuracy) = (corruption.name, outcome.accuracy());
            console.line(format!("{name}: {protocol} {:.2} % (severities {texts})", 100.0 * accuracy));
            failures.extend(sanity::failure(protocol, outcome).map(|failure| format!("{name}: {failure}")));
            rows.push(Row {
                corruption: name,
                standard: corruption.is_standard(),
                protocol: protocol.to_string(),
                images_sha256: evaluation.settings().images_sha256.clone(),
                severities,
                accuracy,
                seconds: outcome.seconds,
                non_finite: outcome.non_finite,
            });
        }
        let outcomes: Vec<_> = evaluation.outcomes().collect();
        warnings
            .extend(sanity::alarms(&outcomes).iter().map(|alarm| format!("{}: {alarm}", corruption.name)));
        if !complete {
            break;
        }
    }

    for warning in &warnings {
        console.note(format!("warning: {warning}"));
    }
    let means = args.protocol.iter().filter_map(|protocol| mean(&protocol.to_string(), &rows));
    let means: Vec<Mean> = means.collect();
    for Mean { protocol, corruptions, accuracy } in &means {
        let of = STANDARD.len();
        console
            .line(format!("mean of {corruptions} of {of} corruptions: {protocol} {:.2} %", 100.0 * accuracy));
    }
    if let Some(out) = out.filter(|_| !rows.is_empty()) {
        let report = Report {
            weights: weights.path.display().to_string(),
            weights_sha256: &weights.sha256,
            width: weights.network.width,
            corruptions: folder.display().to_string(),
            samples,
            epsilon: args.eps.to_string(),
            seed: args.seed,
            device: engine.device().clone(),
            complete,
            means,
            results: &rows,
            warnings: &warnings,
        };
        write_json(&out, &report)?;
    }
    if !complete {
        bail!(Interrupted(None));
    }
    match failures.is_empty() {
        true => Ok(()),
        false => Err(anyhow!(CheckFailed(failures.join("; ")))),
    }
}

/// The mean of a protocol; `None` where no corruption of the benchmark is finished.
fn mean(protocol: &str, rows: &[Row]) -> Option<Mean> {
    let of = rows.iter().filter(|row| row.standard && row.protocol == protocol);
    let accuracies: Vec<f64> = of.map(|row| row.accuracy).collect();
    let corruptions = accuracies.len();
    let accuracy = accuracies.iter().sum::<f64>() / corruptions as f64;
    (corruptions > 0).then(|| Mean { protocol: protocol.into(), corruptions, accuracy })
}
