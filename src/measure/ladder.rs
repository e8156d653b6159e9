//! The ladder of convolution kernels as tables: what each rung should take on an H200, and what it took. Called by
//! `secateur bench ladder`; checked by `tests/ladder.rs`.

use std::time::Instant;

use super::table::{self, number, percent, time};
use crate::engine::{LadderStep, Result};

/// The name of a row: layer, pass and rung.
pub fn name(step: &LadderStep) -> String {
    format!("{}, {}", step.layer, step.rung)
}

/// Seconds of one launch; a run is waited for as a whole.
pub fn seconds(step: &mut LadderStep) -> Result<f64> {
    let begin = Instant::now();
    step.probe.run()?;
    Ok(begin.elapsed().as_secs_f64() / f64::from(step.launches))
}

/// Floating-point operations of one launch.
pub fn flops(step: &LadderStep) -> f64 {
    step.probe.amount as f64 / f64::from(step.launches)
}

fn rate(step: &LadderStep, seconds: Option<f64>) -> String {
    seconds.map_or("-".into(), |seconds| number(flops(step) / seconds / 1e12))
}

fn predicted(step: &LadderStep) -> Option<f64> {
    step.prediction.map(|(seconds, _)| seconds)
}

fn bound(step: &LadderStep) -> String {
    step.prediction.map_or("-".into(), |(_, bound)| bound.into())
}

/// A line a rung: predicted time and rate, and what bounds it.
pub fn predicted_lines(steps: &[LadderStep]) -> Vec<String> {
    let heading = ["layer", "rung", "predicted", "TFLOP/s", "bound by"];
    let cells = |step: &LadderStep| {
        let seconds = predicted(step);
        vec![
            step.layer.clone(),
            step.rung.into(),
            seconds.map_or("-".into(), time),
            rate(step, seconds),
            bound(step),
        ]
    };
    table::lines(&heading, &steps.iter().map(cells).collect::<Vec<_>>())
}

/// A line a rung: predicted and measured time, measured rate, and the share of the prediction that was met.
pub fn measured_lines(steps: &[LadderStep], measured: &[Option<f64>]) -> Vec<String> {
    let heading = ["layer", "rung", "predicted", "measured", "TFLOP/s", "of prediction", "bound by"];
    let cells = |(step, seconds): (&LadderStep, &Option<f64>)| {
        let share = predicted(step).zip(*seconds).map(|(predicted, seconds)| predicted / seconds);
        vec![
            step.layer.clone(),
            step.rung.into(),
            predicted(step).map_or("-".into(), time),
            seconds.map_or("-".into(), time),
            rate(step, *seconds),
            percent(share),
            bound(step),
        ]
    };
    table::lines(&heading, &steps.iter().zip(measured).map(cells).collect::<Vec<_>>())
}
