//! `secateur weights`: makes and checks weights files.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Subcommand;

use super::console::Console;
use super::{CheckFailed, at, set_kind};
use crate::batch::Batch;
use crate::data::{SetKind, generated};
use crate::engine::{DeviceChoice, WeightSet, open};
use crate::evaluate::{Protocol, Subject, evaluate};
use crate::files::{Files, Output};
use crate::model::foreign::Converted;
use crate::model::layers::WIDTHS;
use crate::model::{ParameterKind, ResNet, Weights, WeightsError, initialise};
use crate::ops::ImageSet;

/// Make a weights file, or check and describe one (safetensors, with PyTorch's names)
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: WeightsCommand,
}

#[derive(Subcommand)]
enum WeightsCommand {
    /// Write the initial weights of a fresh network
    Init {
        /// cifar10, cifar100 or generated: decides the number of classes
        #[arg(long, value_parser = set_kind, default_value = "cifar10")]
        dataset: SetKind,
        /// Channels of the first stage, 16, 32 or 64
        #[arg(long, value_parser = width, default_value = "64")]
        width: usize,
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// File to write; an existing one is left alone
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Check that a file holds the weights of one network, whole and finite, and describe it
    Check {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Make weights of another program fit: strips a prefix of all names (net., model., module.), names fc linear and downsample
    /// shortcut, drops num_batches_tracked, makes F16, BF16 and F64 F32
    Convert {
        /// A safetensors file
        #[arg(value_name = "IN")]
        file: PathBuf,
        /// File to write; an existing one is left alone
        #[arg(value_name = "OUT")]
        out: PathBuf,
    },
}

/// A width that there are kernels for.
fn width(text: &str) -> Result<usize, String> {
    let expected = || format!("expected {}", WIDTHS.map(|width| width.to_string()).join(" or "));
    text.parse().ok().filter(|width| WIDTHS.contains(width)).ok_or_else(expected)
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    match args.command {
        WeightsCommand::Init { dataset, width, seed, out } => {
            let network = ResNet::resnet18(width, dataset.classes());
            let file = Files::default().writes("--out", &out)?;
            write(&initialise(network, seed), &file)?;
            console.line(format!("{}: {network}, seed {seed}", out.display()));
        }
        WeightsCommand::Check { file } => match Weights::read_network(&file) {
            Ok((network, weights)) => check(&file, network, &weights, console)?,
            Err(error @ WeightsError::Io { .. }) => return Err(error.into()),
            Err(error) => return Err(CheckFailed(error.to_string()).into()),
        },
        WeightsCommand::Convert { file, out } => {
            let mut files = Files::default();
            files.reads("the weights", &file)?;
            let written = files.writes("--out", &out)?;
            let Converted { network, weights, changes } = Weights::convert(&file)?;
            finite_logits(&file, network, &weights)?;
            write(&weights, &written)?;
            console.lines(changes);
            console.line(format!("{}: {network}", out.display()));
        }
    }
    Ok(())
}

/// Images of the pass that shows whether weights give logits that are numbers.
const PROBED: usize = 8;

/// Describes weights that are whole and finite, and looks at what they compute.
fn check(file: &Path, network: ResNet, weights: &Weights, console: &Console) -> anyhow::Result<()> {
    finite_logits(file, network, weights)?;
    console.line(describe(file, network, weights).trim_end());
    for parameter in network.parameters().iter().filter(|p| p.kind == ParameterKind::BnRunningVar) {
        let zeros =
            weights.tensors[&parameter.name].values.iter().filter(|variance| **variance == 0.0).count();
        if zeros > 0 {
            console.note(format!(
                "warning: {}: {zeros} of {} variances are 0",
                parameter.name,
                parameter.len()
            ));
        }
    }
    Ok(())
}

/// Refuses finite weights whose products are not: one pass over a few generated images.
fn finite_logits(file: &Path, network: ResNet, weights: &Weights) -> anyhow::Result<()> {
    let mut engine = open(DeviceChoice::Cpu, network, PROBED)?;
    engine.load_weights(weights)?;
    let images = generated::images(generated::Part::Test, PROBED);
    let set = ImageSet::upload(&engine, &images.pixels, &[0; PROBED])?;
    let samples: Vec<u32> = (0..PROBED as u32).collect();
    let subject = Subject { set: &set, samples: &samples, weights: WeightSet::Live, epsilon: 0.0, seed: 0 };
    let scratch = Batch::alloc(&engine, PROBED)?;
    let outcome = evaluate(&mut engine, subject, &Protocol::Clean, &scratch, &mut |_, _| true)?;
    match outcome.map_or(0, |outcome| outcome.non_finite) {
        0 => Ok(()),
        count => bail!(CheckFailed(format!(
            "{}: every value is finite, but {count} of {PROBED} generated images have a logit that is NaN or infinite; the weights \
             are damaged or the training diverged",
            file.display()
        ))),
    }
}

fn write(weights: &Weights, out: &Output) -> anyhow::Result<()> {
    let path = out.path();
    match out.write_new(&weights.to_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{}: exists already and is left alone; choose another --out or move it", path.display())
        }
        result => at(path, result),
    }
}

/// Network, counts and, for each kind of parameter, the range and the root mean square of its values.
fn describe(file: &Path, network: ResNet, weights: &Weights) -> String {
    let parameters = network.parameters();
    let count = |trainable| -> usize {
        parameters.iter().filter(|p| p.kind.trainable() == trainable).map(|p| p.len()).sum()
    };
    let mut text = format!("{}: {network}\n", file.display());
    text += &format!("{} parameters, {} running statistics, all finite\n", count(true), count(false));
    let kinds = [
        ("convolutions", ParameterKind::ConvWeight),
        ("BatchNorm weights", ParameterKind::BnWeight),
        ("BatchNorm biases", ParameterKind::BnBias),
        ("running means", ParameterKind::BnRunningMean),
        ("running variances", ParameterKind::BnRunningVar),
        ("linear weights", ParameterKind::LinearWeight),
        ("linear biases", ParameterKind::LinearBias),
    ];
    text += &format!("{:18} {:>10} {:>11} {:>11} {:>11}\n", "", "values", "least", "largest", "rms");
    for (name, kind) in kinds {
        let tensors = parameters.iter().filter(|parameter| parameter.kind == kind);
        let values = || tensors.clone().flat_map(|p| &weights.tensors[&p.name].values).copied();
        let (least, most) = values().fold((f32::MAX, f32::MIN), |(a, b), v| (a.min(v), b.max(v)));
        let squares: f64 = values().map(|value| f64::from(value).powi(2)).sum();
        let n = values().count();
        let rms = (squares / n as f64).sqrt();
        text += &format!("{name:18} {n:>10} {least:>11.4e} {most:>11.4e} {rms:>11.4e}\n");
    }
    text
}
