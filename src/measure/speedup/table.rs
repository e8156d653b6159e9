//! The table of a [`Document`]: which figures a run has, their statistics over the seeds, and the rows as text and CSV.
//!
//! A speed-up is the cost of the full method under the same seed over that of the run, so its mean is one of ratios.

use std::array;

use super::super::table::{lines, number};
use super::document::{Accuracy, Document, Figure, Row, Run, Statistic};

/// A figure of a run: its name in JSON and CSV, its heading and unit in text, and where it comes from.
struct Column {
    name: String,
    heading: String,
    unit: Unit,
    of: Box<Source>,
}

/// What a run says of a figure; nothing where it has none.
type Source = dyn Fn(&Run) -> Option<f64>;

/// How a figure is written.
#[derive(Clone, Copy)]
enum Unit {
    Seconds,
    Factor,
    Count,
    Share,
}

impl Unit {
    /// `2.50 +- 0.12x`; no deviation where there is none.
    fn text(self, statistic: Statistic) -> String {
        let (scale, digits, sign) = match self {
            Self::Seconds => (1.0, if statistic.mean >= 100.0 { 0 } else { 2 }, ""),
            Self::Factor => (1.0, 2, "x"),
            Self::Count => (1.0, 0, ""),
            Self::Share => (100.0, 1, " %"),
        };
        let number = |value: f64| format!("{:.digits$}", scale * value);
        let deviation = statistic.deviation.filter(|&deviation| deviation > 0.0);
        let deviation = deviation.map_or(String::new(), |deviation| format!(" \u{B1} {}", number(deviation)));
        format!("{}{deviation}{sign}", number(statistic.mean))
    }
}

impl Document {
    /// Fills in what follows from the runs of all rows: speed-ups and statistics.
    pub fn finish(&mut self) {
        self.dry_run = false;
        let costs: Vec<(String, u64, [f64; 3])> = self
            .rows
            .iter()
            .flat_map(|row| {
                let cost = |run: &Run| (row.name.clone(), run.seed, run.costs());
                row.runs.iter().map(cost).collect::<Vec<_>>()
            })
            .collect();
        let columns = self.columns();
        for row in &mut self.rows {
            for run in &mut row.runs {
                let full = costs.iter().find(|(name, seed, ..)| *name == row.full && *seed == run.seed);
                let own = run.costs();
                // A cost that was not counted is 0.
                let ratio = |cost: usize| {
                    let (.., full) = full.filter(|(.., full)| full[cost] > 0.0 && own[cost] > 0.0)?;
                    Some(full[cost] / own[cost])
                };
                [run.speed_up, run.speed_up_by_cpu, run.speed_up_by_passes] = array::from_fn(ratio);
            }
            let figure = |column: &Column| {
                let values: Option<Vec<f64>> = row.runs.iter().map(|run| (column.of)(run)).collect();
                Some(Figure { name: column.name.clone(), statistic: Statistic::of(&values?)? })
            };
            row.figures = columns.iter().filter_map(figure).collect();
        }
    }

    /// The figures of a run, in the order of the table.
    fn columns(&self) -> Vec<Column> {
        fn column(
            name: &str,
            heading: &str,
            unit: Unit,
            of: impl Fn(&Run) -> Option<f64> + 'static,
        ) -> Column {
            Column { name: name.into(), heading: heading.into(), unit, of: Box::new(of) }
        }
        let mut columns = vec![
            column("seconds_per_epoch", "s/epoch", Unit::Seconds, |run| {
                Some(run.cost_seconds() / run.cost.epochs as f64)
            }),
            column("seconds", "seconds", Unit::Seconds, |run| Some(run.cost_seconds())),
            column("seconds_attack", "attack", Unit::Seconds, |run| Some(run.seconds.attack)),
            column("seconds_train", "train", Unit::Seconds, |run| Some(run.seconds.train)),
            column("seconds_select", "select", Unit::Seconds, |run| Some(run.seconds.select)),
            column("seconds_evaluate", "(evaluate)", Unit::Seconds, |run| {
                Some(run.seconds.evaluate + run.seconds_test)
            }),
            column("seconds_cpu", "CPU", Unit::Seconds, |run| Some(run.seconds.cpu).filter(|&cpu| cpu > 0.0)),
            column("speed_up", "speed-up", Unit::Factor, |run| run.speed_up),
            column("speed_up_by_cpu", "by CPU", Unit::Factor, |run| run.speed_up_by_cpu),
            column("speed_up_by_passes", "by passes", Unit::Factor, |run| run.speed_up_by_passes),
            column("samples", "samples", Unit::Count, |run| Some(run.cost.images)),
            column("attack_steps", "attack steps", Unit::Count, |run| Some(run.cost.attack_steps)),
        ];
        for weights in ["best", "last"] {
            for protocol in &self.protocols {
                let protocol = protocol.clone();
                columns.push(Column {
                    name: format!("{weights}_{protocol}"),
                    heading: format!("{weights} {protocol}"),
                    unit: Unit::Share,
                    of: Box::new(move |run| {
                        let found = |row: &&Accuracy| row.weights == weights && row.protocol == protocol;
                        run.accuracies.iter().find(found).map(|row| row.accuracy)
                    }),
                });
            }
        }
        columns
    }

    /// The table as lines of text, and the notes below it.
    pub fn lines(&self) -> Vec<String> {
        let (mut all, assumptions) = match self.dry_run {
            true => (self.predicted_lines(), self.assumptions.as_slice()),
            false => (self.measured_lines(), [].as_slice()),
        };
        all.extend(assumptions.iter().chain(&self.notes).map(|note| format!("note: {note}")));
        all
    }

    fn predicted_lines(&self) -> Vec<String> {
        let heading =
            ["name", "epochs", "speed-up", "Mpasses", "attack", "train", "select", "samples", "attack steps"];
        let cells = |row: &Row| {
            let cost = &row.predicted;
            let plain = |unit: Unit, mean: f64| unit.text(Statistic { mean, deviation: None });
            let share = |passes: f64| plain(Unit::Share, passes / cost.passes());
            vec![
                row.name.clone(),
                cost.epochs.to_string(),
                plain(Unit::Factor, row.predicted_speed_up),
                number(cost.passes() / 1e6),
                share(cost.attack_passes),
                share(cost.train_passes),
                share(cost.select_passes),
                plain(Unit::Count, cost.images),
                plain(Unit::Count, cost.attack_steps),
            ]
        };
        lines(&heading, &self.rows.iter().map(cells).collect::<Vec<_>>())
    }

    fn measured_lines(&self) -> Vec<String> {
        let columns = self.columns();
        let mut heading = vec!["name", "epochs"];
        heading.extend(columns.iter().map(|column| column.heading.as_str()));
        let cells = |row: &Row| {
            let mut cells = vec![row.name.clone(), row.predicted.epochs.to_string()];
            cells.extend(columns.iter().map(|column| {
                let figure = row.figures.iter().find(|figure| figure.name == column.name);
                figure.map_or("-".into(), |figure| column.unit.text(figure.statistic))
            }));
            cells
        };
        lines(&heading, &self.rows.iter().map(cells).collect::<Vec<_>>())
    }

    /// One line a row: the prediction, then mean and deviation of every figure; empty where there is none.
    pub fn to_csv(&self) -> String {
        let columns = self.columns();
        let text = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let mut csv = String::from(
            "name,role,full,selection,fraction,accelerate,epochs,predicted_passes,predicted_speed_up",
        );
        for column in &columns {
            csv += &format!(",{0},{0}_deviation", column.name);
        }
        csv += "\n";
        for row in &self.rows {
            csv += &format!(
                "{},{},{},{},{},{},{},{},{}",
                text(&row.name),
                row.role,
                text(&row.full),
                row.selection,
                row.fraction,
                row.accelerate,
                row.predicted.epochs,
                row.predicted.passes(),
                row.predicted_speed_up
            );
            for column in &columns {
                let figure = row.figures.iter().find(|figure| figure.name == column.name);
                let mean = figure.map(|figure| figure.statistic.mean.to_string());
                let deviation = figure.and_then(|figure| figure.statistic.deviation);
                let deviation = deviation.map(|deviation| deviation.to_string());
                csv += &format!(",{},{}", mean.unwrap_or_default(), deviation.unwrap_or_default());
            }
            csv += "\n";
        }
        csv
    }
}
