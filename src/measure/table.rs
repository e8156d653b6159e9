//! Columns of text: the first to the left, numbers to the right.

use crate::text;

/// Lines of a table with a heading, each column as wide as its widest cell.
pub fn lines(heading: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| text::message(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heading[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (column, (cell, &width)) in cells.zip(&widths).enumerate() {
            line += &match column {
                0 => format!("{cell:width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        line.trim_end().to_string()
    };
    let heading = line(&mut heading.iter().copied());
    let rows = rows.iter().map(|row| line(&mut row.iter().map(String::as_str)));
    std::iter::once(heading).chain(rows).collect()
}

/// A time with a unit that keeps it readable.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.3} s"),
        s if s >= 1e-3 => format!("{:.3} ms", s * 1e3),
        s => format!("{:.2} us", s * 1e6),
    }
}

/// A number with three digits or more, without an exponent; a dash for nothing.
pub fn number(value: f64) -> String {
    match value {
        0.0 => "-".into(),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.4}"),
    }
}

/// The unit of rates on a device of this kind, and how many operations a second it is.
pub fn flop_rate(kind: &str) -> (&'static str, f64) {
    if kind == "cuda" { ("TFLOP/s", 1e12) } else { ("GFLOP/s", 1e9) }
}

/// A share in percent; a dash for an unknown one.
pub fn percent(share: Option<f64>) -> String {
    share.map_or("-".into(), |share| format!("{:.1} %", 100.0 * share))
}
