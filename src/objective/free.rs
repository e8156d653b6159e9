//! Free-AT (Shafahi et al., NeurIPS 2019): each minibatch is replayed m times, and the same backward pass updates the
//! weights and the perturbation; L = CE(z', y).
//!
//! As in the published code the perturbation belongs to the place in the batch: the next minibatch starts from it, and
//! checkpoints save it. It crosses to the host once a minibatch, so once in m optimizer steps.

use super::{Objective, passes};
use crate::attack::{AttackWork, ScheduledPgd};
use crate::batch::Batch;
use crate::engine::{Engine, Result, Tensor};
use crate::model::Weights;
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use crate::philox::Key;
use crate::recipe::Recipe;

/// The tensor of a checkpoint.
const PERTURBATION: &str = "free.perturbation";

/// Cross-entropy on images whose perturbation moves with each optimizer step.
#[derive(Clone, Debug)]
pub struct Free {
    /// Its step moves the perturbation, by eps in the paper.
    attack: ScheduledPgd,
    epoch: u32,
    replays: usize,
    smoothing: f32,
    /// Replays of the current minibatch that are done.
    done: usize,
    /// x' - x at each place of the batch, behind the last whole minibatch.
    perturbation: Vec<f32>,
}

impl Free {
    pub fn of_recipe(recipe: &Recipe) -> Self {
        Self {
            attack: ScheduledPgd::of_recipe(&recipe.attack),
            epoch: 0,
            replays: recipe.objective.replays,
            smoothing: recipe.objective.label_smoothing as f32,
            done: 0,
            perturbation: vec![0.0; recipe.batch * IMAGE_LEN],
        }
    }
}

impl Objective for Free {
    fn needs_fold(&self) -> bool {
        false
    }

    fn replays(&self) -> usize {
        self.replays
    }

    fn attack(&mut self, engine: &mut dyn Engine, key: Key, batch: &Batch) -> Result<AttackWork> {
        self.epoch = key.epoch;
        let samples = batch.len() as u64;
        if self.done > 0 {
            // The gradient of the replay before has moved the images.
            return Ok(AttackWork { steps: samples, ..AttackWork::default() });
        }
        let mut images = engine.read(&batch.images)?;
        for (pixel, moved) in images.iter_mut().zip(&self.perturbation) {
            *pixel = (*pixel + moved).clamp(0.0, 1.0);
        }
        engine.write(&batch.perturbed, &images)?;
        Ok(AttackWork { samples, steps: samples, ..AttackWork::default() })
    }

    fn gradient(
        &mut self,
        engine: &mut dyn Engine,
        batch: &Batch,
        weights: Option<&Tensor<f32>>,
    ) -> Result<()> {
        passes::cross_entropy_forward(engine, batch, self.smoothing, weights)?;
        let (images, perturbed, gradient) = (&batch.images, &batch.perturbed, &batch.logit_gradient);
        let step = self.attack.at(self.epoch).step;
        engine.parameter_gradient_and_attack_step(passes::FIRST, gradient, &step, images, perturbed)?;
        self.done = (self.done + 1) % self.replays;
        if self.done == 0 {
            let (clean, moved) = (engine.read(images)?, engine.read(perturbed)?);
            for (kept, (moved, clean)) in self.perturbation.iter_mut().zip(moved.iter().zip(&clean)) {
                *kept = moved - clean;
            }
        }
        Ok(())
    }

    fn loss(
        &self,
        engine: &mut dyn Engine,
        batch: &Batch,
        scale: f32,
        weights: Option<&Tensor<f32>>,
    ) -> Result<()> {
        passes::cross_entropy_loss(engine, batch, self.smoothing, scale, weights)
    }

    fn state(&self) -> Weights {
        let mut state = Weights::default();
        let places = self.perturbation.len() / IMAGE_LEN;
        state.insert(PERTURBATION, &[places, IMAGE_SIDE, IMAGE_SIDE, 3], self.perturbation.clone());
        state
    }

    fn restore(&mut self, state: &Weights) -> std::result::Result<(), String> {
        let places = self.perturbation.len() / IMAGE_LEN;
        let kept = state
            .get(PERTURBATION, &[places, IMAGE_SIDE, IMAGE_SIDE, 3])
            .map_err(|error| error.to_string())?;
        self.perturbation = kept.to_vec();
        self.done = 0;
        Ok(())
    }
}
