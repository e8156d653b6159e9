//! What a measurement writes: the device block, the table, JSON and CSV. The layout is described in [`super`].

use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::ceilings::Ceilings;
use super::harness::Samples;
use super::rows;
use super::statistics::summary;
use super::table::{self, number};
use super::workload::Cache;
use crate::clock;
use crate::data::SetKind;
use crate::engine::{DeviceInfo, Engine};
use crate::files::{limit, read};
use crate::text::command_line;

/// The version of the layout.
pub const VERSION: u32 = 1;
/// Seconds that anything can take; quotients and sums of such are finite.
const TIMES: RangeInclusive<f64> = 1e-12..=1e9;

/// Everything of one measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Document {
    /// [`VERSION`].
    pub secateur_measure: u32,
    /// `bench step`, `bench attack`, `bench eval`, `bench kernels` or `profile`.
    pub kind: String,
    pub command: Vec<String>,
    /// Version and profile of the program.
    pub build: String,
    pub started_unix_seconds: u64,
    /// As in environment.json: kind, name, driver, code, memory, cache, wgmma_off.
    pub device: serde_json::Value,
    pub threads: usize,
    pub recipes: Vec<String>,
    /// `generated`, or the data set.
    #[serde(default = "generated")]
    pub images: String,
    pub width: usize,
    pub batch: usize,
    /// Operations and bytes a second that the device reached, and how.
    pub ceiling_flops: Option<f64>,
    pub ceiling_bytes: Option<f64>,
    pub ceilings: Vec<String>,
    /// Whether every row is there: what a bench leaves that was killed has those so far. Older files are whole.
    #[serde(default = "whole")]
    pub finished: bool,
    #[serde(default)]
    pub rows: Vec<Row>,
    #[serde(default)]
    pub kernels: Vec<KernelRow>,
}

/// Samples of one piece of work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    /// Of which state of the caches; what older files hold was taken warm.
    #[serde(default)]
    pub cache: Cache,
    /// Launches of a kernel in a step; 0 for other work.
    #[serde(default)]
    pub calls: u64,
    /// Seconds of one repetition, in the order they were taken.
    pub samples: Vec<f64>,
    pub median: f64,
    pub quartiles: [f64; 2],
    /// Quartile range over 1.349, as a share of the median.
    pub noise: f64,
    /// Images of one repetition; 0 for a kernel.
    pub images: u64,
    /// Operations and bytes of one repetition; 0 where unknown.
    pub flops: f64,
    pub bytes: f64,
    /// The least time that the ceilings allow over the median.
    pub ceiling_share: Option<f64>,
    pub bound: Option<String>,
    /// Seconds that an H200 should take, where all of it has a model.
    pub predicted: Option<f64>,
    /// What the stop rule still asked for when the time was up.
    pub unmet: Option<String>,
}

/// One kernel; seconds, operations and bytes are means of one call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KernelRow {
    pub name: String,
    /// Calls that the means are of.
    pub calls: usize,
    pub seconds: f64,
    pub flops: f64,
    pub bytes: f64,
    /// Of the seconds of all kernels.
    pub share: f64,
    pub ceiling_share: Option<f64>,
    pub bound: Option<String>,
    /// A thread's, on the device's target or the one that stands for it; null in a build without GPU code.
    pub registers: Option<u32>,
    pub spill_bytes: Option<u32>,
    /// Blocks that a multiprocessor holds at once, and their warps over the most that it can hold.
    pub blocks_per_multiprocessor: Option<u32>,
    pub occupancy: Option<f64>,
}

/// What files of before this was written worked on.
fn generated() -> String {
    SetKind::Generated.to_string()
}

fn whole() -> bool {
    true
}

impl Document {
    /// An empty one for an engine, not finished.
    pub fn new(kind: &str, engine: &Engine, recipes: Vec<String>, batch: usize, ceilings: &Ceilings) -> Self {
        let device: &DeviceInfo = engine.device();
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        Self {
            secateur_measure: VERSION,
            kind: kind.into(),
            command: command_line(),
            build: format!("secateur {} ({profile})", env!("CARGO_PKG_VERSION")),
            started_unix_seconds: clock::now().as_secs(),
            device: serde_json::json!(device),
            threads: rayon::current_num_threads(),
            recipes,
            images: generated(),
            width: engine.network().width,
            batch,
            ceiling_flops: ceilings.flops,
            ceiling_bytes: ceilings.bytes,
            ceilings: ceilings.how.clone(),
            finished: false,
            rows: Vec::new(),
            kernels: Vec::new(),
        }
    }

    /// Reads a file of this layout.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = read(path, limit::JSON).with_context(|| path.display().to_string())?;
        Self::parse(&bytes).with_context(|| path.display().to_string())
    }

    /// From the bytes of such a file.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let read: Self = serde_json::from_slice(bytes).context("not a file of secateur bench or profile")?;
        if read.secateur_measure != VERSION {
            bail!("layout {}, this build reads {VERSION}", read.secateur_measure);
        }
        for row in &read.rows {
            if let Some((at, sample)) = row.samples.iter().enumerate().find(|(_, s)| !TIMES.contains(s)) {
                bail!("{}: sample {at} is {sample} s, expected a time above 0 ({TIMES:?} s)", row.name);
            }
        }
        Ok(read)
    }

    /// What it ran on.
    pub fn device_line(&self) -> String {
        let text = |key: &str| self.device[key].as_str().unwrap_or("-").to_string();
        let memory = match self.device["memory"].as_u64() {
            Some(bytes) => format!(", {:.0} GiB", bytes as f64 / (1u64 << 30) as f64),
            None => String::new(),
        };
        let driver = self.device["driver"].as_str().map_or(String::new(), |driver| format!(", {driver}"));
        let off: Vec<&str> = self.device["wgmma_off"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|name| name.as_str())
            .collect();
        let off = match off[..] {
            [] => String::new(),
            ["off"] => ", wgmma off".into(),
            _ => format!(", wgmma off: {}", off.join(", ")),
        };
        format!("device   {} ({}, {}{off}{driver}{memory})", text("name"), text("kind"), text("code"))
    }

    /// What it measured.
    pub fn work_line(&self) -> String {
        let recipes = self.recipes.join(", ");
        format!("work     {recipes}; width {}, batch {}, images {}", self.width, self.batch, self.images)
    }

    /// The lines above the table.
    pub fn device_block(&self) -> Vec<String> {
        let (rate, per) = table::flop_rate(self.device["kind"].as_str().unwrap_or("cpu"));
        let ceiling = |rate: Option<f64>, unit: f64| rate.map_or("-".into(), |rate| number(rate / unit));
        let mut lines = vec![
            self.device_line(),
            format!("build    {}, {} UTC", self.build, clock::to_the_second(self.started_unix_seconds)),
            self.work_line(),
        ];
        if !self.ceilings.is_empty() {
            lines.push(format!(
                "ceilings {} {rate}, {} GB/s ({})",
                ceiling(self.ceiling_flops, per),
                ceiling(self.ceiling_bytes, 1e9),
                self.ceilings.join("; ")
            ));
        }
        lines
    }

    /// The rows as a table, and below it which of them did not come to rest.
    pub fn row_lines(&self) -> Vec<String> {
        rows::lines(&self.rows, self.device["kind"].as_str().unwrap_or("cpu"))
    }

    /// The rows as comma-separated values: seconds and rates in units of one.
    pub fn to_csv(&self) -> String {
        rows::csv(&self.rows)
    }
}

impl Row {
    /// The name, and whether the caches were cold.
    pub fn label(&self) -> String {
        match self.cache {
            Cache::Cold => format!("{} (cold)", self.name),
            Cache::Warm => self.name.clone(),
        }
    }

    /// A row of these samples, of which there is one at least.
    pub fn new(
        name: String,
        cache: Cache,
        samples: Samples,
        images: u64,
        [flops, bytes]: [f64; 2],
        ceilings: &Ceilings,
    ) -> Option<Self> {
        let summary = summary(&samples.values)?;
        let share = ceilings.share(flops, bytes, summary.median);
        Some(Self {
            name,
            cache,
            calls: 0,
            samples: samples.values,
            median: summary.median,
            quartiles: summary.quartiles,
            noise: summary.noise,
            images,
            flops,
            bytes,
            ceiling_share: share.map(|share| share.share),
            bound: share.map(|share| share.bound.into()),
            predicted: None,
            unmet: samples.unmet,
        })
    }
}
