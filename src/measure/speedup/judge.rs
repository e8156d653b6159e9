//! The best and the last weights of a finished run on the test images, under protocols.
//!
//! Every verdict is kept in the run's folder, `judged/WEIGHTS-PROTOCOL.json`, as an evaluation's state
//! ([`crate::evaluate::state`]): one that is there for the same weights, images, radius and seed is not made again, and
//! AutoAttack goes on where it was broken off. Best and last weights that are the same are judged once. Called by
//! `secateur bench speedup`; checked by `tests/bench_speedup.rs`.

use std::path::PathBuf;

use crate::batch::Batch;
use crate::console::Console;
use crate::digest::sha256;
use crate::engine::{self, Engine, WeightSet};
use crate::evaluate::autoattack::{self, Listener, Progress};
use crate::evaluate::state::{Finished, Settings, State, StateError};
use crate::evaluate::{Outcome, Protocol, Subject, evaluate};
use crate::files::{Place, limit};
use crate::model::{Weights, WeightsError};
use crate::ops::ImageSet;
use crate::recipe::Recipe;
use crate::train::result::TestAccuracy;
use crate::train::run_folder::{RunFolder, RunFolderError};

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Folder(#[from] RunFolderError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("{}: {reason}", path.display())]
    Result { path: PathBuf, reason: String },
}

type Result<T> = std::result::Result<T, JudgeError>;

/// What the verdicts on a run are made of.
pub struct Court<'a> {
    pub folder: &'a RunFolder,
    pub recipe: &'a Recipe,
    pub protocols: &'a [Protocol],
    /// Name of the data set, and how many of its first test images are judged.
    pub data: &'a str,
    pub samples: usize,
    /// [`crate::data::Images::sha256`] of those.
    pub images_sha256: &'a str,
    /// [`device_name`](crate::evaluate::state::device_name).
    pub device: String,
    pub console: &'a Console,
    /// Asked between batches; `true` ends the work, and what is known is kept.
    pub stop: &'a dyn Fn() -> bool,
}

/// One set of weights of the run.
struct Candidate {
    label: &'static str,
    epoch: u32,
    file: PathBuf,
    bytes: Vec<u8>,
    sha256: String,
}

impl Court<'_> {
    /// The verdicts, those of `best` first, where the folder holds them all; then they are the run's results from now on.
    pub fn known(&self) -> Result<Option<Vec<TestAccuracy>>> {
        let mut rows = Vec::new();
        let candidates = self.candidates()?;
        for candidate in &candidates {
            for protocol in self.protocols {
                match self.finished(candidate, &candidates, protocol)? {
                    Some(finished) => rows.push(row(candidate, &finished)),
                    None => return Ok(None),
                }
            }
        }
        self.record(&rows)?;
        Ok(Some(rows))
    }

    /// Makes the verdicts that are missing, on the test images `set`, and writes all into the run's `result.json`; `None` where
    /// the user asked to stop.
    pub fn judge(
        &self,
        engine: &mut Engine,
        set: &ImageSet,
        scratch: &Batch,
    ) -> Result<Option<Vec<TestAccuracy>>> {
        let folder = self.folder.judged();
        folder.create().map_err(|source| StateError::Io { path: folder.path().into(), source })?;
        let candidates = self.candidates()?;
        let mut rows = Vec::new();
        for candidate in &candidates {
            let mut loaded = false;
            for protocol in self.protocols {
                let known = self.finished(candidate, &candidates, protocol)?;
                let finished = match known {
                    Some(finished) => finished,
                    None => {
                        if !std::mem::replace(&mut loaded, true) {
                            let (_, weights) = Weights::network_in_file(&candidate.file, &candidate.bytes)?;
                            engine.load_weights(&weights)?;
                        }
                        let Some(finished) = self.one(engine, set, scratch, candidate, protocol)? else {
                            self.console.clear();
                            return Ok(None);
                        };
                        finished
                    }
                };
                rows.push(row(candidate, &finished));
            }
        }
        self.console.clear();
        self.record(&rows)?;
        Ok(Some(rows))
    }

    /// The run's `result.json`, as a value.
    pub fn result(&self) -> Result<serde_json::Value> {
        let path = self.folder.path().join("result.json");
        let wrong = |reason: String| JudgeError::Result { path: path.clone(), reason };
        let bytes = self.folder.read("result.json", limit::JSON).map_err(|error| wrong(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))
    }

    /// Best weights first, where the run validated; then the last ones.
    fn candidates(&self) -> Result<Vec<Candidate>> {
        let best = self.result()?["best"]["epoch"].as_u64();
        let last = self.recipe.timeline().epochs() as u32;
        let candidate = |(label, epoch): (&'static str, u32)| {
            let name = format!("{label}.safetensors");
            let file = self.folder.path().join(&name);
            let bytes = self.folder.read(&name, limit::TENSORS);
            let bytes = bytes.map_err(|source| StateError::Io { path: file.clone(), source })?;
            Ok(Candidate { label, epoch, sha256: sha256(&bytes), file, bytes })
        };
        let best = best.map(|epoch| ("best", epoch as u32));
        best.into_iter().chain([("last", last)]).map(candidate).collect()
    }

    fn settings(&self, candidate: &Candidate, protocol: &Protocol) -> Settings {
        Settings {
            weights_sha256: candidate.sha256.clone(),
            data: self.data.into(),
            split: "test".into(),
            samples: self.samples,
            epsilon: self.recipe.attack.epsilon.to_string(),
            seed: self.recipe.seed,
            protocols: vec![protocol.to_string()],
            images_sha256: self.images_sha256.into(),
            device: self.device.clone(),
            build: env!("CARGO_PKG_VERSION").into(),
            dump: false,
        }
    }

    fn place(&self, label: &str, protocol: &Protocol) -> Place {
        Place::new(self.folder.judged(), format!("{label}-{protocol}.json"))
    }

    /// What lies at `place`, where it belongs to these settings; another evaluation makes way.
    fn load(&self, place: &Place, settings: &Settings) -> Result<Option<State>> {
        match State::load(place, settings) {
            Ok(state) => Ok(Some(state)),
            Err(StateError::Missing { .. } | StateError::Settings { .. }) => Ok(None),
            Err(error @ StateError::Format { .. }) => {
                self.console.note(format!("warning: made again: {error}"));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The verdict, where it was made: of these weights, under whichever name.
    fn finished(
        &self,
        candidate: &Candidate,
        candidates: &[Candidate],
        protocol: &Protocol,
    ) -> Result<Option<Finished>> {
        let settings = self.settings(candidate, protocol);
        for other in candidates.iter().filter(|other| other.sha256 == candidate.sha256) {
            let state = self.load(&self.place(other.label, protocol), &settings)?;
            if let Some(finished) = state.and_then(|state| state.finished.into_iter().next()) {
                return Ok(Some(finished));
            }
        }
        Ok(None)
    }

    /// Makes one verdict; the engine holds the weights.
    fn one(
        &self,
        engine: &mut Engine,
        set: &ImageSet,
        scratch: &Batch,
        candidate: &Candidate,
        protocol: &Protocol,
    ) -> Result<Option<Finished>> {
        let settings = self.settings(candidate, protocol);
        let place = self.place(candidate.label, protocol);
        let mut state = self.load(&place, &settings)?.unwrap_or_else(|| State::new(settings));
        let samples: Vec<u32> = (0..self.samples as u32).collect();
        let subject = Subject {
            set,
            samples: &samples,
            weights: WeightSet::Live,
            epsilon: self.recipe.attack.epsilon.as_f32(),
            seed: self.recipe.seed,
        };
        let label = format!("{} weights, {protocol}", candidate.label);
        let outcome: Option<(Outcome, Option<Progress>)> = match protocol.parts() {
            [] => {
                let watch = &mut self.console.watch(label, self.stop);
                let outcome = evaluate(engine, subject, protocol, scratch, watch)?;
                outcome.map(|outcome| (outcome, None))
            }
            parts => {
                let begun = state.running.take();
                let mut progress = begun.unwrap_or_else(|| Progress::new(parts, samples.len()));
                let mut keeper =
                    Keeper { court: self, label, place: &place, state: &mut state, stage: 0, error: None };
                let ended = autoattack::run(engine, subject, &mut progress, scratch, &mut keeper)?;
                if let Some(error) = keeper.error {
                    return Err(error.into());
                }
                ended.then(|| (progress.outcome(), Some(progress)))
            }
        };
        let Some((outcome, progress)) = outcome else { return Ok(None) };
        let finished = Finished { protocol: protocol.to_string(), outcome, progress };
        state.running = None;
        state.finished = vec![finished.clone()];
        state.save(&place)?;
        Ok(Some(finished))
    }

    /// Puts the verdicts where every reader of a run looks for them.
    fn record(&self, rows: &[TestAccuracy]) -> Result<()> {
        let mut result = self.result()?;
        result["test"] = serde_json::json!(rows);
        result["seconds_test"] = rows.iter().map(|row| row.seconds).sum::<f64>().into();
        Ok(self.folder.write_json("result.json", &result)?)
    }
}

fn row(candidate: &Candidate, finished: &Finished) -> TestAccuracy {
    let outcome = &finished.outcome;
    TestAccuracy {
        weights: candidate.label,
        epoch: candidate.epoch,
        protocol: finished.protocol.clone(),
        correct: outcome.correct(),
        total: outcome.withstood.len(),
        accuracy: outcome.accuracy(),
        seconds: outcome.seconds,
        non_finite: outcome.non_finite,
        zero_gradients: outcome.zero_gradients,
    }
}

/// Saves and shows a search behind every batch.
struct Keeper<'a> {
    court: &'a Court<'a>,
    label: String,
    place: &'a Place,
    state: &'a mut State,
    /// Of the bar; stages count from 1.
    stage: usize,
    error: Option<StateError>,
}

impl Listener for Keeper<'_> {
    fn batch(&mut self, progress: &Progress) -> bool {
        let Some(stage) = progress.stages.last() else { return true };
        if std::mem::replace(&mut self.stage, progress.stages.len()) != progress.stages.len() {
            let part = stage.part.map_or("clean", |part| part.name());
            self.court.console.bar(format!("{}: {part}", self.label), progress.verdicts.len());
        }
        self.court.console.at(stage.next);
        self.state.running = Some(progress.clone());
        self.error = self.state.save(self.place).err();
        self.error.is_none() && !(self.court.stop)()
    }
}
