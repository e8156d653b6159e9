//! The table: a row a recipe or control, figures as means and deviations over the seeds; as text, CSV and JSON.
//!
//! Seconds are those of the runs' own `metrics.jsonl`. What a run costs is attack, train and select; evaluation is shown beside
//! them and counts for nothing. A speed-up is the cost of the full method under the same seed over that of the run, so its mean
//! is one of ratios. The JSON is one [`Document`]; unknown keys are to be ignored, and keys are changed or taken away only with
//! another `secateur_speedup`. Called by `secateur bench speedup`; checked by `tests/bench_speedup.rs`.

use serde::{Deserialize, Serialize};

use super::super::table::{lines, number};
use super::cost::{BULLET_STEP_SHARE, Cost, EASY_SHARE};
use super::plan::{Entry, Plan};
use crate::recipe::{Acceleration, Recipe, SelectionMethod};
use crate::train::TestAccuracy;
use crate::train::metrics::{EpochMetrics, Seconds};

/// The version of the JSON.
pub const VERSION: u32 = 1;

/// Mean and sample standard deviation over the seeds; no deviation of one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Statistic {
    pub mean: f64,
    pub deviation: Option<f64>,
}

impl Statistic {
    /// Of values that there is one of at least.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        let mean = (!values.is_empty()).then(|| values.iter().sum::<f64>() / count)?;
        let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        Some(Self { mean, deviation: (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()) })
    }
}

/// The accuracy of one set of weights under one protocol, a share in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// `best` or `last`.
    pub weights: String,
    pub protocol: String,
    pub accuracy: f64,
    pub correct: usize,
    pub total: usize,
}

/// One finished and judged run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub seed: u64,
    /// Inside the folder of the table.
    pub folder: String,
    /// Sums over metrics.jsonl; `evaluate` is the validation.
    pub seconds: Seconds,
    /// Of the test images.
    pub seconds_test: f64,
    /// What the run did, in passes too.
    pub cost: Cost,
    /// Of the best epoch on the validation images; 1 is the first.
    pub best_epoch: Option<u32>,
    pub accuracies: Vec<Accuracy>,
    /// Cost of the full method under this seed over this run's: by seconds, and by passes. Filled in by [`Document::finish`].
    pub speed_up: Option<f64>,
    pub speed_up_by_passes: Option<f64>,
}

/// A recipe or a control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    /// `recipe`, `full`, `short`, `random` or `random-online`.
    pub role: String,
    /// The recipes that it is a control of.
    pub controls: Vec<String>,
    /// The row that its speed-up is counted against.
    pub full: String,
    pub selection: String,
    pub fraction: f64,
    pub accelerate: String,
    /// By the cost model, before any run, and the speed-up that it promises.
    pub predicted: Cost,
    pub predicted_speed_up: f64,
    pub runs: Vec<Run>,
    /// Over the runs; empty in a prediction.
    pub figures: Vec<Figure>,
}

/// One column of a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// `seconds`, `speed_up`, `best pgd50x10`, ...
    pub name: String,
    #[serde(flatten)]
    pub statistic: Statistic,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`VERSION`].
    pub secateur_speedup: u32,
    pub command: Vec<String>,
    /// Version and profile of the program.
    pub build: String,
    pub started_unix_seconds: u64,
    /// Whether nothing was trained.
    pub dry_run: bool,
    /// As in environment.json; null in a prediction.
    pub device: serde_json::Value,
    pub threads: usize,
    pub seeds: Vec<u64>,
    pub protocols: Vec<String>,
    /// Test images that were judged.
    pub samples: Option<usize>,
    pub rows: Vec<Row>,
    /// What the predictions take for granted.
    pub assumptions: Vec<String>,
    /// What a reader of the figures must know.
    pub notes: Vec<String>,
}

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

impl Run {
    /// A run from what its folder holds.
    pub fn new(
        recipe: &Recipe,
        folder: String,
        metrics: &[EpochMetrics],
        best_epoch: Option<u32>,
        judged: &[TestAccuracy],
    ) -> Self {
        let mut seconds = Seconds::default();
        for epoch in metrics {
            seconds += Seconds {
                attack: epoch.seconds_attack,
                train: epoch.seconds_train,
                select: epoch.seconds_select,
                evaluate: epoch.seconds_evaluate,
            };
        }
        let accuracy = |row: &TestAccuracy| Accuracy {
            weights: row.weights.into(),
            protocol: row.protocol.clone(),
            accuracy: row.accuracy,
            correct: row.correct,
            total: row.total,
        };
        Self {
            seed: recipe.seed,
            folder,
            seconds,
            seconds_test: judged.iter().map(|row| row.seconds).sum(),
            cost: Cost::measured(recipe, metrics),
            best_epoch,
            accuracies: judged.iter().map(accuracy).collect(),
            speed_up: None,
            speed_up_by_passes: None,
        }
    }

    /// What counts: attack, train and select.
    pub fn cost_seconds(&self) -> f64 {
        self.seconds.attack + self.seconds.train + self.seconds.select
    }
}

impl Row {
    /// A row without runs.
    pub fn new(entry: &Entry, plan: &Plan) -> Self {
        let full = &plan.entries[entry.full];
        let predicted = entry.predicted();
        Self {
            name: entry.recipe.name.clone(),
            role: entry.role.to_string(),
            controls: entry.controls.clone(),
            full: full.recipe.name.clone(),
            selection: entry.recipe.selection.method.to_string(),
            fraction: entry.recipe.selection.fraction,
            accelerate: entry.recipe.accelerate.method.to_string(),
            predicted,
            predicted_speed_up: full.predicted().passes() / predicted.passes(),
            runs: Vec::new(),
            figures: Vec::new(),
        }
    }
}

impl Document {
    /// The rows of a plan without runs: a prediction, until runs are put into it.
    pub fn new(plan: &Plan, protocols: &[String]) -> Self {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        let (mut assumptions, mut notes) = (Vec::new(), Vec::new());
        let any = |of: fn(&Recipe) -> bool| plan.entries.iter().any(|entry| of(&entry.recipe));
        if any(|recipe| recipe.accelerate.method == Acceleration::BulletTrain) {
            assumptions
                .push(format!("BulletTrain is taken for {BULLET_STEP_SHARE} of the full attack's steps"));
        }
        if any(|recipe| recipe.selection.method == SelectionMethod::InfoBatch) {
            assumptions.push(format!("a share of {EASY_SHARE} of InfoBatch's samples is taken for easy"));
            notes.push("InfoBatch decides itself how many samples it keeps: no control has as many".into());
        }
        Self {
            secateur_speedup: VERSION,
            command: std::env::args().collect(),
            build: format!("secateur {} ({profile})", env!("CARGO_PKG_VERSION")),
            started_unix_seconds: super::super::now(),
            dry_run: true,
            device: serde_json::Value::Null,
            threads: rayon::current_num_threads(),
            seeds: plan.seeds.clone(),
            protocols: protocols.into(),
            samples: None,
            rows: plan.entries.iter().map(|entry| Row::new(entry, plan)).collect(),
            assumptions,
            notes,
        }
    }

    /// Fills in what follows from the runs of all rows: speed-ups and statistics.
    pub fn finish(&mut self) {
        self.dry_run = false;
        let costs: Vec<(String, u64, f64, f64)> = self
            .rows
            .iter()
            .flat_map(|row| {
                let cost = |run: &Run| (row.name.clone(), run.seed, run.cost_seconds(), run.cost.passes());
                row.runs.iter().map(cost).collect::<Vec<_>>()
            })
            .collect();
        let columns = self.columns();
        for row in &mut self.rows {
            for run in &mut row.runs {
                let full = costs.iter().find(|(name, seed, ..)| *name == row.full && *seed == run.seed);
                run.speed_up = full.map(|(_, _, seconds, _)| seconds / run.cost_seconds());
                run.speed_up_by_passes = full.map(|(.., passes)| passes / run.cost.passes());
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
            column("speed_up", "speed-up", Unit::Factor, |run| run.speed_up),
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

    /// JSON, ended by a line break.
    pub fn to_json(&self) -> anyhow::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}
