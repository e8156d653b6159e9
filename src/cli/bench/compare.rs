//! `secateur bench compare`: two JSON files of measurements row by row.

use std::path::PathBuf;

use anyhow::bail;

use super::super::CheckFailed;
use super::super::console::Console;
use crate::measure::compare::{self, Change};
use crate::measure::document::Document;

#[derive(clap::Args)]
pub struct Args {
    /// JSON of an earlier measurement
    first: PathBuf,
    /// JSON of a later one
    second: PathBuf,
    /// Ratios of the medians within 1 + this, and 1 / (1 + this), count as the same
    #[arg(long, value_name = "SHARE", default_value_t = 0.03)]
    tolerance: f64,
}

pub fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    if !(args.tolerance > 0.0 && args.tolerance.is_finite()) {
        bail!("--tolerance {}: expected a number above 0, such as 0.03", args.tolerance);
    }
    let (first, second) = (Document::read(&args.first)?, Document::read(&args.second)?);
    let differences = compare::differences(&first, &second);
    if !differences.is_empty() {
        bail!("NOT COMPARABLE: runs of different work; {}", differences.join("; "));
    }
    let (rows, notes) = compare::compare_documents(&first, &second, args.tolerance);
    for note in notes {
        console.note(note);
    }
    if rows.is_empty() {
        bail!("{} and {} have no row in common", args.first.display(), args.second.display());
    }
    console.lines(compare::lines(&rows));
    let slower = rows.iter().filter(|row| row.change == Change::Slower).count();
    if slower > 0 {
        bail!(CheckFailed(format!("{slower} of {} rows SLOWER", rows.len())));
    }
    Ok(())
}
