//! The best and the last weights of a finished run on the test images, under protocols.
//!
//! Every outcome is kept in the run's folder, `judged/WEIGHTS-PROTOCOL.json`, as an evaluation's state
//! ([`crate::evaluate::state`]): one that is there for the same weights, images, radius and seed is not measured again, and
//! AutoAttack goes on where it was broken off. Best and last weights that are the same are measured once.

use std::path::PathBuf;

use crate::digest::sha256;
use crate::engine::Engine;
use crate::evaluate::state::{Finished, State, StateError};
use crate::evaluate::{EvaluatedImages, Evaluation, EvaluationError, EvaluationPlan, Protocol};
use crate::files::{Place, limit};
use crate::model::{WeightsError, WeightsFile};
use crate::progress::{Inner, ProgressSink};
use crate::recipe::Recipe;
use crate::train::result::TestAccuracy;
use crate::train::run_folder::{RunFolder, RunFolderError};

/// Why a run cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum RunEvaluationError {
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Folder(#[from] RunFolderError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("{}: {reason}", path.display())]
    Result { path: PathBuf, reason: String },
}

type Result<T> = std::result::Result<T, RunEvaluationError>;

/// A finished run, and how its weights are evaluated.
pub struct RunEvaluator<'a> {
    /// Claimed.
    pub folder: &'a RunFolder,
    pub recipe: &'a Recipe,
    pub protocols: &'a [Protocol],
    pub images: &'a EvaluatedImages<'a>,
    /// [`device_name`](crate::evaluate::state::device_name).
    pub device: String,
    pub progress: &'a dyn ProgressSink,
}

/// One set of weights of the run.
struct Candidate {
    label: &'static str,
    epoch: u32,
    path: PathBuf,
    bytes: Vec<u8>,
    sha256: String,
}

impl RunEvaluator<'_> {
    /// The accuracies, those of `best` first, where the folder holds them all; then they are the run's results from now on.
    pub fn known(&self) -> Result<Option<Vec<TestAccuracy>>> {
        self.accuracies(&mut |_, _| Ok(None))
    }

    /// Measures the accuracies that are missing, and writes all into the run's `result.json`; `None` where the user asked to stop.
    pub fn evaluate(&self, engine: &mut Engine) -> Result<Option<Vec<TestAccuracy>>> {
        let folder = self.folder.judged();
        folder.create().map_err(|source| StateError::Io { path: folder.path().into(), source })?;
        self.accuracies(&mut |candidate, protocol| self.measure(engine, candidate, protocol))
    }

    /// All accuracies, those that are missing by `measure`; `None` where it gives none.
    fn accuracies(
        &self,
        measure: &mut dyn FnMut(&Candidate, &Protocol) -> Result<Option<Finished>>,
    ) -> Result<Option<Vec<TestAccuracy>>> {
        let candidates = self.candidates()?;
        let mut rows = Vec::new();
        for candidate in &candidates {
            for protocol in self.protocols {
                let finished = match self.finished(candidate, &candidates, protocol)? {
                    Some(finished) => Some(finished),
                    None => measure(candidate, protocol)?,
                };
                let Some(finished) = finished else { return Ok(None) };
                rows.push(TestAccuracy::new(candidate.label, candidate.epoch, &finished));
            }
        }
        self.record(&rows)?;
        Ok(Some(rows))
    }

    /// The run's `result.json`, as a value.
    fn result(&self) -> Result<serde_json::Value> {
        let path = self.folder.path().join("result.json");
        let wrong = |reason: String| RunEvaluationError::Result { path: path.clone(), reason };
        let bytes = self.folder.read("result.json", limit::JSON).map_err(|error| wrong(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))
    }

    /// Best weights first, where the run validated; then the last ones.
    fn candidates(&self) -> Result<Vec<Candidate>> {
        let best = self.result()?["best"]["epoch"].as_u64();
        let last = self.recipe.epoch_schedule().epochs() as u32;
        let candidate = |(label, epoch): (&'static str, u32)| {
            let name = format!("{label}.safetensors");
            let path = self.folder.path().join(&name);
            let bytes = self.folder.read(&name, limit::TENSORS);
            let bytes = bytes.map_err(|source| StateError::Io { path: path.clone(), source })?;
            Ok(Candidate { label, epoch, sha256: sha256(&bytes), path, bytes })
        };
        let best = best.map(|epoch| ("best", epoch as u32));
        best.into_iter().chain([("last", last)]).map(candidate).collect()
    }

    fn plan(&self, protocol: &Protocol) -> EvaluationPlan<'_> {
        EvaluationPlan {
            images: self.images.clone(),
            protocols: vec![protocol.clone()],
            epsilon: self.recipe.attack.epsilon.clone(),
            seed: self.recipe.seed,
            batch: self.recipe.batch,
            dumped: None,
        }
    }

    fn place(&self, label: &str, protocol: &Protocol) -> Place {
        Place::new(self.folder.judged(), format!("{label}-{protocol}.json"))
    }

    /// The outcome, where it was measured: of these weights, under whichever name.
    fn finished(
        &self,
        candidate: &Candidate,
        candidates: &[Candidate],
        protocol: &Protocol,
    ) -> Result<Option<Finished>> {
        let settings = self.plan(protocol).settings(&candidate.sha256, &self.device);
        for other in candidates.iter().filter(|other| other.sha256 == candidate.sha256) {
            let state = State::load_if_same(&self.place(other.label, protocol), &settings, self.progress)?;
            if let Some(finished) = state.and_then(|state| state.finished.into_iter().next()) {
                return Ok(Some(finished));
            }
        }
        Ok(None)
    }

    /// Measures one outcome; `None` where the user asked to stop.
    fn measure(
        &self,
        engine: &mut Engine,
        candidate: &Candidate,
        protocol: &Protocol,
    ) -> Result<Option<Finished>> {
        let weights = WeightsFile::from_bytes(&candidate.path, &candidate.bytes)?;
        let (plan, place) = (self.plan(protocol), self.place(candidate.label, protocol));
        let mut evaluation = Evaluation::resume_or_replace(engine, &weights, plan, place, self.progress)?;
        let label = format!("{} weights, ", candidate.label);
        match evaluation.run(&Inner { outer: self.progress, label: &label })? {
            true => Ok(evaluation.finished().first().cloned()),
            false => Ok(None),
        }
    }

    /// Puts the accuracies where every reader of a run looks for them.
    fn record(&self, rows: &[TestAccuracy]) -> Result<()> {
        let mut result = self.result()?;
        result["test"] = serde_json::json!(rows);
        result["seconds_test"] = rows.iter().map(|row| row.seconds).sum::<f64>().into();
        Ok(self.folder.write_json("result.json", &result)?)
    }
}
