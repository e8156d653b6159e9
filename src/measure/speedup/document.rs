//! What a table holds: a row a recipe or control, its runs, their figures as means and deviations over the seeds; its JSON.
//!
//! Seconds are those of the runs' own `metrics.jsonl`. What a run costs is attack, train and select; evaluation is
//! shown next to them and counts for nothing. The JSON is one [`Document`]; unknown keys are to be ignored, and keys are
//! changed or taken away only with another `secateur_speedup`.

use serde::{Deserialize, Serialize};

use super::cost::Cost;
use super::plan::{Entry, Plan};
use crate::accelerate::Acceleration;
use crate::clock;
use crate::names::Named;
use crate::prune::{Coverage, SelectionMethod};
use crate::recipe::Recipe;
use crate::text::command_line;
use crate::train::metrics::{EpochMetrics, Seconds};
use crate::train::result::TestAccuracy;

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

/// One finished and evaluated run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub seed: u64,
    /// Inside the folder of the table.
    pub folder: String,
    /// Reduction over metrics.jsonl; `evaluate` is the validation.
    pub seconds: Seconds,
    /// Of the test images.
    pub seconds_test: f64,
    /// What the run did, in passes too.
    pub cost: Cost,
    /// Of the best epoch on the validation images; 1 is the first.
    pub best_epoch: Option<u32>,
    pub accuracies: Vec<Accuracy>,
    /// Cost of the full method under this seed over this run's: by seconds, by CPU seconds, and by passes. Filled in by
    /// [`Document::finish`].
    pub speed_up: Option<f64>,
    #[serde(default)]
    pub speed_up_by_cpu: Option<f64>,
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
    /// As in environment.json; null in a prediction, and until all runs are there.
    pub device: serde_json::Value,
    pub threads: usize,
    pub seeds: Vec<u64>,
    pub protocols: Vec<String>,
    /// Test images that were evaluated.
    pub samples: Option<usize>,
    pub rows: Vec<Row>,
    /// What the predictions take for granted.
    pub assumptions: Vec<String>,
    /// What a reader of the figures must know.
    pub notes: Vec<String>,
}

impl Run {
    /// A run from what its folder holds.
    pub fn new(
        recipe: &Recipe,
        folder: String,
        metrics: &[EpochMetrics],
        best_epoch: Option<u32>,
        tested: &[TestAccuracy],
    ) -> Self {
        let mut seconds = Seconds::default();
        metrics.iter().for_each(|epoch| seconds += epoch.seconds());
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
            seconds_test: tested.iter().map(|row| row.seconds).sum(),
            cost: Cost::measured(recipe, metrics),
            best_epoch,
            accuracies: tested.iter().map(accuracy).collect(),
            speed_up: None,
            speed_up_by_cpu: None,
            speed_up_by_passes: None,
        }
    }

    /// What counts: attack, train and select.
    pub fn cost_seconds(&self) -> f64 {
        self.seconds.attack + self.seconds.train + self.seconds.select
    }

    /// The same in seconds, CPU seconds and passes through the network.
    pub fn costs(&self) -> [f64; 3] {
        [self.cost_seconds(), self.seconds.cpu, self.cost.passes()]
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
        for (_, method) in Acceleration::ALL {
            let used = plan.entries.iter().any(|entry| entry.recipe.accelerate.method == *method);
            let row = method.row();
            if used && row.step_share < 1.0 {
                assumptions.push(format!(
                    "{} is taken for {} of the full attack's steps",
                    row.title, row.step_share
                ));
            }
        }
        for (_, method) in SelectionMethod::ALL {
            let used = plan.entries.iter().any(|entry| entry.recipe.selection.method == *method);
            if let (Coverage::Own { assumes, .. }, true) = (method.row().coverage, used) {
                assumptions.push(assumes());
                let title = method.row().title;
                notes.push(format!(
                    "{title} decides itself how many samples it keeps: no control has as many"
                ));
            }
        }
        Self {
            secateur_speedup: VERSION,
            command: command_line(),
            build: format!("secateur {} ({profile})", env!("CARGO_PKG_VERSION")),
            started_unix_seconds: clock::now().as_secs(),
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
}
