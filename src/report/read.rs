//! What a run folder holds, read with patience: a run under way, an older one or a damaged one is reported all the same.
//!
//! A folder that is no run is an error. Of a run, what is missing or damaged is left out, and a note says so. Figures
//! are kept as they stand in the files: none is computed here.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value};

use crate::files::{is_file, limit, read, read_text};
use crate::train::metrics;

/// Damaged lines of one file that are named.
const MAX_NOTES: usize = 20;

/// Why there can be no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("{path}: {reason}, expected the folder of a run (what `secateur train --out` names)")]
    NotARun { path: PathBuf, reason: String },
    #[error("{path}: named twice, expected each run once")]
    Twice { path: PathBuf },
    #[error("{path}: {reason}")]
    Kernels { path: PathBuf, reason: String },
}

/// One epoch: the object of its line in metrics.jsonl.
#[derive(Clone, Debug)]
pub struct Epoch(Map<String, Value>);

impl Epoch {
    /// A finite number of this name, if the line has one.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.0.get(key)?.as_f64().filter(|value| value.is_finite())
    }

    fn epoch(&self) -> Option<u64> {
        self.0.get("epoch")?.as_u64().filter(|&epoch| epoch > 0)
    }
}

/// The newest subset of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The epoch it was chosen for, 1 the first.
    pub epoch: u32,
    /// Positions in the training set.
    pub samples: Vec<u32>,
    pub weights: Vec<f32>,
}

/// A run.
#[derive(Clone, Debug)]
pub struct RunRecord {
    /// The folder's name, or as much of its path as tells it from the other runs.
    pub name: String,
    pub path: PathBuf,
    /// Dotted keys of recipe.toml and their values as text, by section.
    pub recipe: Vec<(String, String)>,
    /// environment.json: one object a session.
    pub sessions: Vec<Value>,
    /// Ascending.
    pub epochs: Vec<Epoch>,
    /// result.json; the run has ended where it is there.
    pub result: Option<Value>,
    pub chosen: Option<Chosen>,
    /// What is missing or damaged, for the reader.
    pub notes: Vec<String>,
}

/// The clock that seconds of training are by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    Wall,
    /// Of all threads.
    Cpu,
}

impl Clock {
    /// CPU seconds where all of `runs` have them, as other programs change those little; else the wall clock.
    pub fn of(runs: &[RunRecord]) -> Self {
        if runs.iter().all(RunRecord::has_cpu_seconds) { Self::Cpu } else { Self::Wall }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Wall => "seconds",
            Self::Cpu => "CPU seconds",
        }
    }
}

/// Reads runs and gives each a name of its own.
pub fn read_runs(paths: &[PathBuf]) -> Result<Vec<RunRecord>, ReportError> {
    let mut runs = paths.iter().map(|path| RunRecord::read(path)).collect::<Result<Vec<_>, _>>()?;
    let mut actual = BTreeSet::new();
    for path in paths {
        if !actual.insert(whole(path)) {
            return Err(ReportError::Twice { path: path.clone() });
        }
    }
    // Runs whose folders have the same name are told apart by the folders above.
    let whole: Vec<PathBuf> = runs.iter().map(|run| whole(&run.path)).collect();
    for (i, run) in runs.iter_mut().enumerate() {
        let own = |depth: &usize| {
            let name = last_parts(&whole[i], *depth);
            whole.iter().filter(|other| last_parts(other, *depth) == name).count() == 1
        };
        run.name = last_parts(&whole[i], (1..16).find(own).unwrap_or(16));
    }
    Ok(runs)
}

fn whole(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.into())
}

/// The last `count` parts of a path.
fn last_parts(path: &Path, count: usize) -> String {
    let parts: Vec<String> =
        path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    parts[parts.len().saturating_sub(count)..].join("/")
}

impl RunRecord {
    /// Reads the run in `path`.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let not_a_run = |reason: String| ReportError::NotARun { path: path.into(), reason };
        let entry = fs::metadata(path).map_err(|error| not_a_run(error.to_string()))?;
        if !entry.is_dir() {
            return Err(not_a_run("a file".into()));
        }
        match is_file(&path.join("recipe.toml")) {
            Ok(true) => {}
            Ok(false) => return Err(not_a_run("holds no recipe.toml".into())),
            Err(error) => return Err(not_a_run(format!("recipe.toml: {error}"))),
        }
        let mut run = Self {
            name: last_parts(&whole(path), 1),
            path: path.into(),
            recipe: Vec::new(),
            sessions: Vec::new(),
            epochs: Vec::new(),
            result: None,
            chosen: None,
            notes: Vec::new(),
        };
        run.read_recipe();
        if let Some(value) = run.json("environment.json") {
            match value {
                Value::Array(sessions) => run.sessions = sessions,
                _ => run.notes.push("environment.json: not a list of sessions; left out".into()),
            }
        }
        run.read_metrics();
        run.result = run.json("result.json").filter(Value::is_object);
        if run.result.is_none() && !run.path.join("result.json").exists() {
            run.notes.push(
                "no result.json: the run is under way, or was stopped; test accuracies are left out".into(),
            );
        }
        run.chosen = run.newest_subset();
        Ok(run)
    }

    /// A value of the recipe, as text.
    pub fn recipe(&self, key: &str) -> Option<&str> {
        self.recipe.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// The epochs that have a number of this name, and the number.
    pub fn column(&self, key: &str) -> Vec<(f64, f64)> {
        let row = |epoch: &Epoch| Some((epoch.number("epoch")?, epoch.number(key)?));
        self.epochs.iter().filter_map(row).collect()
    }

    /// The sum of a number over the epochs that have it.
    pub fn sum(&self, key: &str) -> f64 {
        // Not an empty sum, which is -0.
        self.epochs.iter().filter_map(|epoch| epoch.number(key)).fold(0.0, |sum, value| sum + value)
    }

    /// Seconds of attack, train and selection over the epochs: what training cost, without its measurement.
    pub fn training_seconds(&self, clock: Clock) -> f64 {
        match clock {
            Clock::Wall => {
                ["seconds_attack", "seconds_train", "seconds_select"].iter().map(|key| self.sum(key)).sum()
            }
            Clock::Cpu => self.sum("seconds_cpu"),
        }
    }

    /// Whether it ran on a CPU and counted CPU seconds in every epoch.
    fn has_cpu_seconds(&self) -> bool {
        let on_cpu =
            |session: &Value| session["device"]["kind"].as_str().is_some_and(|kind| kind.starts_with("cpu"));
        let counted = |epoch: &Epoch| epoch.number("seconds_cpu").is_some_and(|seconds| seconds > 0.0);
        !self.epochs.is_empty() && self.sessions.iter().all(on_cpu) && self.epochs.iter().all(counted)
    }

    /// Test accuracies in result.json: weights ("best" or "last"), protocol, accuracy, number of images.
    pub fn test_accuracies(&self) -> Vec<(&str, &str, f64, u64)> {
        let rows = self.result.as_ref().and_then(|result| result["test"].as_array());
        fn row(row: &Value) -> Option<(&str, &str, f64, u64)> {
            let (weights, protocol) = (row["weights"].as_str()?, row["protocol"].as_str()?);
            Some((weights, protocol, row["accuracy"].as_f64()?, row["total"].as_u64()?))
        }
        rows.into_iter().flatten().filter_map(row).collect()
    }

    fn read_recipe(&mut self) {
        let text = match read_text(&self.path.join("recipe.toml"), limit::SETTINGS) {
            Ok(text) => text,
            Err(error) => return self.notes.push(format!("recipe.toml: {error}; left out")),
        };
        match text.parse::<toml::Table>() {
            Ok(table) => flatten("", &table, &mut self.recipe),
            Err(error) => self.notes.push(format!("recipe.toml: not TOML: {}; left out", first_line(&error))),
        }
    }

    /// A JSON file of the run; none where it is absent, and a note where it is damaged.
    fn json(&mut self, name: &str) -> Option<Value> {
        let bytes = match read(&self.path.join(name), limit::JSON) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                self.notes.push(format!("{name}: {error}; left out"));
                return None;
            }
        };
        serde_json::from_slice(&bytes)
            .map_err(|error| self.notes.push(format!("{name}: not JSON: {}; left out", first_line(&error))))
            .ok()
    }

    fn read_metrics(&mut self) {
        let bytes = match read(&self.path.join("metrics.jsonl"), limit::METRICS) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.notes.push("no metrics.jsonl: no epoch is finished".into());
            }
            Err(error) => return self.notes.push(format!("metrics.jsonl: {error}; left out")),
        };
        if bytes.is_empty() {
            return self.notes.push("metrics.jsonl: empty: no epoch is finished".into());
        }
        let (mut before, notes) = (0, self.notes.len());
        let lines = metrics::lines(&bytes).enumerate().filter(|(_, line)| !line.text().is_empty());
        for (index, line) in lines {
            let parsed: Option<Epoch> = serde_json::from_slice(line.text()).ok().map(Epoch);
            match parsed.as_ref().and_then(Epoch::epoch) {
                Some(epoch) if epoch > before => {
                    before = epoch;
                    self.epochs.extend(parsed);
                }
                Some(epoch) => self.notes.push(format!(
                    "metrics.jsonl, line {}: epoch {epoch} after epoch {before}; passed over",
                    index + 1
                )),
                None if !line.0.ends_with(b"\n") => {
                    self.notes.push("metrics.jsonl: the last line is not whole yet; passed over".into());
                }
                None => self.notes.push(format!(
                    "metrics.jsonl, line {}: not an object with an epoch; passed over",
                    index + 1
                )),
            }
            if self.notes.len() > notes + MAX_NOTES {
                self.notes.push("metrics.jsonl: too many lines like these; the rest is left out".into());
                break;
            }
        }
    }

    /// The subset with the highest epoch in selection/.
    fn newest_subset(&mut self) -> Option<Chosen> {
        let number = |entry: fs::DirEntry| -> Option<u32> {
            let name = entry.file_name();
            name.to_str()?.strip_prefix("epoch-")?.strip_suffix(".safetensors")?.parse().ok()
        };
        let entries = fs::read_dir(self.path.join("selection")).ok()?;
        let epoch = entries.filter_map(|entry| number(entry.ok()?)).max()?;
        let name = format!("selection/epoch-{epoch:04}.safetensors");
        match read_subset(&self.path.join(&name)) {
            Ok((samples, weights)) => Some(Chosen { epoch, samples, weights }),
            Err(reason) => {
                self.notes.push(format!("{name}: {reason}; left out"));
                None
            }
        }
    }
}

/// `indices` (I64) and `weights` (F32) of a subset's file.
fn read_subset(path: &Path) -> Result<(Vec<u32>, Vec<f32>), String> {
    let bytes = read(path, limit::TENSORS).map_err(|error| error.to_string())?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|error| format!("not a whole safetensors file: {error}"))?;
    let tensor = |name: &str, dtype: Dtype| match file.tensor(name) {
        Ok(view) if view.dtype() == dtype => Ok(view.data().to_vec()),
        Ok(view) => Err(format!("{name} of type {:?}, expected {dtype:?}", view.dtype())),
        Err(_) => Err(format!("no tensor {name}")),
    };
    let indices = tensor("indices", Dtype::I64)?;
    let indices = indices.as_chunks().0.iter().map(|&word| i64::from_le_bytes(word));
    let samples = indices
        .map(|index| u32::try_from(index).map_err(|_| format!("index {index}, expected 0 at least")))
        .collect::<Result<Vec<u32>, String>>()?;
    let weights: Vec<f32> =
        tensor("weights", Dtype::F32)?.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect();
    match samples.len() == weights.len() {
        true => Ok((samples, weights)),
        false => Err(format!("{} indices but {} weights", samples.len(), weights.len())),
    }
}

fn first_line(error: &impl ToString) -> String {
    error.to_string().lines().next().unwrap_or_default().into()
}

/// Dotted keys and plain words for the values.
fn flatten(prefix: &str, table: &toml::Table, into: &mut Vec<(String, String)>) {
    let (sections, values): (Vec<_>, Vec<_>) = table.iter().partition(|(_, value)| value.is_table());
    for (key, value) in values {
        into.push((format!("{prefix}{key}"), plain(value)));
    }
    for (key, value) in sections {
        if let toml::Value::Table(table) = value {
            flatten(&format!("{prefix}{key}."), table, into);
        }
    }
}

fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
