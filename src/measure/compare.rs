//! Two measurements row by row: did the second take longer?
//!
//! With r the ratio of the medians, second over first, and [l, h] its 99 % bootstrap interval ([`ratio_interval`]), and t the
//! tolerance, [`classify`] says:
//!
//! | result | where |
//! |---|---|
//! | SLOWER | l > 1 and r > 1 + t |
//! | FASTER | h < 1 and r < 1 / (1 + t) |
//! | SAME | 1 / (1 + t) <= l and h <= 1 + t |
//! | AMBIGUOUS | elsewhere, and where a side has fewer than five samples |
//!
//! The interval knows the noise within each file, not what the machine did between the two: for that, [`super::versus`].

use serde::Serialize;

use super::document::{Document, Row};
use super::statistics::{ratio_interval, summary};
use super::table::{self, time};
use crate::names::named;

/// Samples of a side below which nothing is said.
pub const LEAST_SAMPLES: usize = 5;

named! {
    /// How a row changed.
    pub enum Change {
        Same = "SAME",
        Faster = "FASTER",
        Slower = "SLOWER",
        Ambiguous = "AMBIGUOUS",
    }
}

/// One row of both.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    pub name: String,
    pub medians: [f64; 2],
    /// Second over first.
    pub ratio: f64,
    /// 99 %; `None` where too little is known for one.
    pub interval: Option<[f64; 2]>,
    pub change: Change,
}

/// What a ratio and its interval say.
pub fn classify(ratio: f64, interval: Option<[f64; 2]>, tolerance: f64) -> Change {
    let wide = 1.0 + tolerance;
    match interval {
        Some([low, _]) if low > 1.0 && ratio > wide => Change::Slower,
        Some([_, high]) if high < 1.0 && ratio < 1.0 / wide => Change::Faster,
        Some([low, high]) if low >= 1.0 / wide && high <= wide => Change::Same,
        _ => Change::Ambiguous,
    }
}

/// Whether `second` took longer than `first`; `None` where one has no samples.
pub fn compare(name: &str, first: &[f64], second: &[f64], tolerance: f64) -> Option<Compared> {
    let medians = [summary(first)?.median, summary(second)?.median];
    let ratio = medians[1] / medians[0];
    let interval = ratio_interval(first, second);
    let change = match first.len().min(second.len()) {
        0..LEAST_SAMPLES => Change::Ambiguous,
        _ => classify(ratio, Some(interval), tolerance),
    };
    Some(Compared { name: name.into(), medians, ratio, interval: Some(interval), change })
}

/// In what the work of the two differs, as far as they say: where it does, their times say nothing about each other.
pub fn differences(first: &Document, second: &Document) -> Vec<String> {
    let mut found = Vec::new();
    let recipes = |document: &Document| document.recipes.join(", ");
    let kind = |document: &Document| document.device["kind"].as_str().unwrap_or("unknown").to_string();
    let mut differs = |what: &str, a: &dyn std::fmt::Display, b: &dyn std::fmt::Display| {
        let (a, b) = (a.to_string(), b.to_string());
        if a != b {
            found.push(format!("{what}: {a} in the first, {b} in the second"));
        }
    };
    differs("kind", &first.kind, &second.kind);
    differs("recipes", &recipes(first), &recipes(second));
    differs("device kind", &kind(first), &kind(second));
    differs("images", &first.images, &second.images);
    differs("width", &first.width, &second.width);
    differs("batch", &first.batch, &second.batch);
    found
}

/// The rows that both have, by name and state of the caches; and what the two do not share. Their work is the same: they have
/// no [`differences`].
pub fn compare_documents(
    first: &Document,
    second: &Document,
    tolerance: f64,
) -> (Vec<Compared>, Vec<String>) {
    let mut notes = Vec::new();
    if first.threads != second.threads {
        notes.push(format!("threads: {} in the first, {} in the second", first.threads, second.threads));
    }
    for (which, document) in [("first", first), ("second", second)] {
        if !document.finished {
            let rows = document.rows.len();
            notes.push(format!(
                "the {which} is not finished: its bench was killed or still runs, {rows} rows so far"
            ));
        }
    }
    if first.device != second.device {
        notes.push(format!("device: {} in the first, {} in the second", first.device, second.device));
    }
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
pub fn lines<'a>(rows: impl IntoIterator<Item = &'a Compared>) -> Vec<String> {
    let cells = |row: &Compared| {
        vec![
            row.name.clone(),
            time(row.medians[0]),
            time(row.medians[1]),
            format!("{:.3}", row.ratio),
            row.interval.map_or("-".into(), |[low, high]| format!("{low:.3} to {high:.3}")),
            row.change.to_string(),
        ]
    };
    let heading = ["name", "first", "second", "ratio", "99 % interval", "result"];
    table::lines(&heading, &rows.into_iter().map(cells).collect::<Vec<_>>())
}
