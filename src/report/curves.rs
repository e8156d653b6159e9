//! The plots of the page: curves over the epochs, where the time went, speed-ups, and accuracy against time.
//!
//! A run keeps its colour and shape through all of them. A plot without data is left out.

use super::compare::{SpeedUp, front};
use super::markup::{Style, area_legend, legend};
use super::plot::{Bar, Plot, Series, bars, stacked};
use super::read::{Clock, RunRecord};
use super::scale::{Axis, duration, fixed, significant};

/// A quantity of the metrics: its field, its words, a factor, and where its axis begins.
struct Quantity {
    field: &'static str,
    title: &'static str,
    name: &'static str,
    factor: f64,
    from_zero: bool,
    /// A second field on the same axis, dashed.
    second: Option<(&'static str, &'static str)>,
}

const fn quantity(field: &'static str, title: &'static str, name: &'static str) -> Quantity {
    Quantity { field, title, name, factor: 1.0, from_zero: true, second: None }
}

const QUANTITIES: [Quantity; 9] = [
    Quantity { from_zero: false, ..quantity("train_loss", "Loss in training", "loss") },
    Quantity {
        factor: 100.0,
        second: Some(("train_robust", "on training images")),
        ..quantity("validation_robust", "Robust accuracy, % (dashed: training)", "robust %")
    },
    Quantity { factor: 100.0, ..quantity("validation_clean", "Clean accuracy, %", "clean %") },
    quantity("learning_rate", "Learning rate", "learning rate"),
    quantity("subset_size", "Training images in the subset", "images"),
    quantity("attack_steps_per_sample", "Attack steps an image", "steps"),
    quantity("subset_class_entropy", "Class entropy of the subset, 1 is balanced", "entropy"),
    Quantity {
        second: Some(("residual_holdout_draw", "on a second draw")),
        ..quantity("residual", "Error of the subset's gradient (dashed: on a second draw)", "residual")
    },
    Quantity {
        factor: 100.0,
        ..quantity("co_pgd5_accuracy", "PGD-5 accuracy on a training batch, %", "PGD-5 %")
    },
];

/// Stages of a step and their classes in the style sheet, in the order of the bars.
const STAGES: [(&str, &str); 4] = [
    ("seconds_attack", "attack"),
    ("seconds_train", "train"),
    ("seconds_select", "select"),
    ("seconds_evaluate", "evaluate"),
];

const GROUPS: [(&str, &str); 3] = [
    ("outlier_share", "outliers (wrong already)"),
    ("boundary_share", "boundary"),
    ("robust_share", "robust"),
];

/// The names of the runs with their colours.
pub fn run_legend(runs: &[RunRecord]) -> String {
    let entries: Vec<(Style, String)> =
        runs.iter().enumerate().map(|(slot, run)| (Style::of_run(slot), run.name.clone())).collect();
    legend(&entries)
}

/// The quantities of the metrics over the epochs.
pub fn curves(runs: &[RunRecord]) -> String {
    QUANTITIES.iter().filter_map(|quantity| quantity.figure(runs)).collect()
}

impl Quantity {
    fn figure(&self, runs: &[RunRecord]) -> Option<String> {
        let mut series = Vec::new();
        for (slot, run) in runs.iter().enumerate() {
            let style = Style::of_run(slot);
            let mut add = |field, style, name: String| {
                let points: Vec<(f64, f64)> = run
                    .column(field)
                    .into_iter()
                    .map(|(epoch, value)| (epoch, self.factor * value))
                    .collect();
                if !points.is_empty() {
                    series.push(Series { name, style, points, joined: true, titles: None });
                }
            };
            if let Some((field, words)) = self.second {
                add(field, style.second(), format!("{}, {words}", run.name));
            }
            add(self.field, style, run.name.clone());
        }
        let values = || series.iter().flat_map(|series| &series.points);
        values().next()?;
        let y = values().map(|point| point.1);
        Some(
            Plot {
                title: self.title.into(),
                x: Axis::counts(values().map(|point| point.0)),
                y: if self.from_zero { Axis::from_zero(y) } else { Axis::linear(y) },
                x_name: "epoch".into(),
                y_name: self.name.into(),
                guides: Vec::new(),
                series,
            }
            .figure(),
        )
    }
}

/// The groups of BulletTrain over the epochs, a plot for each run that has them.
pub fn groups(runs: &[RunRecord]) -> String {
    let mut html = String::new();
    for run in runs {
        let columns = GROUPS.map(|(field, _)| run.column(field));
        let epochs: Vec<f64> = columns[0].iter().map(|point| point.0).collect();
        if epochs.is_empty() || columns.iter().any(|column| column.len() != epochs.len()) {
            continue;
        }
        let areas: Vec<(String, &str, Vec<f64>)> = GROUPS
            .iter()
            .zip(&columns)
            .enumerate()
            .map(|(i, ((_, name), column))| {
                (format!("s{i}"), *name, column.iter().map(|point| point.1).collect())
            })
            .collect();
        html += &stacked(&run.name, "epoch", &areas, &epochs);
    }
    if html.is_empty() {
        return html;
    }
    let entries: Vec<(String, &str)> =
        GROUPS.iter().enumerate().map(|(i, (_, name))| (format!("s{i}"), *name)).collect();
    let legend = area_legend(&entries);
    format!("<h3>Groups of BulletTrain, % of the images</h3>{legend}<div class=\"plots\">{html}</div>\n")
}

/// Seconds by what they were spent on, a bar for each run with epochs.
pub fn time_split(runs: &[RunRecord]) -> String {
    let rows: Vec<Bar> = runs
        .iter()
        .filter(|run| !run.epochs.is_empty())
        .map(|run| {
            let total: f64 = STAGES.iter().map(|(field, _)| run.sum(field)).sum();
            let part = |(i, (field, stage)): (usize, &(&str, &str))| {
                let seconds = run.sum(field);
                let words =
                    format!("{stage} {} ({} %)", duration(seconds), fixed(100.0 * seconds / total, 0));
                (format!("s{i}"), words, seconds)
            };
            Bar {
                name: run.name.clone(),
                parts: STAGES.iter().enumerate().map(part).collect(),
                value: duration(total),
            }
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let actual =
        STAGES.iter().enumerate().filter(|(_, (field, _))| runs.iter().any(|run| run.sum(field) > 0.0));
    let entries: Vec<(String, &str)> = actual.map(|(i, (_, name))| (format!("s{i}"), *name)).collect();
    format!("<div>{}{}</div>\n", bars("Where the time went", "seconds", &rows, None), area_legend(&entries))
}

/// A bar for each run that has a control.
pub fn speed_ups(runs: &[RunRecord], speed_ups: &[Result<SpeedUp, &str>]) -> String {
    let clock = Clock::of(runs);
    let gains = runs.iter().zip(speed_ups).enumerate();
    let rows: Vec<Bar> = gains
        .filter_map(|(slot, (run, gain))| {
            let gain = gain.as_ref().ok()?;
            let against: Vec<&str> = gain.against.iter().map(|&place| runs[place].name.as_str()).collect();
            let words = format!(
                "{} of training ({}), {} times as fast as {}",
                duration(run.training_seconds(clock)),
                clock.name(),
                fixed(gain.factor, 2),
                against.join(" and ")
            );
            Some(Bar {
                name: run.name.clone(),
                parts: vec![(Style::of_run(slot).class(), words, gain.factor)],
                value: format!("{}\u{D7}", fixed(gain.factor, 2)),
            })
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    bars("Speed-up against full training", "times as fast", &rows, Some(1.0))
}

/// Test accuracy of the best weights (of the last, where there are no best) over the seconds of training.
pub fn trade(runs: &[RunRecord], protocol: &str) -> Option<Plot> {
    let (clock, mut series) = (Clock::of(runs), Vec::new());
    for (slot, run) in runs.iter().enumerate() {
        let rows = run.test_accuracies();
        let of = |weights: &str| rows.iter().find(|row| row.0 == weights && row.1 == protocol);
        let Some((weights, _, accuracy, total)) = of("best").or(of("last")) else { continue };
        let (seconds, accuracy) = (run.training_seconds(clock), 100.0 * accuracy);
        let title = format!(
            "{} ({weights}): {protocol} {} % of {total} test images, {} of training",
            run.name,
            significant(accuracy, 4),
            duration(seconds)
        );
        series.push(Series {
            name: run.name.clone(),
            style: Style::of_run(slot),
            points: vec![(seconds, accuracy)],
            joined: false,
            titles: Some(vec![title]),
        });
    }
    if series.is_empty() {
        return None;
    }
    let points: Vec<(f64, f64)> = series.iter().map(|series| series.points[0]).collect();
    // The front as stairs: an accuracy is to be had from its seconds on.
    let mut stairs: Vec<(f64, f64)> = Vec::new();
    for point in front(&points) {
        stairs.extend(stairs.last().map(|last| (point.0, last.1)));
        stairs.push(point);
    }
    Some(Plot {
        title: format!("Test accuracy, {protocol}, %"),
        x: Axis::from_zero(points.iter().map(|point| point.0)),
        y: Axis::linear(points.iter().map(|point| point.1)),
        x_name: clock.name().into(),
        y_name: format!("{protocol} %"),
        guides: vec![stairs],
        series,
    })
}
