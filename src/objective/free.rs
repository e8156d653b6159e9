//! Free-AT (Shafahi et al., NeurIPS 2019): each minibatch is replayed m times, and the same backward pass updates the
//! weights and the perturbation; L = CE(z', y).
//!
//! As in the published code the perturbation belongs to the place in the batch: the next minibatch starts from it, and
//! checkpoints save it. In the first replay the sum is not clipped to [0, 1], as the first gradient is taken there; the
//! step after it returns to [0, 1]. It crosses to the host once a minibatch, so once in m optimizer steps; there ranks exchange it, so
//! that each knows the perturbation of every place.
//!
//! With BulletTrain (`accelerate::Replays`) the place of an outlier sits the minibatch out: its perturbation is neither
//! added nor moved, and waits for the next minibatch.

use std::ops::Range;

use super::loss::{Loss, ONLY};
use super::{AttackKind, Objective, ObjectiveParts, ObjectiveRow};
use crate::accelerate::Replays;
use crate::attack::{AttackDefaults, AttackWork, ScheduledPgd, Start};
use crate::batch::Batch;
use crate::engine::{Engine, GradRequest, Result, Tensor};
use crate::model::Weights;
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use crate::philox::Key;

pub(super) const ROW: ObjectiveRow = ObjectiveRow {
    name: "free",
    about: "CE(z', y), minibatches replayed, x' moved by each step's own gradient",
    paper: "Shafahi et al., NeurIPS 2019",
    attack: AttackKind::Replays { default: 8 },
    defaults: AttackDefaults { step_size: "8/255", steps: 1, start: Start::None, ..AttackDefaults::PGD },
    new: |parts| Box::new(Free::new(parts)),
    ..ObjectiveRow::PGD
};

/// The tensor of a checkpoint.
const PERTURBATION: &str = "free.perturbation";

/// Cross-entropy on images whose perturbation moves with each optimizer step.
#[derive(Clone, Debug)]
pub struct Free {
    /// Its step moves the perturbation, by eps in the paper.
    attack: ScheduledPgd,
    epoch: u32,
    replays: usize,
    /// Which images move after which replay, where not all move after each.
    moving: Option<Replays>,
    loss: Loss,
    /// Replays of the current minibatch that are done.
    done: usize,
    /// x' - x at each place of the batch, after the last whole minibatch.
    perturbation: Vec<f32>,
}

impl Free {
    pub fn new(parts: ObjectiveParts) -> Self {
        Self {
            moving: parts.replays(),
            attack: parts.attack,
            epoch: 0,
            replays: parts.config.replays,
            loss: Loss::CrossEntropy { smoothing: parts.config.label_smoothing as f32 },
            done: 0,
            perturbation: vec![0.0; parts.batch * IMAGE_LEN],
        }
    }

    /// The pixels of each place that carries its perturbation, of a minibatch of `len` images.
    fn carrying(&self, len: usize) -> Vec<Range<usize>> {
        let sits_out = |place: &u32| self.moving.as_ref().is_some_and(|it| it.outliers().contains(place));
        let places = (0..len as u32).filter(|place| !sits_out(place)).map(|place| place as usize);
        places.map(|place| place * IMAGE_LEN..(place + 1) * IMAGE_LEN).collect()
    }

    /// Takes the perturbations of the other ranks' shares; `own` are the pixels of this rank's.
    fn exchange(&mut self, engine: &Engine, own: Range<usize>) -> Result<()> {
        let starts = engine.all_gather("first pixels", vec![own.start as u64])?;
        let all = engine.all_gather(PERTURBATION, self.perturbation[own].to_vec())?;
        for (start, pixels) in starts.concat().into_iter().zip(all) {
            self.perturbation[start as usize..][..pixels.len()].copy_from_slice(&pixels);
        }
        Ok(())
    }
}

impl Objective for Free {
    fn needs_fold(&self) -> bool {
        // For the clean forward that divides the minibatch.
        self.moving.is_some() && self.done == 0
    }

    fn replays(&self) -> usize {
        self.replays
    }

    fn attack(&mut self, engine: &mut Engine, key: Key, batch: &Batch) -> Result<AttackWork> {
        self.epoch = key.epoch;
        let mut work = AttackWork::default();
        if self.done == 0 {
            work = match &mut self.moving {
                Some(moving) => moving.divide(engine, batch)?,
                None => AttackWork { samples: batch.len() as u64, ..work },
            };
            let mut images = engine.read(&batch.images)?;
            let perturbation = &self.perturbation[batch.share.first * IMAGE_LEN..];
            for place in self.carrying(batch.len()) {
                for (pixel, moved) in images[place.clone()].iter_mut().zip(&perturbation[place]) {
                    *pixel += moved;
                }
            }
            for &place in self.moving.as_ref().map_or(&[][..], Replays::unmoved) {
                let pixels = place as usize * IMAGE_LEN..(place as usize + 1) * IMAGE_LEN;
                images[pixels].iter_mut().for_each(|pixel| *pixel = pixel.clamp(0.0, 1.0));
            }
            engine.write(&batch.perturbed, &images)?;
        }
        // Behind the first replay the gradient of the one before has moved the images.
        work.steps = match &self.moving {
            Some(moving) => moving.steps(self.done),
            None => batch.len() as u64,
        };
        Ok(work)
    }

    fn gradient(&mut self, engine: &mut Engine, batch: &Batch) -> Result<Option<Tensor<f32>>> {
        self.loss.forward(engine, batch)?;
        let (images, perturbed, gradient) = (&batch.images, &batch.perturbed, &batch.logit_gradient);
        let step = self.attack.at(self.epoch).step;
        let move_on = |engine: &mut Engine| {
            let request = GradRequest::step(step, images, perturbed).and_parameters();
            engine.backward(ONLY, gradient, request)
        };
        match &mut self.moving {
            Some(moving) => moving.step(engine, batch, self.done, move_on)?,
            None => move_on(engine)?,
        }
        engine.sum_gradients()?;
        self.done = (self.done + 1) % self.replays;
        if self.done == 0 {
            let (clean, moved) = (engine.read(images)?, engine.read(perturbed)?);
            let own = batch.share.first * IMAGE_LEN..(batch.share.first + batch.len()) * IMAGE_LEN;
            let places = self.carrying(batch.len());
            let perturbation = &mut self.perturbation[own.clone()];
            for place in places {
                let pixels = moved[place.clone()].iter().zip(&clean[place.clone()]);
                for (kept, (moved, clean)) in perturbation[place].iter_mut().zip(pixels) {
                    *kept = moved - clean;
                }
            }
            self.exchange(engine, own)?;
            if let Some(moving) = &mut self.moving {
                moving.learn(engine, batch)?;
            }
        }
        Ok(None)
    }

    fn loss(&self, engine: &mut Engine, batch: &Batch, scale: f32) -> Result<()> {
        self.loss.of_logits(engine, batch, scale)
    }

    fn state(&self) -> Weights {
        let mut state = self.moving.as_ref().map_or_else(Weights::default, Replays::state);
        let places = self.perturbation.len() / IMAGE_LEN;
        state.insert(PERTURBATION, &[places, IMAGE_SIDE, IMAGE_SIDE, 3], self.perturbation.clone());
        state
    }

    fn restore(&mut self, state: &Weights) -> std::result::Result<(), String> {
        let places = self.perturbation.len() / IMAGE_LEN;
        let kept = state
            .get(PERTURBATION, &[places, IMAGE_SIDE, IMAGE_SIDE, 3])
            .map_err(|error| error.to_string())?;
        if let Some(moving) = &mut self.moving {
            moving.restore(state)?;
        }
        self.perturbation = kept.to_vec();
        self.done = 0;
        Ok(())
    }
}
