//! `secateur bench ladder`: every layer on every kind of convolution kernel, what it takes beside what it should take.
//!
//! The rungs below the product exist for this command alone. `--dry-run` prints what an H200 should take and needs no device.
//! Checked by `tests/ladder.rs`.

use anyhow::bail;
use regex::Regex;

use super::super::{Interrupted, catch_interrupts};
use super::options::{Sampling, filter};
use crate::console::Console;
use crate::engine::{DeviceChoice, open, open_dry};
use crate::files::Files;
use crate::measure::ceilings::Ceilings;
use crate::measure::document::{Document, Row};
use crate::measure::harness::sample;
use crate::measure::ladder;
use crate::measure::workload::Cache;
use crate::model::ResNet;
use crate::model::layers::WIDTHS;

#[derive(clap::Args)]
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
    /// Only rows whose name, layer and rung, this regular expression matches
    #[arg(long, value_name = "RE", default_value = "", value_parser = filter)]
    filter: Regex,
    #[command(flatten)]
    sampling: Sampling,
}

pub fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    if !WIDTHS.contains(&args.width) {
        bail!("--width {}: the kernels are built for widths {WIDTHS:?}", args.width);
    }
    let rule = args.sampling.rule()?;
    let tables = args.sampling.tables(Files::default())?;
    let network = ResNet::resnet18(args.width, 10);
    let mut engine = match args.dry_run {
        true => open_dry(network, 1)?.0,
        false => open(args.device, network, 1)?,
    };
    let mut steps = engine.ladder(args.batch as usize)?;
    steps.retain(|step| args.filter.is_match(&ladder::name(step)));
    if steps.is_empty() {
        bail!("--filter {}: matches no row", args.filter);
    }
    if args.dry_run {
        if args.sampling.writes() {
            bail!("--dry-run measures nothing: --json and --csv have nothing to hold");
        }
        for line in ladder::predicted_lines(&steps) {
            console.line(line);
        }
        return Ok(());
    }

    let interrupt = catch_interrupts()?;
    let stop = || interrupt.requested();
    let ceilings = Ceilings::measure(engine.as_mut())?;
    let batch = args.batch as usize;
    let mut document = Document::new("bench ladder", engine.as_ref(), Vec::new(), batch, &ceilings);
    for line in document.device_block() {
        console.line(line);
    }
    let mut measured = Vec::new();
    console.bar("ladder", steps.len());
    for (done, step) in steps.iter_mut().enumerate() {
        // Loads code and touches memory.
        step.probe.run()?;
        let mut once = || ladder::seconds(step);
        let Some(samples) = sample(&rule, &stop, &mut once)? else { bail!(Interrupted(None)) };
        let amounts = [ladder::flops(step), 0.0];
        let row = Row::new(ladder::name(step), Cache::Warm, samples, 0, amounts, &ceilings);
        measured.push(row.as_ref().map(|row| row.median));
        let predicted = step.prediction.map(|(seconds, _)| seconds);
        tables.add(&mut document, row.map(|row| Row { predicted, ..row }))?;
        console.at(done + 1);
    }
    console.clear();
    for line in ladder::measured_lines(&steps, &measured) {
        console.line(line);
    }
    tables.finish(document)
}
