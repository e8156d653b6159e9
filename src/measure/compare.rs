//! Two measurements row by row: did the second take longer? Checked by `tests/bench.rs` with planted data.
//!
//! With r the ratio of the medians, second over first, and [l, h] its 99 % bootstrap interval ([`ratio_interval`]), and t the
//! tolerance:
//!
//! | verdict | where |
//! |---|---|
//! | SLOWER | l > 1 and r > 1 + t |
//! | FASTER | h < 1 and r < 1 / (1 + t) |
//! | SAME | 1 / (1 + t) <= l and h <= 1 + t |
//! | AMBIGUOUS | elsewhere, and where a side has fewer than five samples |

use super::document::{Document, Row};
use super::statistics::{ratio_interval, summary};
use super::table::{self, time};

/// Samples of a side below which nothing is said.
pub const LEAST_SAMPLES: usize = 5;

/// How a row changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Same,
    Faster,
    Slower,
    Ambiguous,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::Same => "SAME",
            Self::Faster => "FASTER",
            Self::Slower => "SLOWER",
            Self::Ambiguous => "AMBIGUOUS",
        })
    }
}

/// One row of both.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    pub name: String,
    pub medians: [f64; 2],
    /// Of the medians, second over first.
    pub ratio: f64,
    pub interval: [f64; 2],
    pub change: Change,
}

/// Whether `second` took longer than `first`; `None` where one has no samples.
pub fn compare(name: &str, first: &[f64], second: &[f64], tolerance: f64) -> Option<Compared> {
    let medians = [summary(first)?.median, summary(second)?.median];
    let ratio = medians[1] / medians[0];
    let interval = ratio_interval(first, second);
    let ([low, high], wide) = (interval, 1.0 + tolerance);
    let change = if first.len().min(second.len()) < LEAST_SAMPLES {
        Change::Ambiguous
    } else if low > 1.0 && ratio > wide {
        Change::Slower
    } else if high < 1.0 && ratio < 1.0 / wide {
        Change::Faster
    } else if low >= 1.0 / wide && high <= wide {
        Change::Same
    } else {
        Change::Ambiguous
    };
    Some(Compared { name: name.into(), medians, ratio, interval, change })
}

/// The rows that both have, by name and state of the caches; and what the two do not share.
pub fn compare_documents(
    first: &Document,
    second: &Document,
    tolerance: f64,
) -> (Vec<Compared>, Vec<String>) {
    let mut notes = Vec::new();
    let mut differs = |what: &str, a: String, b: String| {
        if a != b {
            notes.push(format!("{what}: {a} in the first, {b} in the second"));
        }
    };
    differs("kind", first.kind.clone(), second.kind.clone());
    differs("device", first.device.to_string(), second.device.to_string());
    differs("threads", first.threads.to_string(), second.threads.to_string());
    differs("images", first.images.clone(), second.images.clone());
    differs("width", first.width.to_string(), second.width.to_string());
    differs("batch", first.batch.to_string(), second.batch.to_string());
    let mut compared = Vec::new();
    let same = |a: &Row, b: &Row| (&a.name, a.cache) == (&b.name, b.cache);
    for row in &first.rows {
        match second.rows.iter().find(|other| same(row, other)) {
            Some(other) => compared.extend(compare(&row.label(), &row.samples, &other.samples, tolerance)),
            None => notes.push(format!("{}: in the first only", row.label())),
        }
    }
    let only = second.rows.iter().filter(|row| !first.rows.iter().any(|other| same(row, other)));
    notes.extend(only.map(|row| format!("{}: in the second only", row.label())));
    (compared, notes)
}

/// The table.
pub fn lines(rows: &[Compared]) -> Vec<String> {
    let cells = |row: &Compared| {
        vec![
            row.name.clone(),
            time(row.medians[0]),
            time(row.medians[1]),
            format!("{:.3}", row.ratio),
            format!("{:.3} to {:.3}", row.interval[0], row.interval[1]),
            row.change.to_string(),
        ]
    };
    let heading = ["name", "first", "second", "ratio", "99 % interval", "verdict"];
    table::lines(&heading, &rows.iter().map(cells).collect::<Vec<_>>())
}
