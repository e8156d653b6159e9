//! One selection of training samples, timed in parts: the attack on the candidates, their forward passes and gradients, and
//! the algorithm that chooses.
//!
//! Passes and attack are timed with a wait for the device on both sides; what is left of the whole is the algorithm's. Candidates are generated images under the weights that
//! training starts from; each has a last loss, as after an epoch of training.

use std::time::Instant;

use super::workload::{Amounts, Bench};
use crate::batch::Batch;
use crate::data::order::held_out;
use crate::engine::Phase;
use crate::philox::{Key, Purpose, unit};
use crate::progress::Watch;
use crate::prune::{self, Candidates, GradPass, GradPassSeconds};
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

/// Selects once. `watch` is called with how many of how many samples are done, and returns whether to go on.
pub fn select(bench: &mut Bench, choice: Choice, watch: Watch) -> prune::Result<Parts> {
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
    let (mut objective, mut seconds) = (recipe.new_objective(), GradPassSeconds::default());
    let start = key(Purpose::SelectionStart);
    let mut pass = GradPass::new(&bench.set, objective.as_mut(), &scratch, start, watch);
    pass.seconds = Some(&mut seconds);
    recipe.new_selection().select(engine, &candidates, &mut pass)?;
    engine.synchronize()?;
    let GradPassSeconds { attack, total } = seconds;
    Ok(Parts { attack, gradients: total - attack, algorithm: begin.elapsed().as_secs_f64() - total })
}

/// Selects once as [`select`] does, and counts its operations and bytes.
pub fn counted(bench: &mut Bench, choice: Choice, watch: Watch) -> prune::Result<(Parts, Amounts)> {
    bench.counted(|bench| select(bench, choice, watch)).map(|(parts, amounts, _)| (parts, amounts))
}
