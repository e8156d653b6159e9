//! One selection of training samples, timed in parts: the attack on the candidates, their forward passes and gradients, and
//! the algorithm that chooses.
//!
//! The survey lies before the algorithm in every method, so its end divides the time; inside it the objective's attack
//! is timed apart, with a wait for the device on both sides. Candidates are generated images under the weights that
//! training starts from; each has a last loss, as after an epoch of training.

use std::cell::Cell;
use std::time::Instant;

use super::workload::{Amounts, Bench};
use crate::attack::AttackWork;
use crate::batch::Batch;
use crate::data::order::held_out;
use crate::engine::{Engine, Phase, Result, Tensor, WeightSet};
use crate::model::Weights;
use crate::objective::Objective;
use crate::philox::{Key, Purpose, unit};
use crate::prune::{Candidates, PruneError, Survey};
use crate::recipe::Recipe;

/// Seconds of one selection.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parts {
    /// The training attack on each candidate (and held-out image).
    pub attack: f64,
    /// Gathering, forward passes and last-layer gradients; for EasyCore the input gradients.
    pub gradients: f64,
    pub algorithm: f64,
}

impl Parts {
    pub fn total(&self) -> f64 {
        self.attack + self.gradients + self.algorithm
    }
}

/// What is chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub candidates: usize,
    /// Images held out of training, by which Adv-GLISTER chooses: as large a share as in the recipe, one at least.
    pub held_out: usize,
    /// Samples to choose at most.
    pub budget: usize,
}

impl Choice {
    /// So many candidates of a recipe.
    pub fn new(recipe: &Recipe, candidates: usize) -> Self {
        let data = &recipe.data;
        let held_out = match recipe.selection.method.row().holds_out {
            true => {
                let held_out = held_out(data.validation, recipe.selection.held_out_share());
                (held_out * candidates).div_ceil(data.training_samples()).max(1)
            }
            false => 0,
        };
        Self { candidates, held_out, budget: recipe.selection.budget(candidates) }
    }

    /// Batches that [`Bench::open`] must have images for.
    pub fn batches(&self, batch: usize) -> usize {
        (self.candidates + self.held_out).div_ceil(batch)
    }
}

/// Selects once. `watch` hears how many of how many samples are surveyed, and answers whether to go on.
pub fn select(
    bench: &mut Bench,
    choice: Choice,
    watch: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Parts, PruneError> {
    let recipe = bench.recipe().clone();
    let engine = &mut bench.engine;
    let all: Vec<u32> = (0..(choice.candidates + choice.held_out) as u32).collect();
    let (samples, held_out) = all.split_at(choice.candidates);
    let labels = engine.read(&bench.set.labels)?;
    let key = |purpose| Key { seed: recipe.seed, purpose, epoch: 1, step: 0 };
    let losses = samples.iter().map(|&sample| unit(key(Purpose::Generation).block(sample, 0)[0]));
    let losses = engine.upload("last losses", &losses.collect::<Vec<f32>>())?;
    let candidates = Candidates {
        samples,
        labels: &labels[..choice.candidates],
        classes: engine.network().classes,
        held_out,
        budget: choice.budget,
        losses: Some(&losses),
        scores: None,
        key: key(Purpose::Selection),
    };
    let scratch = Batch::alloc(engine, recipe.batch)?;
    engine.synchronize()?;
    engine.phase(Phase::Select);

    let begin = Instant::now();
    let mut objective = Timed {
        objective: recipe.new_objective(),
        begin,
        attack: 0.0,
        survey: Cell::new(None),
        attacked: Cell::new(false),
    };
    let seen = Cell::new(None);
    let mut watch = |done, total| {
        seen.set(Some(begin.elapsed().as_secs_f64()));
        watch(done, total)
    };
    let mut survey = Survey {
        set: &bench.set,
        objective: &mut objective,
        weights: WeightSet::Live,
        augment: None,
        scratch: &scratch,
        key: key(Purpose::SelectionStart),
        watch: &mut watch,
    };
    recipe.new_selection().select(engine, &candidates, &mut survey)?;
    engine.synchronize()?;
    let total = begin.elapsed().as_secs_f64();
    // Input gradients are surveyed without an attack and without a loss of the objective; then the last call tells the end.
    let survey = objective.survey.get().or(seen.get()).unwrap_or(0.0);
    Ok(Parts { attack: objective.attack, gradients: survey - objective.attack, algorithm: total - survey })
}

/// Selects once as [`select`] does, and counts its operations and bytes.
pub fn counted(
    bench: &mut Bench,
    choice: Choice,
    watch: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<(Parts, Amounts), PruneError> {
    bench.counted(|bench| select(bench, choice, watch)).map(|(parts, amounts, _)| (parts, amounts))
}

/// An objective with a clock on its attack.
struct Timed {
    objective: Box<dyn Objective>,
    begin: Instant,
    attack: f64,
    /// When the last batch of the survey was done.
    survey: Cell<Option<f64>>,
    /// Whether the batch at hand was attacked: the loss behind that ends its survey; other losses are the algorithm's.
    attacked: Cell<bool>,
}

impl Objective for Timed {
    fn needs_fold(&self) -> bool {
        self.objective.needs_fold()
    }

    fn replays(&self) -> usize {
        self.objective.replays()
    }

    fn has_clean_pass(&self) -> bool {
        self.objective.has_clean_pass()
    }

    fn attack(&mut self, engine: &mut Engine, key: Key, batch: &Batch) -> Result<AttackWork> {
        engine.synchronize()?;
        let begin = Instant::now();
        let work = self.objective.attack(engine, key, batch)?;
        engine.synchronize()?;
        self.attack += begin.elapsed().as_secs_f64();
        self.attacked.set(true);
        Ok(work)
    }

    fn gradient(
        &mut self,
        engine: &mut Engine,
        batch: &Batch,
        weights: Option<&Tensor<f32>>,
    ) -> Result<Option<Tensor<f32>>> {
        self.objective.gradient(engine, batch, weights)
    }

    fn loss(
        &self,
        engine: &mut Engine,
        batch: &Batch,
        scale: f32,
        weights: Option<&Tensor<f32>>,
    ) -> Result<()> {
        self.objective.loss(engine, batch, scale, weights)?;
        if self.attacked.take() {
            engine.synchronize()?;
            self.survey.set(Some(self.begin.elapsed().as_secs_f64()));
        }
        Ok(())
    }

    fn state(&self) -> Weights {
        self.objective.state()
    }

    fn restore(&mut self, state: &Weights) -> std::result::Result<(), String> {
        self.objective.restore(state)
    }
}
