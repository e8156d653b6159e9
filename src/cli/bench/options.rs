//! What the options of `secateur bench` mean: which rows, and which state of the caches. Checked by `tests/bench.rs`.

use regex::Regex;

use crate::measure::workload::Cache;

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
