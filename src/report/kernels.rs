//! The kernels of a bench file over the roof of their device.
//!
//! Reads `{"kernels": [{"name", "seconds", "flops", "bytes"}], "ceiling_flops", "ceiling_bytes"}` and passes over all
//! else: seconds of one call, its operations and its traffic with memory; the ceilings in operations and bytes a
//! second. The roof is that of Williams, Waterman and Patterson, CACM 2009.

use std::path::Path;

use serde::Deserialize;

use super::markup::{Style, escape};
use super::overview::{NONE, table};
use super::plot::{Plot, Series};
use super::read::ReportError;
use super::scale::{Axis, fixed, significant};
use crate::files::{limit, read};

/// One kernel.
#[derive(Clone, Debug, Deserialize)]
pub struct Kernel {
    pub name: String,
    pub seconds: f64,
    #[serde(default)]
    pub flops: f64,
    #[serde(default)]
    pub bytes: f64,
}

/// A bench file.
#[derive(Clone, Debug, Deserialize)]
pub struct Kernels {
    pub kernels: Vec<Kernel>,
    pub ceiling_flops: Option<f64>,
    pub ceiling_bytes: Option<f64>,
}

impl Kernels {
    /// Reads a bench file.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let wrong = |reason: String| ReportError::Kernels { path: path.into(), reason };
        let bytes = read(path, limit::JSON).map_err(|error| wrong(error.to_string()))?;
        let kernels: Self = serde_json::from_slice(&bytes).map_err(|error| {
            wrong(format!(
                "{error}, expected {{\"kernels\": [{{\"name\", \"seconds\", \"flops\", \"bytes\"}}], ...}}"
            ))
        })?;
        if kernels.kernels.is_empty() {
            return Err(wrong("holds no kernel, expected one at least".into()));
        }
        for kernel in &kernels.kernels {
            let name = &kernel.name;
            if !(kernel.seconds.is_finite() && kernel.seconds > 0.0) {
                return Err(wrong(format!(
                    "kernel {name}: seconds {}, expected a number above 0",
                    kernel.seconds
                )));
            }
            for (what, value) in [("flops", kernel.flops), ("bytes", kernel.bytes)] {
                if !(value.is_finite() && value >= 0.0) {
                    return Err(wrong(format!(
                        "kernel {name}: {what} {value}, expected a number, 0 at least"
                    )));
                }
            }
        }
        for (what, ceiling) in
            [("ceiling_flops", kernels.ceiling_flops), ("ceiling_bytes", kernels.ceiling_bytes)]
        {
            if let Some(ceiling) = ceiling.filter(|ceiling| !(ceiling.is_finite() && *ceiling > 0.0)) {
                return Err(wrong(format!("{what} {ceiling}, expected a number above 0")));
            }
        }
        Ok(kernels)
    }

    /// The ceilings, where both are known.
    fn ceilings(&self) -> Option<(f64, f64)> {
        self.ceiling_flops.zip(self.ceiling_bytes)
    }

    /// What the device allows a kernel at most: its time over this is its share of the roof; and what bounds it.
    fn least_seconds(&self, kernel: &Kernel) -> Option<(f64, &'static str)> {
        let (flops, bytes) = self.ceilings()?;
        let (compute, memory) = (kernel.flops / flops, kernel.bytes / bytes);
        match compute >= memory {
            true => (compute > 0.0).then_some((compute, "compute")),
            false => Some((memory, "memory")),
        }
    }

    /// The plot and the table.
    pub fn section(&self) -> String {
        format!("<div class=\"plots\">{}</div>\n{}", self.plot(), self.table())
    }

    fn plot(&self) -> String {
        let point = |kernel: &Kernel| (kernel.flops / kernel.bytes, kernel.flops / kernel.seconds);
        let drawn: Vec<&Kernel> =
            self.kernels.iter().filter(|kernel| kernel.flops > 0.0 && kernel.bytes > 0.0).collect();
        if drawn.is_empty() {
            return "<p class=\"note\">No kernel has both operations and bytes: there is no roofline to draw.</p>\n".into();
        }
        let points: Vec<(f64, f64)> = drawn.iter().map(|kernel| point(kernel)).collect();
        let ridge = self.ceilings().map(|(flops, bytes)| flops / bytes);
        let x = Axis::logarithmic(points.iter().map(|point| point.0).chain(ridge));
        let (low, high) = x.ends();
        let guides: Vec<Vec<(f64, f64)>> = self
            .ceilings()
            .zip(ridge)
            .map(|((flops, bytes), ridge)| vec![(low, low * bytes), (ridge, flops), (high, flops)])
            .into_iter()
            .collect();
        let roof = guides.iter().flatten().map(|point| point.1);
        let titles = drawn.iter().zip(&points).map(|(kernel, point)| {
            let (intensity, rate) = (significant(point.0, 3), significant(point.1 / 1e9, 3));
            format!("{}: {intensity} FLOP/byte, {rate} GFLOP/s", kernel.name)
        });
        Plot {
            title: "Roofline: FLOP/s".into(),
            y: Axis::logarithmic(points.iter().map(|point| point.1).chain(roof)),
            x,
            x_name: "FLOP/byte".into(),
            y_name: "FLOP/s".into(),
            guides,
            series: vec![Series {
                name: "kernels".into(),
                style: Style::of_run(0),
                titles: Some(titles.collect()),
                points,
                joined: false,
            }],
        }
        .figure()
    }

    fn table(&self) -> String {
        let head = [
            ("kernel", false),
            ("µs", true),
            ("GFLOP/s", true),
            ("GB/s", true),
            ("% of roof", true),
            ("bound by", false),
        ];
        let row = |kernel: &Kernel| {
            let rate = |amount: f64| match amount > 0.0 {
                true => significant(amount / kernel.seconds / 1e9, 3),
                false => NONE.into(),
            };
            let least = self.least_seconds(kernel);
            vec![
                escape(&kernel.name),
                significant(kernel.seconds * 1e6, 4),
                rate(kernel.flops),
                rate(kernel.bytes),
                least.map_or(NONE.into(), |(least, _)| fixed(100.0 * least / kernel.seconds, 0)),
                least.map_or(NONE, |(_, bound)| bound).into(),
            ]
        };
        table(&head, &self.kernels.iter().map(row).collect::<Vec<_>>())
    }
}
