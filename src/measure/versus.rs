//! Two builds in turns on the same work: did the second take longer, whatever the machine did meanwhile?
//!
//! A round is one run of each, so near in time that a drift of the machine reaches both. Of a row it leaves one number: the
//! logarithm of the median of the second over that of the first. Which goes first is [`second_leads`]'s. Were the two the same
//! build, the sign of that number would be as good as a coin's: the numbers lie evenly about the truth, whatever their
//! distribution, and [`middle`] has an interval for it without a model of the machine. [`classify`] takes ratio and interval as it
//! does those of `compare`.
//!
//! Rounds end by the width of the intervals alone, never by what they say: who stops as soon as there is a difference finds one.
//!
//! # The file
//!
//! `--json` writes one [`Record`], whose version is `secateur_versus`, 1. Seconds of rows are those of one repetition. Unknown keys
//! are to be ignored; keys are added without a new version, and changed or taken away only with one.

use std::collections::BTreeSet;

use serde::Serialize;

use super::compare::{Compared, classify, differences};
use super::document::Document;
use super::statistics::{LEAST_FOR_MIDDLE, middle, summary};
use super::table::number;

/// The version of [`Record`].
pub const VERSION: u32 = 1;
/// Rounds that a result needs.
pub const LEAST_ROUNDS: usize = LEAST_FOR_MIDDLE;

/// Whether the second runs first in this round: the sequence of Thue and Morse, AB BA BA AB BA AB AB BA. Over two rounds a drift
/// that is linear in time cancels, over four a quadratic one, and there is no period for one of the machine to meet.
pub fn second_leads(round: usize) -> bool {
    round.count_ones() % 2 == 1
}

/// The medians of rows, round by round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rounds {
    rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq)]
struct Row {
    name: String,
    /// Medians of the first and of the second, seconds.
    rounds: Vec<[f64; 2]>,
}

/// A row, its result, and what that still lacks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowResult {
    #[serde(flatten)]
    pub compared: Compared,
    /// Medians of the first and of the second, seconds, of each round that both had the row in.
    pub rounds: Vec<[f64; 2]>,
    pub unmet: Option<String>,
}

/// Two documents that cannot be compared.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Mismatch {
    #[error("the two did not measure the same: {0}")]
    Work(String),
    #[error("the two have no row in common")]
    Rows,
    #[error("{row}: {seconds} s in the {side}, expected a time above 0")]
    Time { row: String, seconds: f64, side: &'static str },
}

impl Rounds {
    /// Takes the documents of a round: a row that both have gets one number more.
    pub fn add(&mut self, first: &Document, second: &Document) -> Result<(), Mismatch> {
        let mut differ = differences(first, second);
        for key in ["kind", "name"] {
            let [a, b] = [first, second].map(|document| document.device[key].as_str().unwrap_or("-"));
            if a != b {
                differ.push(format!("device {key}: {a} in the first, {b} in the second"));
            }
        }
        if !differ.is_empty() {
            return Err(Mismatch::Work(differ.join("; ")));
        }
        let mut common = false;
        for row in &first.rows {
            let name = row.label();
            let Some(other) = second.rows.iter().find(|other| other.label() == name) else { continue };
            let medians = [row, other].map(|row| summary(&row.samples).map_or(f64::NAN, |of| of.median));
            for (seconds, side) in medians.into_iter().zip(["first", "second"]) {
                if !(seconds > 0.0 && seconds.is_finite()) {
                    return Err(Mismatch::Time { row: name, seconds, side });
                }
            }
            match self.rows.iter_mut().find(|row| row.name == name) {
                Some(row) => row.rounds.push(medians),
                None => self.rows.push(Row { name, rounds: vec![medians] }),
            }
            common = true;
        }
        if common { Ok(()) } else { Err(Mismatch::Rows) }
    }

    /// Every row: the medians over the rounds of each side, and the ratio within a round.
    pub fn results(&self, tolerance: f64) -> Vec<RowResult> {
        self.rows.iter().filter_map(|row| row.result(tolerance)).collect()
    }
}

impl Row {
    fn result(&self, tolerance: f64) -> Option<RowResult> {
        let logarithms: Vec<f64> = self.rounds.iter().map(|[first, second]| (second / first).ln()).collect();
        let middle = middle(&logarithms)?;
        let side = |side: usize| summary(&self.rounds.iter().map(|round| round[side]).collect::<Vec<f64>>());
        let (ratio, interval) = (middle.estimate.exp(), middle.interval.map(|ends| ends.map(f64::exp)));
        let compared = Compared {
            name: self.name.clone(),
            medians: [side(0)?.median, side(1)?.median],
            ratio,
            interval,
            change: classify(ratio, interval, tolerance),
        };
        Some(RowResult { unmet: unmet(interval, tolerance), compared, rounds: self.rounds.clone() })
    }
}

/// What an interval lacks: it is to be no wider than the tolerance, so that the same is called SAME.
fn unmet(interval: Option<[f64; 2]>, tolerance: f64) -> Option<String> {
    let Some([low, high]) = interval else { return Some(format!("fewer than {LEAST_ROUNDS} rounds")) };
    let width = high / low - 1.0;
    (width > tolerance)
        .then(|| format!("interval {:.1} % wide, expected {:.1} %", 100.0 * width, 100.0 * tolerance))
}

/// What of the rows of two documents is worth knowing next to their times: rows of one alone, and counts of operations that
/// differ, where the faster may have done less.
pub fn notes(first: &Document, second: &Document) -> Vec<String> {
    let labels = |document: &Document| document.rows.iter().map(super::document::Row::label).collect();
    let [a, b]: [BTreeSet<String>; 2] = [labels(first), labels(second)];
    let mut notes: Vec<String> = a.difference(&b).map(|name| format!("{name}: in the first only")).collect();
    notes.extend(b.difference(&a).map(|name| format!("{name}: in the second only")));
    for row in &first.rows {
        let other = second.rows.iter().find(|other| other.label() == row.label());
        let [a, b] = [Some(row), other].map(|row| row.map_or(0.0, |row| row.flops) / 1e9).map(number);
        if other.is_some() && a != b {
            notes.push(format!("{}: {a} GFLOP in the first, {b} in the second", row.label()));
        }
    }
    notes
}

/// A build that was run.
#[derive(Clone, Debug, Serialize)]
pub struct Build {
    /// As typed.
    pub executable: String,
    pub sha256: String,
    /// Version and profile, as it says itself.
    pub build: String,
}

/// Everything of one comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// [`VERSION`].
    pub secateur_versus: u32,
    pub command: Vec<String>,
    /// What both were run with, after `bench`.
    pub arguments: Vec<String>,
    pub started_unix_seconds: u64,
    pub first: Build,
    pub second: Build,
    /// As in environment.json.
    pub device: serde_json::Value,
    pub threads: usize,
    pub recipes: Vec<String>,
    pub images: String,
    pub width: usize,
    pub batch: usize,
    pub tolerance: f64,
    pub rounds: usize,
    /// Why there is no further round.
    pub ended: String,
    /// All runs with what is around them.
    pub seconds: f64,
    pub rows: Vec<RowResult>,
}
