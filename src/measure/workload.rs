//! The work that is measured: training steps, attacks and evaluations of a recipe, on generated images.
//!
//! The images are new to the network and the weights are those that training starts from; how long a step takes depends on
//! neither, but for methods that choose whom to attack by the losses. Called by `secateur bench` and `secateur profile`;
//! checked by `tests/bench.rs` and `tests/profile.rs`.

use std::time::Instant;

use crate::batch::Batch;
use crate::data::{DataError, DataSet, SetKind, Split};
use crate::engine::{
    self, DeviceChoice, Engine, ImageSet, Phase, Record, Recording, WeightSet, open, open_recorded,
};
use crate::evaluate::{Protocol, Subject, evaluate};
use crate::model::initialise;
use crate::objective;
use crate::philox::{Key, Purpose};
use crate::recipe::Recipe;
use crate::train::{self, Trainer};

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    #[error(transparent)]
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

/// An engine with a recipe's network and images for some steps.
pub struct Bench {
    pub engine: Box<dyn Engine>,
    /// Of the kernels, where the engine has some.
    recording: Option<Recording>,
    recipe: Recipe,
    set: ImageSet,
    split: Split,
    /// The same memory in every repetition, so that what an engine recorded of one is found by the next.
    batch: Batch,
}

/// Operations and bytes of some work; 0 where unknown.
pub type Amounts = [f64; 2];

impl Bench {
    /// Opens the device for a recipe, with images for `steps` steps. Where there is no GPU, `auto` is the CPU, or with `kernels`,
    /// which it has none of, the emulated device.
    pub fn open(device: DeviceChoice, kernels: bool, recipe: &Recipe, steps: usize) -> Result<Self> {
        let network = train::network(recipe);
        let (engine, recording) = match device {
            DeviceChoice::Cpu => (open(device, network, recipe.batch)?, None),
            DeviceChoice::Auto if !kernels => {
                match open_recorded(DeviceChoice::Cuda(0), network, recipe.batch) {
                    Err(engine::Error::Unavailable(_)) => {
                        (open(DeviceChoice::Cpu, network, recipe.batch)?, None)
                    }
                    opened => opened.map(|(engine, recording)| (engine, Some(recording)))?,
                }
            }
            _ => {
                let (engine, recording) = open_recorded(device, network, recipe.batch)?;
                (engine, Some(recording))
            }
        };
        let images = recipe.batch * steps;
        let data = DataSet::open(SetKind::Generated, None, Some(images), Some(1))?;
        let set = engine.upload_images(&data.train.pixels, &data.train.labels)?;
        let split = Split { train: (0..images as u32).collect(), validation: Vec::new() };
        let batch = Batch::alloc(engine.as_ref(), recipe.batch)?;
        let mut bench = Self { engine, recording, recipe: recipe.clone(), set, split, batch };
        bench.engine.load_weights(&initialise(network, recipe.seed))?;
        Ok(bench)
    }

    /// Steps that there are images for.
    pub fn steps(&self) -> usize {
        self.split.train.len() / self.recipe.batch
    }

    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Does the work `times` times (of steps, [`Bench::steps`] at most), and answers its seconds, the device's waited for.
    pub fn run(&mut self, work: &Work, times: usize) -> Result<f64> {
        let (recipe, engine) = (&self.recipe, self.engine.as_mut());
        engine.synchronize()?;
        let first = &self.split.train[..recipe.batch];
        match work {
            Work::Step => {
                let samples = self.split.train[..recipe.batch * times].to_vec();
                let split = Split { train: samples, validation: Vec::new() };
                // Without `begin_epoch` nothing is selected: every image that there is trains.
                let mut trainer = Trainer::new(engine, recipe, &self.set, &split)?;
                let begin = Instant::now();
                trainer.epoch(&mut |_| true)?;
                Ok(begin.elapsed().as_secs_f64())
            }
            Work::Attack => {
                let batch = &self.batch;
                engine.write(&batch.samples, first)?;
                engine.gather(&self.set, &batch.samples, None, &batch.images, &batch.labels)?;
                let mut objective = objective::of_recipe(recipe);
                let key = Key { seed: recipe.seed, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
                engine.synchronize()?;
                let begin = Instant::now();
                for _ in 0..times {
                    engine.phase(Phase::Attack);
                    engine.fold_batch_norm(WeightSet::Live)?;
                    objective.attack(engine, key, batch)?;
                }
                engine.synchronize()?;
                Ok(begin.elapsed().as_secs_f64())
            }
            Work::Evaluation(protocol) => {
                let subject = Subject {
                    set: &self.set,
                    samples: first,
                    weights: WeightSet::Live,
                    epsilon: recipe.attack.epsilon.as_f32(),
                    seed: recipe.seed,
                };
                let begin = Instant::now();
                for _ in 0..times {
                    evaluate(engine, subject, protocol, &self.batch, &mut |_, _| true)?;
                }
                engine.synchronize()?;
                Ok(begin.elapsed().as_secs_f64())
            }
        }
    }

    /// Does the work as [`Bench::run`] does, and keeps its launches; an empty record where the engine has no kernels.
    pub fn record(&mut self, work: &Work, times: usize) -> Result<Record> {
        if let Some(recording) = &mut self.recording {
            recording.start()?;
        }
        let done = self.run(work, times);
        let record = match &mut self.recording {
            Some(recording) => recording.stop(),
            None => Ok(Record::default()),
        };
        done?;
        Ok(record?)
    }

    /// Does the work once, which also warms the device up, and counts it.
    pub fn amounts(&mut self, work: &Work) -> Result<Amounts> {
        let before = self.engine.flops_so_far();
        let record = self.record(work, 1)?;
        let sum = |of: fn(&engine::Launch) -> u64| record.launches.iter().map(of).sum::<u64>() as f64;
        Ok(match (before, self.engine.flops_so_far()) {
            (Some(before), Some(after)) => [(after - before) as f64, 0.0],
            _ => [sum(|launch| launch.flops), sum(|launch| launch.bytes)],
        })
    }
}
