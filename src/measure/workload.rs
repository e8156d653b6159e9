//! The work that is measured: training steps, attacks and evaluations of a recipe, on generated images or on the recipe's own.
//!
//! The images are new to the network and the weights are those that training starts from; how long a step takes depends on
//! neither, but for methods that choose whom to attack by the losses.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::predict::predicted_seconds;
use super::probes::{self, Probe, flops_so_far};
use crate::batch::Batch;
use crate::data::{DataError, DataSet, SetKind, Split};
use crate::engine::{
    self, DeviceChoice, DeviceOptions, Engine, Mark, Phase, Record, Recording, WeightSet, open, open_dry,
    open_recorded_with,
};
use crate::evaluate::{Protocol, Subject, evaluate};
use crate::model::initialise;
use crate::ops::ImageSet;
use crate::philox::{Key, Purpose};
use crate::recipe::Recipe;
use crate::train::{self, Trainer};

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    #[error("{0}")]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Data(#[from] DataError),
}

type Result<T, E = WorkError> = std::result::Result<T, E>;

/// What is repeated.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// A training step: gather, attack, train pass, optimizer.
    Step,
    /// The recipe's attack of one batch.
    Attack,
    /// One batch under a protocol.
    Evaluation(Protocol),
}

/// What lies in the caches when a sample begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Nothing of use: all of them were overwritten.
    Cold,
    /// What the sample before left there.
    #[default]
    Warm,
}

/// An engine with a recipe's network and images for some steps.
pub struct Bench {
    pub engine: Engine,
    /// Of the kernels, where the engine has some.
    recording: Option<Recording>,
    /// Made when first used.
    flush: Option<Probe>,
    pub(super) recipe: Recipe,
    pub(super) set: ImageSet,
    images: SetKind,
    split: Split,
    /// The same memory in every repetition, so that what an engine recorded of one is found by the next.
    batch: Batch,
}

/// Operations and bytes of some work; 0 where unknown.
pub type Amounts = [f64; 2];

impl Bench {
    /// Opens the device for a recipe, with images for `steps` steps. Where there is no GPU, `auto` is the CPU, or with `kernels`,
    /// which it has none of, the emulated device. Where the network has more classes than the generated images, they count
    /// through its classes.
    pub fn open(device: DeviceChoice, kernels: bool, recipe: &Recipe, steps: usize) -> Result<Self> {
        Self::open_with(device, kernels, recipe, steps, DeviceOptions::from_environment()?)
    }

    /// [`Bench::open`] with these options of the device.
    pub fn open_with(
        device: DeviceChoice,
        kernels: bool,
        recipe: &Recipe,
        steps: usize,
        options: DeviceOptions,
    ) -> Result<Self> {
        let network = train::network(recipe);
        let plain = |device| open(device, network, recipe.batch).map(|engine| (engine, None));
        let recorded = |device| {
            let opened = open_recorded_with(device, network, recipe.batch, options);
            opened.map(|(engine, recording)| (engine, Some(recording)))
        };
        let (engine, recording) = match device {
            DeviceChoice::Cpu | DeviceChoice::CpuBf16 => plain(device)?,
            DeviceChoice::Auto if !kernels => match recorded(DeviceChoice::Cuda(0)) {
                Err(engine::Error::Unavailable(_)) => plain(device)?,
                opened => opened?,
            },
            _ => recorded(device)?,
        };
        Self::with(engine, recording, recipe, steps)
    }

    /// No device at all: [`Bench::record`] tells what a step would launch, and nothing else means anything.
    pub fn dry(recipe: &Recipe) -> Result<Self> {
        let (engine, recording) = open_dry(train::network(recipe), recipe.batch)?;
        Self::with(engine, Some(recording), recipe, 1)
    }

    fn with(engine: Engine, recording: Option<Recording>, recipe: &Recipe, steps: usize) -> Result<Self> {
        let images = recipe.batch * steps;
        let data = DataSet::open(SetKind::Generated, None, Some(images), Some(1))?;
        let classes = engine.network().classes;
        let labels = match classes == data.classes {
            true => data.train.labels,
            false => (0..images).map(|image| (image % classes) as u32).collect(),
        };
        let set = ImageSet::upload(&engine, &data.train.pixels, &labels)?;
        let split = Split { train: (0..images as u32).collect(), ..Split::default() };
        let batch = Batch::alloc(&engine, recipe.batch)?;
        let mut bench = Self {
            engine,
            recording,
            flush: None,
            recipe: recipe.clone(),
            set,
            images: SetKind::Generated,
            split,
            batch,
        };
        let weights = initialise(bench.engine.network(), recipe.seed);
        bench.engine.load_weights(&weights)?;
        Ok(bench)
    }

    /// The first images of the recipe's own set, from `folder`, in place of generated ones: for work that depends on what a
    /// network makes of its images, such as BulletTrain's.
    pub fn use_images(&mut self, folder: &Path) -> Result<()> {
        self.images = self.recipe.data.set;
        let data = DataSet::open(self.images, Some(folder), Some(self.split.train.len()), Some(1))?;
        self.set = ImageSet::upload(&self.engine, &data.train.pixels, &data.train.labels)?;
        Ok(())
    }

    /// Which images it works on.
    pub fn images(&self) -> SetKind {
        self.images
    }

    /// Steps that there are images for.
    pub fn steps(&self) -> usize {
        self.split.train.len() / self.recipe.batch
    }

    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The recipe's first batch: its images and labels, the rest uninitialised.
    pub fn first_batch(&mut self) -> Result<Batch> {
        let (engine, samples) = (&mut self.engine, &self.split.train[..self.recipe.batch]);
        Ok(Batch::alloc(engine, samples.len())?.gathered(engine, &self.set, samples, None)?)
    }

    /// [`Bench::run`], after a flush of every cache where `cache` is cold.
    pub fn sample(&mut self, work: &Work, times: usize, cache: Cache) -> Result<f64> {
        if cache == Cache::Cold {
            if self.flush.is_none() {
                self.flush = Some(probes::flush(&self.engine)?);
            }
            self.flush.as_mut().map_or(Ok(()), Probe::run)?;
        }
        self.run(work, times)
    }

    /// Does the work `times` times (of steps, [`Bench::steps`] at most), and returns its seconds, by the device's own clock
    /// where it has one.
    pub fn run(&mut self, work: &Work, times: usize) -> Result<f64> {
        let (recipe, engine) = (&self.recipe, &mut self.engine);
        let clock = Clock(self.recording.as_ref());
        engine.synchronize()?;
        let first = &self.split.train[..recipe.batch];
        match work {
            Work::Step => {
                let samples = self.split.train[..recipe.batch * times].to_vec();
                let split = Split { train: samples, ..Split::default() };
                // Without `begin_epoch` nothing is selected: every image that there is trains.
                let batch = self.batch.clone();
                let mut trainer = Trainer::in_memory_of(batch, engine, recipe, &self.set, &split)?;
                let begin = clock.mark()?;
                trainer.epoch(&mut |_| true)?;
                clock.since(begin)
            }
            Work::Attack => {
                let batch = &self.batch;
                batch.gathered(engine, &self.set, first, None)?;
                let mut objective = recipe.new_objective();
                let key = Key { seed: recipe.seed, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
                engine.synchronize()?;
                let begin = clock.mark()?;
                for _ in 0..times {
                    engine.phase(Phase::Attack);
                    engine.fold_batch_norm(WeightSet::Live)?;
                    objective.attack(engine, key, batch)?;
                }
                engine.synchronize()?;
                clock.since(begin)
            }
            Work::Evaluation(protocol) => {
                let subject = Subject {
                    set: &self.set,
                    samples: first,
                    weights: WeightSet::Live,
                    epsilon: recipe.attack.epsilon.as_f32(),
                    seed: recipe.seed,
                };
                let begin = clock.mark()?;
                for _ in 0..times {
                    evaluate(engine, subject, protocol, &self.batch, &mut |_, _| true)?;
                }
                engine.synchronize()?;
                clock.since(begin)
            }
        }
    }

    /// Does the work as [`Bench::run`] does, and keeps its launches; an empty record where the engine has no kernels.
    pub fn record(&mut self, work: &Work, times: usize) -> Result<Record> {
        self.recorded(false, |bench| bench.run(work, times)).map(|(_, record)| record)
    }

    /// [`Bench::record`], and keeps what [`Bench::replay`] needs.
    pub fn record_replayable(&mut self, work: &Work, times: usize) -> Result<Record> {
        self.recorded(true, |bench| bench.run(work, times)).map(|(_, record)| record)
    }

    /// Seconds of `times` launches back to back, of launch number `at` of the last replayable record.
    pub fn replay(&mut self, at: usize, times: usize, cache: Cache) -> Result<f64> {
        match &mut self.recording {
            Some(recording) => Ok(recording.replay(at, times, cache == Cache::Cold)?),
            None => Err(engine::Error::Unavailable("the CPU engine launches no kernels".into()).into()),
        }
    }

    /// Does the work once, which also warms the device up, and counts it; and the seconds that an H200 should take, where its launches
    /// have a model.
    pub fn amounts(&mut self, work: &Work) -> Result<(Amounts, Option<f64>)> {
        let (_, amounts, record) = self.counted(|bench| bench.run(work, 1))?;
        Ok((amounts, predicted_seconds(&self.engine, &record.launches)))
    }

    /// What `work` returns, and its launches.
    fn recorded<T, E: From<engine::Error>>(
        &mut self,
        replayable: bool,
        work: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<(T, Record), E> {
        if let Some(recording) = &mut self.recording {
            recording.start(replayable)?;
        }
        let done = work(self);
        let record = match &mut self.recording {
            Some(recording) => recording.stop(),
            None => Ok(Record::default()),
        };
        Ok((done?, record?))
    }

    /// What `work` returns, its operations and bytes, and its launches.
    pub(super) fn counted<T, E: From<engine::Error>>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<(T, Amounts, Record), E> {
        let before = flops_so_far(&self.engine);
        let (done, record) = self.recorded(false, work)?;
        let sum = |of: fn(&engine::Launch) -> u64| record.launches.iter().map(of).sum::<u64>() as f64;
        let amounts = match (before, flops_so_far(&self.engine)) {
            (Some(before), Some(after)) => [(after - before) as f64, 0.0],
            _ => [sum(|launch| launch.flops), sum(|launch| launch.bytes)],
        };
        Ok((done, amounts, record))
    }
}

/// The device's clock, or the system's where the engine has none.
struct Clock<'a>(Option<&'a Recording>);

impl Clock<'_> {
    fn mark(&self) -> Result<Mark> {
        Ok(self.0.map_or(Ok(Mark::now()), Recording::mark)?)
    }

    fn since(&self, begin: Mark) -> Result<f64> {
        let end = self.mark()?;
        Ok(match self.0 {
            Some(recording) => recording.seconds(&begin, &end)?,
            None => begin.clock_seconds(&end)?,
        })
    }
}
