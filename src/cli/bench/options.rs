//! Options that the commands of `secateur bench` share, and what they mean: which rows, which state of the caches, how long to
//! sample, where to write.

use std::path::PathBuf;

use anyhow::bail;
use regex::Regex;

use super::super::{write, write_json};
use crate::files::{Files, Output};
use crate::measure::document::{Document, Row};
use crate::measure::harness::Rule;
use crate::measure::workload::Cache;

/// How long rows are sampled, and where they are written.
#[derive(clap::Args)]
pub struct Sampling {
    /// Samples of a row at least
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Relative standard error of the median at most, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    error: f64,
    /// Seconds of sampling a row (of kernels: a recipe) at most
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    timeout: f64,
    /// Write everything, every sample included, as JSON; rewritten after each row
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

impl Sampling {
    /// What ends the sampling of a row, once the numbers make sense.
    pub fn rule(&self) -> anyhow::Result<Rule> {
        if !(self.error > 0.0 && self.timeout >= 0.0) {
            bail!("--error {} --timeout {}: expected numbers above 0", self.error, self.timeout);
        }
        Ok(Rule { samples: self.samples as usize, error: self.error / 100.0, seconds: self.timeout })
    }

    /// The files that are asked for, among those of the command.
    pub fn tables(&self, mut files: Files) -> anyhow::Result<Tables> {
        let json = files.may_write("--json", self.json.as_ref())?;
        Ok(Tables { json, csv: files.may_write("--csv", self.csv.as_ref())? })
    }
}

/// Where a measurement is written besides the terminal.
pub struct Tables {
    json: Option<Output>,
    csv: Option<Output>,
}

impl Tables {
    /// Adds rows to the document, and writes the JSON file with the rows so far.
    pub fn add(&self, document: &mut Document, rows: impl IntoIterator<Item = Row>) -> anyhow::Result<()> {
        document.rows.extend(rows);
        self.write_json(document)
    }

    /// Writes the files that are asked for; the document has every row.
    pub fn finish(&self, mut document: Document) -> anyhow::Result<()> {
        document.finished = true;
        self.write_json(&document)?;
        if let Some(csv) = &self.csv {
            write(csv, document.to_csv().as_bytes())?;
        }
        Ok(())
    }

    fn write_json(&self, document: &Document) -> anyhow::Result<()> {
        let Some(json) = &self.json else { return Ok(()) };
        write_json(json, document)
    }
}

/// `--cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Caches {
    /// Back to back
    Warm,
    /// Every cache is overwritten before each sample, outside of its time
    Cold,
    Both,
}

impl Caches {
    /// The states to sample, in the order of the columns.
    pub fn states(self) -> &'static [Cache] {
        match self {
            Self::Warm => &[Cache::Warm],
            Self::Cold => &[Cache::Cold],
            Self::Both => &[Cache::Cold, Cache::Warm],
        }
    }
}

/// `--filter`: a regular expression; the last line of the crate's message says what is wrong with a bad one.
pub fn filter(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| {
        let message = error.to_string();
        let what = message.lines().last().unwrap_or_default();
        format!("not a regular expression: {}", what.trim_start_matches("error: "))
    })
}
