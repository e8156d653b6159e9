//! Sampled rows as a table and as CSV.

use super::document::Row;
use super::table::{self, number, percent, time};
use super::workload::Cache;

/// A table for a device of this kind, and below it which rows did not come to rest. The cold and the warm row of a name stand
/// in one line, as nvbench has it: rates and the share of the ceiling are then those of the cold one.
pub fn lines(rows: &[Row], kind: &str) -> Vec<String> {
    let (rate, per) = table::flop_rate(kind);
    let cold = rows.iter().any(|row| row.cache == Cache::Cold);
    let both = cold && rows.iter().any(|row| row.cache == Cache::Warm);
    let images = rows.iter().any(|row| row.images > 0);
    let mut heading = vec!["name", "samples", if cold { "cold time" } else { "time" }, "noise"];
    heading.extend(both.then_some(["batch time", "noise"]).into_iter().flatten());
    heading.extend(images.then_some("images/s"));
    heading.extend([rate, "GB/s", "of ceiling", "bound by"]);
    let predicted = rows.iter().any(|row| row.predicted.is_some());
    // Other devices stand for an H200 here.
    heading.extend(predicted.then_some(if kind == "cuda" { "predicted" } else { "predicted, H200" }));

    let cells = |row: &Row| {
        let mut cells = vec![row.name.clone(), row.samples.len().to_string()];
        cells.extend([time(row.median), percent(Some(row.noise))]);
        if both {
            let of_name = |other: &&Row| other.name == row.name && other.cache == Cache::Warm;
            let warm = rows.iter().find(of_name);
            cells.push(warm.map_or("-".into(), |warm| time(warm.median)));
            cells.push(percent(warm.map(|warm| warm.noise)));
        }
        if images {
            cells.push(number(row.images as f64 / row.median));
        }
        cells.push(number(row.flops / row.median / per));
        cells.push(number(row.bytes / row.median / 1e9));
        cells.push(percent(row.ceiling_share));
        cells.push(row.bound.clone().unwrap_or("-".into()));
        if predicted {
            cells.push(row.predicted.map_or(String::new(), time));
        }
        cells
    };
    let shown = rows.iter().filter(|row| !both || row.cache == Cache::Cold);
    let mut lines = table::lines(&heading, &shown.map(cells).collect::<Vec<_>>());
    lines.extend(rows.iter().filter_map(|row| Some(format!("{}: {}", row.label(), row.unmet.as_ref()?))));
    lines
}

/// Comma-separated values: seconds and rates in units of one.
pub fn csv(rows: &[Row]) -> String {
    let mut csv = String::from(
        "name,samples,seconds,first_quartile,third_quartile,noise,images_per_second,flops_per_second,\
         bytes_per_second,ceiling_share,bound,unmet,cache,calls,predicted_seconds\n",
    );
    let text = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    for row in rows {
        let rate = |amount: f64| amount / row.median;
        csv += &format!(
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}\n",
            text(&row.name),
            row.samples.len(),
            row.median,
            row.quartiles[0],
            row.quartiles[1],
            row.noise,
            rate(row.images as f64),
            rate(row.flops),
            rate(row.bytes),
            row.ceiling_share.map_or(String::new(), |share| share.to_string()),
            row.bound.as_deref().unwrap_or(""),
            row.unmet.as_deref().map_or(String::new(), text),
            if row.cache == Cache::Cold { "cold" } else { "warm" },
            row.calls,
            row.predicted.map_or(String::new(), |seconds| seconds.to_string())
        );
    }
    csv
}
