//! The variants as tables: what each should take on an H200, and what it took.

use secateur::measure::table::{self, number, percent, time};

use super::variants::Step;

fn rate(step: &Step, seconds: Option<f64>) -> String {
    seconds.map_or("-".into(), |seconds| number(step.flops as f64 / seconds / 1e12))
}

fn predicted(step: &Step) -> Option<f64> {
    step.prediction.map(|prediction| prediction.seconds)
}

fn bound(step: &Step) -> String {
    step.prediction.map_or("-".into(), |prediction| prediction.bound.into())
}

/// A line a variant: predicted time and rate, and what bounds it.
pub fn predicted_lines(steps: &[Step]) -> Vec<String> {
    let heading = ["layer", "variant", "predicted", "TFLOP/s", "bound by"];
    let cells = |step: &Step| {
        let seconds = predicted(step);
        vec![
            step.layer.clone(),
            step.variant.into(),
            seconds.map_or("-".into(), time),
            rate(step, seconds),
            bound(step),
        ]
    };
    table::lines(&heading, &steps.iter().map(cells).collect::<Vec<_>>())
}

/// A line a variant: predicted and measured time, measured rate, and the share of the prediction that it reached.
pub fn measured_lines(steps: &[Step], measured: &[Option<f64>]) -> Vec<String> {
    let heading = ["layer", "variant", "predicted", "measured", "TFLOP/s", "of prediction", "bound by"];
    let cells = |(step, seconds): (&Step, &Option<f64>)| {
        let share = predicted(step).zip(*seconds).map(|(predicted, seconds)| predicted / seconds);
        vec![
            step.layer.clone(),
            step.variant.into(),
            predicted(step).map_or("-".into(), time),
            seconds.map_or("-".into(), time),
            rate(step, *seconds),
            percent(share),
            bound(step),
        ]
    };
    table::lines(&heading, &steps.iter().zip(measured).map(cells).collect::<Vec<_>>())
}
