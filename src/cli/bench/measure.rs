//! `secateur bench step|attack|eval|kernels`: sampling until the noise is low enough or the time is up.
//!
//! Caches are warm, or cold: overwritten before each sample, outside of its time. On the
//! cuda device and the emulated one the operations and bytes of a row are counted launch by launch; the cpu engine counts its
//! convolutions.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::bail;
use regex::Regex;

use super::super::console::Console;
use super::super::{Interrupted, inputs, recipes_for};
use super::options::{Caches, Sampling, Tables, filter};
use crate::engine::{DeviceChoice, DeviceOptions, Record};
use crate::measure::ceilings::Ceilings;
use crate::measure::document::{Document, Row};
use crate::measure::harness::sample;
use crate::measure::profile;
use crate::measure::replay::{Plan, kernel_rows};
use crate::measure::workload::{Bench, Cache, Work};
use crate::recipe::Recipe;

/// Steps of one sample on a GPU, where a step is short; elsewhere one.
const STEPS_A_SAMPLE: usize = 8;

#[derive(clap::Args)]
pub struct Options {
    /// Built-in recipes or TOML files
    #[arg(
        long,
        value_name = "NAME|FILE",
        value_delimiter = ',',
        default_value = "cifar10-pgd-at,cifar10-trades,cifar10-mart"
    )]
    pub recipe: Vec<OsString>,
    /// auto, cpu, cpu:bf16, cuda, cuda:N, emulated or emulated:sm_90a
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// CIFAR files: a folder or an archive, binary or Python version, for the recipe's own images [default: generated ones]
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Width of the network
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub width: usize,
    /// Images a batch
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub batch: usize,
    /// Change a value of the recipes: --set attack.steps=1
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Only rows whose name this regular expression matches
    #[arg(long, value_name = "RE", default_value = "", value_parser = filter)]
    pub filter: Regex,
    /// State of the caches before a sample [default: both for kernels, else warm]
    #[arg(long)]
    pub cache: Option<Caches>,
    /// Replay the steps of an attack, and the passes of training, as CUDA graphs, or launch every kernel; on a GPU
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub graphs: Switch,
    /// Let a kernel start while the one before it ends, or not; on a GPU of compute capability 9.0 or later
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub dependent_launch: Switch,
    /// Fetch tensor maps before the launches before have ended, or when first used; on a GPU of compute capability 9.0
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub prefetch_maps: Switch,
    /// Ask for all the shared memory that a multiprocessor can have in every kernel, or as much as each needs; on a GPU of
    /// compute capability 9.0
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub carve_out: Switch,
    /// Images that the network's first stage takes at a time in attacks and evaluations [default: as many as the cache holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub first_stage: Option<u32>,
    #[command(flatten)]
    pub sampling: Sampling,
}

impl Options {
    /// Where the measurement is written; nothing that it reads.
    pub fn tables(&self) -> anyhow::Result<Tables> {
        self.sampling.tables(inputs(&self.recipe, self.data.as_deref())?)
    }

    /// The device with images for `steps` steps of a recipe; with `kernels` one that has some.
    pub fn open(&self, kernels: bool, recipe: &Recipe, steps: usize) -> anyhow::Result<Bench> {
        let device = DeviceOptions {
            prefetch_maps: self.prefetch_maps == Switch::On,
            carve_out: self.carve_out == Switch::On,
            graphs: self.graphs == Switch::On,
            dependent_launch: self.dependent_launch == Switch::On,
            first_stage_images: self.first_stage.and_then(|images| NonZeroUsize::new(images as usize)),
            ..DeviceOptions::from_environment()?
        };
        let mut bench = Bench::open_with(self.device, kernels, recipe, steps, device)?;
        if let Some(folder) = &self.data {
            bench.use_images(folder)?;
        }
        Ok(bench)
    }
}

/// `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    On,
    Off,
}

/// Measures one kind of work, `step`, `attack`, `eval` or `kernels`.
pub fn measure(kind: &str, options: &Options, console: &Console) -> anyhow::Result<()> {
    let kernels = kind == "kernels";
    if kernels && options.device.is_cpu() {
        bail!(
            "--device cpu: the CPU engine launches no kernels; use --device emulated or cuda, or bench step"
        );
    }
    let recipes = recipes_for(&options.recipe, options.width, options.batch, &options.set)?;
    let expected = |recipe: &&Recipe| kernels || options.filter.is_match(&row_name(kind, recipe));
    let recipes: Vec<&Recipe> = recipes.iter().filter(expected).collect();
    let Some(first) = recipes.first() else { bail!("--filter {}: matches no row", options.filter) };
    let caches = options.cache.unwrap_or(if kernels { Caches::Both } else { Caches::Warm }).states();
    let rule = options.sampling.rule()?;
    let tables = options.tables()?;
    let work = match kind {
        "attack" => Work::Attack,
        "eval" => Work::Evaluation("pgd20".parse().map_err(anyhow::Error::msg)?),
        _ => Work::Step,
    };
    let stop = console.catch_interrupts()?;
    let stop = || stop.requested();

    let open = |recipe: &Recipe| options.open(kernels, recipe, STEPS_A_SAMPLE);
    let mut bench = open(first)?;
    let ceilings = Ceilings::measure(&mut bench.engine)?;
    let names = recipes.iter().map(|recipe| recipe.name.clone()).collect();
    let mut document =
        Document::new(&format!("bench {kind}"), &bench.engine, names, options.batch, &ceilings);
    document.images = bench.images().to_string();
    console.lines(document.device_block());
    let mut all = Record::default();
    for recipe in recipes {
        if bench.recipe() != recipe {
            // The old engine's memory first: two may not fit.
            drop(bench);
            bench = open(recipe)?;
        }
        let name = row_name(kind, recipe);
        console.bar(name.clone(), rule.samples);
        if kernels {
            let plan = Plan { rule, caches, expected: &|name| options.filter.is_match(name), stop: &stop };
            let mut done = 0;
            let mut add = |row, of| {
                done += 1;
                if done == 1 {
                    console.bar(name.clone(), of);
                }
                console.at(done);
                tables.add(&mut document, [row])
            };
            let record = kernel_rows(&mut bench, &plan, &ceilings, &mut add)?;
            let Some(record) = record else { bail!(Interrupted(None)) };
            all.launches.extend(record.launches);
        } else {
            let (amounts, predicted) = bench.amounts(&work)?;
            for &cache in caches {
                // Behind the first step of several the caches are warm again.
                let several = bench.engine.device().kind == "cuda" && cache == Cache::Warm;
                let times = if several { bench.steps() } else { 1 };
                let mut done = 0;
                let mut once = || -> anyhow::Result<f64> {
                    done += 1;
                    let seconds = bench.sample(&work, times, cache)?;
                    console.at(done);
                    Ok(seconds / times as f64)
                };
                let Some(samples) = sample(&rule, &stop, &mut once)? else { bail!(Interrupted(None)) };
                let images = recipe.batch as u64;
                let row = Row::new(name.clone(), cache, samples, images, amounts, &ceilings);
                tables.add(&mut document, row.map(|row| Row { predicted, ..row }))?;
            }
        }
        console.clear();
    }
    if document.rows.is_empty() {
        bail!("--filter {}: matches no row", options.filter);
    }
    document.kernels = profile::kernels(&all, &ceilings, &bench.engine.device().code);
    console.lines(document.row_lines());
    tables.finish(document)
}

fn row_name(kind: &str, recipe: &Recipe) -> String {
    format!("{kind} {}", recipe.name)
}
