//! The command: which layers and variants, how long each is sampled, and where the rows go.

pub mod im2col;
mod table;
pub mod variants;

use std::path::PathBuf;

use anyhow::{Context, bail};
use regex::Regex;
use secateur::cuda::driver::{Image, add_code};
use secateur::engine::{DeviceChoice, Error, open, open_dry};
use secateur::files::{self, Files};
use secateur::measure::ceilings::Ceilings;
use secateur::measure::document::{Document, Row};
use secateur::measure::harness::{Rule, sample};
use secateur::measure::workload::Cache;
use secateur::model::ResNet;
use secateur::model::layers::WIDTHS;

/// Time every layer on every variant of the convolution kernels
#[derive(clap::Parser)]
pub struct Args {
    /// cuda or cuda:N of compute capability 9.0, or emulated:sm_90a
    #[arg(long, default_value = "cuda")]
    device: DeviceChoice,
    /// Width of the network
    #[arg(long, value_name = "N", default_value_t = 64)]
    width: usize,
    /// Images a batch
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Print what an H200 should take, and measure nothing
    #[arg(long)]
    dry_run: bool,
    /// Only rows whose name, layer and variant, this regular expression matches
    #[arg(long, value_name = "RE", default_value = "")]
    filter: Regex,
    /// Samples of a row at least
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Relative standard error of the median at most, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    error: f64,
    /// Seconds of sampling a row at most
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    timeout: f64,
    /// Write everything, every sample included, as JSON; rewritten after each row
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// Runs the command; `line` takes what it prints.
pub fn run(args: &Args, line: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    if !WIDTHS.contains(&args.width) {
        bail!("--width {}: the kernels are built for widths {WIDTHS:?}", args.width);
    }
    let json = Files::default().may_write("--json", args.json.as_ref())?;
    if args.dry_run && json.is_some() {
        bail!("--dry-run measures nothing: --json has nothing to hold");
    }
    const EXTRA: &[Image] = include!(concat!(env!("OUT_DIR"), "/extra_images.rs"));
    add_code(EXTRA);
    let network = ResNet::resnet18(args.width, 10);
    let mut engine = match args.dry_run {
        true => open_dry(network, 1)?.0,
        false => open(args.device, network, 1)?,
    };
    let driver = engine.driver().cloned().ok_or_else(|| {
        Error::Unavailable(
            "--device cpu: the CPU engine launches no kernels; the variants are for an H100 or H200 and for emulated:sm_90a"
                .into(),
        )
    })?;
    let mut steps = variants::steps(&driver, network, args.batch as usize)?;
    steps.retain(|step| args.filter.is_match(&step.name()));
    if steps.is_empty() {
        bail!("--filter {}: matches no row", args.filter);
    }
    if args.dry_run {
        table::predicted_lines(&steps).iter().for_each(|text| line(text));
        return Ok(());
    }

    let rule = Rule { samples: args.samples as usize, error: args.error / 100.0, seconds: args.timeout };
    let ceilings = Ceilings::measure(&mut engine)?;
    let mut document = Document::new("ablation", &engine, Vec::new(), args.batch as usize, &ceilings);
    document.device_block().iter().for_each(|text| line(text));
    let write = |document: &Document| match &json {
        Some(json) => json.write(&files::json(document)).with_context(|| json.path().display().to_string()),
        None => Ok(()),
    };
    let mut measured = Vec::new();
    for step in &mut steps {
        // Loads code and touches memory.
        step.seconds()?;
        let Some(samples) = sample(&rule, &|| false, &mut || step.seconds())? else { break };
        let row = Row::new(step.name(), Cache::Warm, samples, 0, [step.flops as f64, 0.0], &ceilings);
        measured.push(row.as_ref().map(|row| row.median));
        let predicted = step.prediction.map(|prediction| prediction.seconds);
        document.rows.extend(row.map(|row| Row { predicted, ..row }));
        write(&document)?;
    }
    table::measured_lines(&steps, &measured).iter().for_each(|text| line(text));
    document.finished = true;
    write(&document)
}
