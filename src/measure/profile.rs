//! The kernels of some steps as a table: what each was called for, how long it took and how near it came to the roof.

use std::collections::BTreeMap;

use super::ceilings::Ceilings;
use super::document::KernelRow;
use super::table::{self, number, percent, time};
use crate::engine::{Record, kernel_usage, register_target};

/// One row a kernel, the longest first; `code` is that of the device ("sm_90a", "host").
pub fn kernels(record: &Record, ceilings: &Ceilings, code: &str) -> Vec<KernelRow> {
    let mut sums: BTreeMap<&str, (usize, f64, f64, f64)> = BTreeMap::new();
    for launch in &record.launches {
        let sum = sums.entry(launch.kernel).or_default();
        sum.0 += 1;
        sum.1 += launch.seconds;
        sum.2 += launch.flops as f64;
        sum.3 += launch.bytes as f64;
    }
    let all: f64 = record.launches.iter().map(|launch| launch.seconds).sum();
    let target = register_target(code);
    let row = |(name, (calls, seconds, flops, bytes)): (&str, (usize, f64, f64, f64))| {
        let usage = target.and_then(|target| kernel_usage(name, target));
        let occupancy = usage.and_then(|usage| usage.occupancy);
        let share = ceilings.share(flops, bytes, seconds);
        let of_one = |sum: f64| sum / calls as f64;
        KernelRow {
            name: name.into(),
            calls,
            seconds: of_one(seconds),
            flops: of_one(flops),
            bytes: of_one(bytes),
            share: if all > 0.0 { seconds / all } else { 0.0 },
            ceiling_share: share.map(|share| share.share),
            bound: share.map(|share| share.bound.into()),
            registers: usage.map(|usage| usage.registers),
            spill_bytes: usage.map(|usage| usage.spills),
            blocks_per_multiprocessor: occupancy.map(|occupancy| occupancy.blocks),
            occupancy: occupancy.map(|occupancy| occupancy.share),
        }
    };
    let mut rows: Vec<KernelRow> = sums.into_iter().map(row).collect();
    rows.sort_by(|a, b| {
        (b.share, &a.name).partial_cmp(&(a.share, &b.name)).unwrap_or(std::cmp::Ordering::Equal)
    });
    rows
}

/// The table for a device of this kind; time, GFLOP and MB are those of all calls together.
pub fn lines(rows: &[KernelRow], kind: &str) -> Vec<String> {
    let (rate, per) = table::flop_rate(kind);
    let heading = [
        "kernel",
        "calls",
        "time",
        "share",
        "GFLOP",
        "MB",
        rate,
        "GB/s",
        "of roof",
        "bound by",
        "registers",
        "spill B",
        "occupancy",
    ];
    let known = |value: Option<u32>| value.map_or("-".into(), |value| value.to_string());
    let cells = |row: &KernelRow| {
        vec![
            row.name.clone(),
            row.calls.to_string(),
            time(row.seconds * row.calls as f64),
            percent(Some(row.share)),
            number(row.flops * row.calls as f64 / 1e9),
            number(row.bytes * row.calls as f64 / 1e6),
            number(row.flops / row.seconds / per),
            number(row.bytes / row.seconds / 1e9),
            percent(row.ceiling_share),
            row.bound.clone().unwrap_or("-".into()),
            known(row.registers),
            known(row.spill_bytes),
            percent(row.occupancy),
        ]
    };
    table::lines(&heading, &rows.iter().map(cells).collect::<Vec<_>>())
}

/// One line: launches, operations and bytes of a record, and the share of the time from the first to the last in which
/// no kernel ran.
pub fn total_line(record: &Record, steps: usize) -> String {
    let sum = |of: fn(&crate::engine::Launch) -> f64| record.launches.iter().map(of).sum::<f64>();
    let seconds = sum(|launch| launch.seconds);
    let span = match (record.launches.first(), record.launches.last()) {
        (Some(first), Some(last)) => last.start + last.seconds - first.start,
        _ => 0.0,
    };
    format!(
        "{} launches in {steps} step{}: {:.4} GFLOP, {:.3} MB, {} in kernels of {} ({:.1} % between them)",
        record.launches.len(),
        if steps == 1 { "" } else { "s" },
        sum(|launch| launch.flops as f64) / 1e9,
        sum(|launch| launch.bytes as f64) / 1e6,
        time(seconds),
        time(span),
        100.0 * (1.0 - seconds / span.max(f64::MIN_POSITIVE)).max(0.0)
    )
}
