//! `secateur weights`: makes and checks weights files.
//!
//! Checked by tests/weights_files.rs. Called by the command line.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Subcommand;

use super::{CheckFailed, at, set_kind};
use crate::console::Console;
use crate::data::SetKind;
use crate::files::Files;
use crate::model::layers::WIDTHS;
use crate::model::{ParameterKind, ResNet18, Weights, WeightsError, initialise};

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
        /// Channels of the first stage, 16 or 64
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
}

/// A width that there are kernels for.
fn width(text: &str) -> Result<usize, String> {
    let wanted = || format!("expected {}", WIDTHS.map(|width| width.to_string()).join(" or "));
    text.parse().ok().filter(|width| WIDTHS.contains(width)).ok_or_else(wanted)
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    match args.command {
        WeightsCommand::Init { dataset, width, seed, out } => {
            let network = ResNet18 { width, classes: dataset.classes() };
            init(network, seed, &out)?;
            let classes = network.classes;
            console
                .line(format!("{}: ResNet-18, width {width}, {classes} classes, seed {seed}", out.display()));
        }
        WeightsCommand::Check { file } => match Weights::read_network(&file) {
            Ok((network, weights)) => console.line(describe(&file, network, &weights).trim_end()),
            Err(error @ WeightsError::Io { .. }) => return Err(error.into()),
            Err(error) => return Err(CheckFailed(error.to_string()).into()),
        },
    }
    Ok(())
}

fn init(network: ResNet18, seed: u64, out: &Path) -> anyhow::Result<()> {
    let file = Files::default().writes("--out", out)?;
    match file.write_new(&initialise(network, seed).to_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{}: exists already and is left alone; choose another --out or move it", out.display())
        }
        result => at(out, result),
    }
}

/// Network, counts and, for each kind of parameter, the range and the root mean square of its values.
fn describe(file: &Path, network: ResNet18, weights: &Weights) -> String {
    let parameters = network.parameters();
    let count = |trainable| -> usize {
        parameters.iter().filter(|p| p.kind.trainable() == trainable).map(|p| p.len()).sum()
    };
    let (width, classes) = (network.width, network.classes);
    let mut text = format!("{}: ResNet-18, width {width}, {classes} classes\n", file.display());
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
