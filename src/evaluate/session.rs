//! An evaluation as a session: weights under a list of protocols on the first images of a data set, kept in a state file, where
//! one is given, so that another process can resume it.

use std::io;

use super::adversarial::{AdversarialImages, to_safetensors};
use super::autoattack::{self, Listener, Progress};
use super::state::{Finished, Settings, State, StateError, device_name};
use super::{Outcome, Protocol, Subject, evaluate};
use crate::batch::Batch;
use crate::config::Fraction;
use crate::data::{DataSet, IMAGE_BYTES, Images};
use crate::engine::{self, DeviceInfo, Engine, WeightSet};
use crate::files::{LOCK_SUFFIX, Lock, Place};
use crate::model::WeightsFile;
use crate::ops::ImageSet;
use crate::progress::{Event, ProgressSink, watch};

/// What the name of the file of the adversarial images, next to the state, ends in.
pub const IMAGES_SUFFIX: &str = ".images";

/// The first images of one part of a data set.
#[derive(Clone, Debug)]
pub struct EvaluatedImages<'a> {
    /// Name of the data set.
    data: &'a str,
    /// `train` or `test`.
    split: &'static str,
    images: &'a Images,
    count: usize,
    /// [`Images::sha256`] of them.
    sha256: String,
}

impl<'a> EvaluatedImages<'a> {
    /// The first `count` test images, all of them where there are fewer.
    pub fn test(data: &'a DataSet, count: usize) -> Self {
        Self::new(data, "test", &data.test, count)
    }

    /// The first `count` training images, all of them where there are fewer.
    pub fn train(data: &'a DataSet, count: usize) -> Self {
        Self::new(data, "train", &data.train, count)
    }

    /// All of `images`, split `split` of the set `data`.
    pub fn all(data: &'a str, split: &'static str, images: &'a Images) -> Self {
        Self { data, split, images, count: images.len(), sha256: images.sha256(images.len()) }
    }

    fn new(data: &'a DataSet, split: &'static str, images: &'a Images, count: usize) -> Self {
        let count = count.min(images.len());
        Self { data: &data.name, split, images, count, sha256: images.sha256(count) }
    }

    pub fn count(&self) -> usize {
        self.count
    }
}

/// What is measured, on which images.
#[derive(Clone, Debug)]
pub struct EvaluationPlan<'a> {
    pub images: EvaluatedImages<'a>,
    pub protocols: Vec<Protocol>,
    /// Radius of the ball.
    pub epsilon: Fraction,
    /// Keys the random starts.
    pub seed: u64,
    /// Images a batch; the outcomes do not depend on it.
    pub batch: usize,
    /// The protocol, AutoAttack or a part of it, whose adversarial images are kept for [`Evaluation::dump`].
    pub dumped: Option<Protocol>,
}

impl EvaluationPlan<'_> {
    /// Everything on which an outcome depends, for weights of this digest on this device ([`device_name`]).
    pub fn settings(&self, weights_sha256: &str, device: &str) -> Settings {
        Settings {
            weights_sha256: weights_sha256.into(),
            data: self.images.data.into(),
            split: self.images.split.into(),
            samples: self.images.count,
            images_sha256: self.images.sha256.clone(),
            epsilon: self.epsilon.to_string(),
            seed: self.seed,
            protocols: self.protocols.iter().map(Protocol::to_string).collect(),
            device: device.into(),
            build: env!("CARGO_PKG_VERSION").into(),
            dump: self.dumped.is_some(),
        }
    }
}

/// Why an evaluation cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    #[error("{0}")]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("adversarial images: {0}")]
    Images(io::Error),
}

type Result<T, E = EvaluationError> = std::result::Result<T, E>;

/// An evaluation: what is finished, what runs, and where both are kept until the end.
pub struct Evaluation<'a> {
    plan: EvaluationPlan<'a>,
    engine: &'a mut Engine,
    set: ImageSet,
    samples: Vec<u32>,
    scratch: Batch,
    state: State,
    /// Where the state is kept.
    place: Option<Place>,
    /// Where adversarial images are asked for.
    adversarial: Option<AdversarialImages>,
    _lock: Option<Lock>,
}

impl<'a> Evaluation<'a> {
    /// Starts on `engine`, which is opened for the network of `weights` and for batches of `plan.batch` images. The state is kept at
    /// `place`, locked against other processes.
    ///
    /// # Errors
    /// [`StateError::Unfinished`] where a state is there already, [`StateError::InUse`] where another process has it; those of the
    /// engine and of files.
    pub fn start(
        engine: &'a mut Engine,
        weights: &WeightsFile,
        plan: EvaluationPlan<'a>,
        place: Option<Place>,
    ) -> Result<Self> {
        let lock = place.as_ref().map(locked).transpose()?;
        if let Some(place) = place.as_ref()
            && exists(place)?
        {
            return Err(StateError::Unfinished { path: place.path() }.into());
        }
        Self::open(engine, weights, plan, None, place, lock)
    }

    /// Goes on from the state at `place`, or starts where there is none.
    ///
    /// # Errors
    /// [`StateError::Settings`] for the state of another evaluation, [`StateError::Format`] for a damaged one; else as
    /// [`Evaluation::start`].
    pub fn resume(
        engine: &'a mut Engine,
        weights: &WeightsFile,
        plan: EvaluationPlan<'a>,
        place: Place,
    ) -> Result<Self> {
        let lock = locked(&place)?;
        let state = match exists(&place)? {
            true => Some(State::load(&place, &settings(engine, weights, &plan))?),
            false => None,
        };
        Self::open(engine, weights, plan, state, Some(place), Some(lock))
    }

    /// Goes on from the state at `place` where it is of this evaluation, and replaces any other: for states in a folder that the
    /// caller has claimed.
    ///
    /// # Errors
    /// Those of the engine and of files.
    pub fn resume_or_replace(
        engine: &'a mut Engine,
        weights: &WeightsFile,
        plan: EvaluationPlan<'a>,
        place: Place,
        progress: &dyn ProgressSink,
    ) -> Result<Self> {
        let state = State::load_if_same(&place, &settings(engine, weights, &plan), progress)?;
        Self::open(engine, weights, plan, state, Some(place), None)
    }

    fn open(
        engine: &'a mut Engine,
        weights: &WeightsFile,
        plan: EvaluationPlan<'a>,
        state: Option<State>,
        place: Option<Place>,
        lock: Option<Lock>,
    ) -> Result<Self> {
        let resumed = state.is_some();
        let state = state.unwrap_or_else(|| State::new(settings(engine, weights, &plan)));
        let adversarial = match &place {
            _ if plan.dumped.is_none() => None,
            None => Some(AdversarialImages::in_memory()),
            Some(place) => Some(kept_images(&place.with_suffix(IMAGES_SUFFIX), resumed, &state)?),
        };
        engine.load_weights(&weights.weights)?;
        let EvaluatedImages { images, count, .. } = plan.images;
        let set = ImageSet::upload(engine, &images.pixels[..count * IMAGE_BYTES], &images.labels[..count])?;
        let scratch = Batch::alloc(engine, plan.batch)?;
        let samples = (0..count as u32).collect();
        Ok(Self { plan, engine, set, samples, scratch, state, place, adversarial, _lock: lock })
    }

    /// Measures what is left, protocol by protocol; `false` where it was stopped, and what is known is saved. Reports a line for
    /// each protocol, finished before or now, and for each part of AutoAttack.
    ///
    /// # Errors
    /// Those of the engine and of files.
    pub fn run(&mut self, progress: &dyn ProgressSink) -> Result<bool> {
        for number in 0..self.plan.protocols.len() {
            if self.state.finished.len() <= number {
                let finished = self.finish(number, progress);
                progress.event(Event::End);
                if !finished? {
                    self.save()?;
                    return Ok(false);
                }
            }
            progress.event(Event::Result(&self.line(number)));
        }
        Ok(true)
    }

    /// Measures one protocol to its end; `false` where it was stopped.
    fn finish(&mut self, number: usize, progress: &dyn ProgressSink) -> Result<bool> {
        let protocol = &self.plan.protocols[number];
        let subject = Subject {
            set: &self.set,
            samples: &self.samples,
            weights: WeightSet::Live,
            epsilon: self.plan.epsilon.as_f32(),
            seed: self.plan.seed,
        };
        let measured = match protocol.parts() {
            [] => {
                let watch = &mut watch(progress, protocol.to_string());
                let outcome = evaluate(self.engine, subject, protocol, &self.scratch, watch)?;
                outcome.map(|outcome| (outcome, None))
            }
            parts => {
                let begun = self.state.running.take();
                let mut search = begun.unwrap_or_else(|| Progress::new(parts, self.samples.len()));
                let adversarial = self.adversarial.as_mut();
                let mut keeper = SearchKeeper {
                    protocol,
                    state: &mut self.state,
                    place: self.place.as_ref(),
                    adversarial: adversarial.filter(|_| self.plan.dumped.as_ref() == Some(protocol)),
                    progress,
                    stage: None,
                    error: None,
                };
                let ended = autoattack::run(self.engine, subject, &mut search, &self.scratch, &mut keeper)?;
                if let Some(error) = keeper.error {
                    return Err(error);
                }
                match ended {
                    true => Some((search.outcome(), Some(search))),
                    false => {
                        self.state.running = Some(search);
                        None
                    }
                }
            }
        };
        let Some((outcome, search)) = measured else { return Ok(false) };
        self.state.running = None;
        self.state.finished.push(Finished { protocol: protocol.to_string(), outcome, progress: search });
        self.save()?;
        Ok(true)
    }

    /// What was measured so far, in the order of the plan.
    pub fn finished(&self) -> &[Finished] {
        &self.state.finished
    }

    /// Each finished protocol and its outcome.
    pub fn outcomes(&self) -> impl Iterator<Item = (&Protocol, &Outcome)> {
        self.plan.protocols.iter().zip(self.finished()).map(|(protocol, done)| (protocol, &done.outcome))
    }

    pub fn plan(&self) -> &EvaluationPlan<'a> {
        &self.plan
    }

    pub fn settings(&self) -> &Settings {
        &self.state.settings
    }

    pub fn device(&self) -> &DeviceInfo {
        self.engine.device()
    }

    /// Saves what is known where [`Evaluation::resume`] looks for it; [`Evaluation::run`] has done so after every batch of a search
    /// and after every protocol.
    ///
    /// # Errors
    /// Those of files.
    pub fn save(&self) -> Result<()> {
        match &self.place {
            Some(place) => Ok(self.state.save(place)?),
            None => Ok(()),
        }
    }

    /// The adversarial images of `plan.dumped`, which has ended, as a safetensors file: `x_adv` (f32, N x 3 x 32 x 32: the clean
    /// image where none was found), `labels`, `clean_predictions`, `adversarial_predictions` (i64, N; -1 where a logit is not finite)
    /// and `robust` (bool, N). `None` where the plan has none or it has not ended.
    ///
    /// # Errors
    /// Those of files.
    pub fn dump(&mut self) -> Result<Option<Vec<u8>>> {
        let (Some(protocol), Some(adversarial)) = (&self.plan.dumped, &mut self.adversarial) else {
            return Ok(None);
        };
        let name = protocol.to_string();
        let finished = self.state.finished.iter().find(|finished| finished.protocol == name);
        match finished.and_then(|finished| finished.progress.as_ref()) {
            Some(search) => to_safetensors(search, adversarial, self.plan.images.images)
                .map(Some)
                .map_err(EvaluationError::Images),
            None => Ok(None),
        }
    }

    /// The end: nothing is left to resume.
    ///
    /// # Errors
    /// Those of files.
    pub fn close(self) -> Result<()> {
        if let Some(place) = &self.place {
            State::remove(place)?;
            if self.adversarial.is_some() {
                let place = place.with_suffix(IMAGES_SUFFIX);
                place.remove().map_err(at(&place))?;
            }
        }
        Ok(())
    }

    /// A finished protocol in words.
    fn line(&self, number: usize) -> String {
        let (protocol, outcome) = (&self.plan.protocols[number], &self.state.finished[number].outcome);
        let radius = match protocol {
            Protocol::Clean => String::new(),
            _ => format!(", eps {}", self.plan.epsilon),
        };
        let Settings { data, split, .. } = self.settings();
        let split = if split == "train" { "training" } else { "test" };
        format!(
            "{protocol}: {:.2} % ({} of {} {split} images of {data}){radius}, {:.1} s",
            100.0 * outcome.accuracy(),
            outcome.correct(),
            outcome.robust.len(),
            outcome.seconds
        )
    }
}

fn settings(engine: &Engine, weights: &WeightsFile, plan: &EvaluationPlan) -> Settings {
    let device = engine.device();
    plan.settings(&weights.sha256, &device_name(device.kind, &device.code))
}

fn at(place: &Place) -> impl FnOnce(io::Error) -> StateError {
    let path = place.path();
    |source| StateError::Io { path, source }
}

fn exists(place: &Place) -> Result<bool, StateError> {
    place.exists().map_err(at(place))
}

fn locked(place: &Place) -> Result<Lock, StateError> {
    place.lock().map_err(|source| match source.kind() {
        io::ErrorKind::ResourceBusy => StateError::InUse { path: place.path(), holder: source.to_string() },
        _ => at(&place.with_suffix(LOCK_SUFFIX))(source),
    })
}

/// The file of adversarial images: those that a resumed state names are whole, else an error.
fn kept_images(place: &Place, resumed: bool, state: &State) -> Result<AdversarialImages, StateError> {
    let mut images = AdversarialImages::in_file(place, resumed, &state.settings).map_err(at(place))?;
    for position in state.broken() {
        images.get(position).map_err(at(place))?;
    }
    Ok(images)
}

/// Reports a search of AutoAttack and saves it after every batch.
struct SearchKeeper<'a> {
    protocol: &'a Protocol,
    state: &'a mut State,
    place: Option<&'a Place>,
    adversarial: Option<&'a mut AdversarialImages>,
    progress: &'a dyn ProgressSink,
    /// The number of the stage that is reported.
    stage: Option<usize>,
    error: Option<EvaluationError>,
}

impl SearchKeeper<'_> {
    fn report(&mut self, search: &Progress) {
        let Some(stage) = search.stages.last() else { return };
        let (name, images) = (stage.part.map_or("clean", |part| part.name()), search.results.len());
        if self.stage.replace(search.stages.len()) != Some(search.stages.len()) {
            self.progress.event(Event::Begin { task: &format!("{} {name}", self.protocol), total: images });
        }
        self.progress.event(Event::Done(stage.next));
        if stage.finished {
            let share = 100.0 * stage.robust as f64 / images.max(1) as f64;
            self.progress.event(Event::Result(&format!(
                "{}: {} of {images} robust ({share:.2} %) after {name}, {:.1} s",
                self.protocol, stage.robust, stage.seconds
            )));
        }
    }

    fn save(&mut self, search: &Progress) -> Result<()> {
        if let Some(place) = self.place {
            if let Some(images) = &mut self.adversarial {
                images.sync().map_err(EvaluationError::Images)?;
            }
            self.state.running = Some(search.clone());
            self.state.save(place)?;
        }
        Ok(())
    }
}

impl Listener for SearchKeeper<'_> {
    fn found(&mut self, position: usize, image: &[f32]) {
        if let Some(images) = &mut self.adversarial
            && let Err(error) = images.put(position, image)
        {
            self.error = Some(EvaluationError::Images(error));
        }
    }

    fn batch(&mut self, search: &Progress) -> bool {
        self.report(search);
        if self.error.is_none() {
            self.error = self.save(search).err();
        }
        self.error.is_none() && !self.progress.stop()
    }
}
