//! The training loop: steps, epochs, and the state that a checkpoint saves.
//!
//! One step is the data flow of the design: gather and augment, fold BatchNorm, attack in micro-batches, train pass,
//! optimizer; an objective may ask for the last four several times on each minibatch. Losses and predictions stay on the
//! device until the end of the epoch. Which samples an epoch visits is decided at its start by [`Pruning`].
//!
//! Where the engine is a rank of a group, each step is its share of every minibatch, and what only the other ranks know is gathered at
//! the end of the epoch, or where it is interrupted: between two calls of the trainer all ranks have the same state.

use super::checkpoint::{Checkpoint, LastSelection, Progress, SamplesSoFar};
use super::metrics::Seconds;
use super::pruning::Pruning;
use super::schedule::{Horizon, Rates, average_decay, rates};
use super::scores::EpochScores;
use super::step_clock::{Part, StepClock};
use super::super_batch::SuperBatch;
use super::{EpochSchedule, Recipe};
use crate::attack::{AttackWork, BatchNorm};
use crate::batch::{Batch, Share};
use crate::clock::Stopwatch;
use crate::collective::share;
use crate::data::order::Split;
use crate::engine::{Engine, Error, Phase, Result, Sgd, StopFlag, Tensor, WeightSet, unless_stopped};
use crate::model::layers::IMAGE_LEN;
use crate::objective::Objective;
use crate::ops::{ImageSet, ScatterRows};
use crate::philox::{Key, Purpose};
use crate::progress::Watch;
use crate::prune::{self, PruneError, Subset};

/// A network in training.
pub struct Trainer<'a> {
    pub(super) engine: &'a mut Engine,
    recipe: &'a Recipe,
    objective: Box<dyn Objective>,
    pub(super) set: &'a ImageSet,
    pub(super) pruning: Pruning<'a>,
    pub(super) batch: Batch,
    /// Adversarial loss and prediction of each sample, in the order of the epoch: room for all, pruned or not.
    losses: Tensor<f32>,
    predictions: Tensor<u32>,
    /// The score of each, where selections rank by a mean that training gives.
    scores: Option<EpochScores>,
    /// Where more than one minibatch is attacked at a time.
    super_batch: Option<SuperBatch>,
    pub(super) progress: Progress,
}

/// What an epoch gave.
#[derive(Clone, Debug)]
pub struct EpochOutcome {
    /// Positions in the set, in the order they were trained on.
    pub order: Vec<u32>,
    /// Factors on the loss of each, in that order; absent where all are 1.
    pub weights: Option<Vec<f32>>,
    pub samples: SamplesSoFar,
    /// At the last step.
    pub learning_rate: f64,
}

/// The samples of an epoch on the device, in its order.
struct Visit {
    order: Tensor<u32>,
    /// Factors on their losses; absent where all are 1.
    weights: Option<Tensor<f32>>,
    /// The table of last losses and the row of each sample in it.
    table: Option<(Tensor<f32>, Tensor<u32>)>,
}

impl<'a> Trainer<'a> {
    /// Training from the engine's current weights, at the first step: on `split.train`, or what the recipe selects of it.
    pub fn new(
        engine: &'a mut Engine,
        recipe: &'a Recipe,
        set: &'a ImageSet,
        split: &'a Split,
    ) -> Result<Self> {
        let batch = Batch::alloc(engine, recipe.batch)?;
        Self::in_memory_of(batch, engine, recipe, set, split)
    }

    /// The same in the memory of a batch that is there: an engine finds what it recorded of work on it.
    pub fn in_memory_of(
        batch: Batch,
        engine: &'a mut Engine,
        recipe: &'a Recipe,
        set: &'a ImageSet,
        split: &'a Split,
    ) -> Result<Self> {
        let losses = engine.alloc("epoch losses", split.train.len())?;
        let predictions = engine.alloc("epoch predictions", split.train.len())?;
        let pruning = Pruning::new(engine, recipe, split)?;
        let score = recipe.selection.mean_score().filter(|_| recipe.selection.scored_by_training());
        let scores = score.map(|score| EpochScores::new(engine, recipe, score, split.train.len()));
        let ahead = recipe.accelerate.super_batch;
        let super_batch = (ahead > 1).then(|| SuperBatch::new(engine, ahead, recipe.batch));
        let progress = Progress { ranks: Some(engine.ranks()), ..Progress::default() };
        Ok(Self {
            engine,
            recipe,
            objective: recipe.new_objective(),
            set,
            pruning,
            batch,
            losses,
            predictions,
            scores: scores.transpose()?,
            super_batch: super_batch.transpose()?,
            progress,
        })
    }

    /// Whether [`Trainer::restore`] can use a checkpoint; says why not.
    pub fn accepts(&self, checkpoint: &Checkpoint) -> std::result::Result<(), String> {
        let network = self.engine.network();
        checkpoint.weights.check(&network).map_err(|error| error.to_string())?;
        // The average begins with the first step; a run may be interrupted before, in a selection.
        let Progress { epoch, step, .. } = checkpoint.progress;
        let averaged = self.recipe.optimizer.average_decay.is_some() && (epoch, step) != (0, 0);
        if averaged != checkpoint.optimizer.average.is_some() {
            return Err("it keeps a moving average and the recipe does not, or the other way round".into());
        }
        self.recipe.new_objective().restore(&checkpoint.objective)?;
        self.pruning.accepts(&checkpoint.selection)?;
        let subset = checkpoint.selection.samples.len();
        let count = if subset > 0 { subset } else { self.pruning.candidates().len() };
        let (epochs, steps) = (self.epoch_schedule().epochs(), count.div_ceil(self.recipe.batch));
        if epoch as usize > epochs || step > steps {
            return Err(format!(
                "epoch {epoch}, step {step}; the recipe has {epochs} epochs, this one of {steps} steps"
            ));
        }
        let done = count.min(step * self.recipe.batch);
        let scored = if self.scores.is_some() { done } else { 0 };
        let (losses, scores) = (checkpoint.samples.losses.len(), checkpoint.samples.scores.len());
        for (what, actual, expected) in [("losses", losses, done), ("scores", scores, scored)] {
            if actual != expected {
                return Err(format!("{what} of {actual} samples, expected {expected} after step {step}"));
            }
        }
        let waiting = self.super_batch.as_ref().map_or(0, |ahead| ahead.waiting(step, count));
        let actual = checkpoint.samples.adversarial.len();
        if actual != waiting * IMAGE_LEN {
            return Err(format!(
                "{actual} pixels of images attacked ahead, expected {} after step {step}; it is of a run with another \
                 accelerate.super_batch",
                waiting * IMAGE_LEN
            ));
        }
        Ok(())
    }

    /// Goes to where a checkpoint was taken; [`Trainer::accepts`] must have accepted it.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.engine.load_weights(&checkpoint.weights)?;
        self.engine.load_optimizer(&checkpoint.optimizer)?;
        self.objective.restore(&checkpoint.objective).map_err(Error::Invalid)?;
        self.pruning.restore(self.engine, &checkpoint.selection)?;
        self.restore_samples(&checkpoint.samples)?;
        if let Some(ahead) = &self.super_batch {
            ahead.restore(self.engine, checkpoint.progress.step, &checkpoint.samples.adversarial)?;
        }
        self.progress = Progress { ranks: self.progress.ranks, ..checkpoint.progress.clone() };
        let whole_epochs = u64::from(self.progress.epoch) * self.pruning.candidates().len() as u64;
        // Checkpoints from before there was data pruning counted nothing: each epoch had all samples.
        self.progress.run_images.get_or_insert(whole_epochs);
        // What an older checkpoint has trained on, in whole batches.
        let images = self.progress.run_images.unwrap_or(0) + self.images_after(self.progress.step) as u64;
        let steps = images.div_ceil(self.recipe.batch as u64) * self.objective.replays() as u64;
        self.progress.optimizer_steps.get_or_insert(steps);
        Ok(())
    }

    /// Takes what the samples of the unfinished epoch have given.
    fn restore_samples(&self, samples: &SamplesSoFar) -> Result<()> {
        let SamplesSoFar { losses, predictions, scores, .. } = samples;
        if let Some(kept) = &self.scores {
            kept.restore(self.engine, scores)?;
        }
        self.engine.write(&self.losses.slice(0..losses.len()), losses)?;
        self.engine.write(&self.predictions.slice(0..predictions.len()), predictions)
    }

    /// All that [`Trainer::restore`] needs.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(Checkpoint {
            weights: self.engine.weights(WeightSet::Live)?,
            optimizer: self.engine.optimizer()?,
            objective: self.objective.state(),
            progress: self.progress.clone(),
            samples: self.samples_so_far()?,
            selection: self.pruning.state(self.engine)?,
        })
    }

    /// What is trained when.
    pub fn epoch_schedule(&self) -> &EpochSchedule {
        &self.pruning.epoch_schedule
    }

    /// The subset that trains now; `None` where all samples do.
    pub fn subset(&self) -> Option<&Subset> {
        self.pruning.subset()
    }

    /// Steps of the current epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.pruning.samples().len().div_ceil(self.recipe.batch)
    }

    /// Images trained on after `steps` steps of the current epoch.
    fn images_after(&self, steps: usize) -> usize {
        self.pruning.samples().len().min(steps * self.recipe.batch)
    }

    /// Learning rate and momentum of an optimizer step: replay `replay` of minibatch `step` of the current epoch.
    fn rates(&self, step: usize, replay: usize) -> Rates {
        let replays = self.objective.replays();
        let steps_per_epoch = self.steps_per_epoch() * replays;
        let at = self.epoch_schedule().position(self.progress.epoch);
        let horizon =
            Horizon { epochs: self.recipe.epochs, steps: at.trained * steps_per_epoch, covered: at.covered };
        let step = at.before * steps_per_epoch + step * replays + replay;
        rates(&self.recipe.schedule, &self.recipe.optimizer, horizon, step)
    }

    /// Chooses the samples of the current epoch where that is due, and returns whether it did. Needed before
    /// [`Trainer::epoch`]; a second call for the same epoch does nothing. `watch` is told how many of how many samples are
    /// done, and returns whether to go on.
    ///
    /// # Errors
    /// [`PruneError::Stopped`] where it does not, on any rank: the state is that before the call.
    pub fn begin_epoch(&mut self, watch: Watch) -> prune::Result<bool> {
        let Some(group) = self.engine.group().cloned() else { return self.select(watch) };
        // No rank stops within a pass, and every rank asks as often as the others: all stop at the same question.
        let stop = self.engine.stop_on(None);
        let mut failed = None;
        let done = self.select(&mut |done, total| {
            let requested = !watch(done, total) || stop.as_ref().is_some_and(StopFlag::requested);
            let any = group.any(requested);
            any.map_err(|error| failed = Some(error)).is_ok_and(|any| !any)
        });
        self.engine.stop_on(stop);
        match failed {
            Some(error) => Err(PruneError::Engine(error.into())),
            None => done,
        }
    }

    fn select(&mut self, watch: Watch) -> prune::Result<bool> {
        let stopwatch = Stopwatch::start();
        let epoch = self.progress.epoch;
        let last = self.progress.selection.map(|last| last.epoch);
        self.engine.phase(Phase::Select);
        let objective = self.objective.as_mut();
        let done =
            self.pruning.begin_epoch(self.engine, objective, self.set, &self.batch, epoch, last, watch);
        if matches!(done, Ok(Some(_)) | Err(PruneError::Stopped)) {
            self.engine.synchronize()?;
            let seconds = Seconds { select: stopwatch.wall(), cpu: stopwatch.cpu(), ..Seconds::default() };
            self.progress.spend(seconds);
        }
        let diagnosis = done?;
        if diagnosis.is_some() {
            self.progress.selection = Some(LastSelection { epoch, diagnosis });
        }
        Ok(diagnosis.is_some())
    }

    fn samples_so_far(&self) -> Result<SamplesSoFar> {
        let step = self.progress.step;
        let (done, all) = (self.images_after(step), self.pruning.samples().len());
        let scores = self.scores.as_ref().map(|scores| scores.read(self.engine, done)).transpose()?;
        let ahead = self.super_batch.as_ref().map(|ahead| ahead.read(self.engine, step, all)).transpose()?;
        Ok(SamplesSoFar {
            losses: self.engine.read(&self.losses.slice(0..done))?,
            predictions: self.engine.read(&self.predictions.slice(0..done))?,
            scores: scores.unwrap_or_default(),
            adversarial: ahead.unwrap_or_default(),
        })
    }

    /// Gathers what only the ranks know that trained on a sample, and keeps the last losses of all.
    fn gather(&mut self, visit: &Visit) -> Result<()> {
        if self.engine.group().is_some() {
            let own = self.samples_so_far()?;
            let samples = SamplesSoFar {
                losses: self.of_all_ranks("losses", own.losses)?,
                predictions: self.of_all_ranks("predictions", own.predictions)?,
                scores: self.of_all_ranks("scores", own.scores)?,
                adversarial: Vec::new(),
            };
            self.restore_samples(&samples)?;
        }
        let work = self.engine.all_gather("attack work", vec![self.progress.epoch_attacks])?;
        self.progress.epoch_attacks = AttackWork::default();
        work.concat().into_iter().for_each(|theirs| self.progress.epoch_attacks += theirs);
        let done = self.images_after(self.progress.step);
        match &visit.table {
            Some((table, rows)) if done > 0 => {
                let (losses, rows) = (self.losses.slice(0..done), rows.slice(0..done));
                self.engine.run(&ScatterRows::new(&losses, &rows, table))
            }
            _ => Ok(()),
        }
    }

    /// Values of the samples done in the current epoch, each from a rank that trained on it.
    fn of_all_ranks<T: bytemuck::Pod>(&self, what: &'static str, own: Vec<T>) -> Result<Vec<T>> {
        let mut values = own.clone();
        let all = self.engine.all_gather(what, own)?;
        for (rank, theirs) in all.iter().enumerate() {
            for step in 0..self.progress.step {
                let minibatch = self.images_after(step)..self.images_after(step + 1);
                let range = share(minibatch, rank, all.len());
                // None where there are no scores.
                if let Some(theirs) = theirs.get(range.clone()) {
                    values[range].copy_from_slice(theirs);
                }
            }
        }
        Ok(values)
    }

    /// Runs the rest of the current epoch. `go_on` is called after each finished step and returns `false` to stop there, on any rank;
    /// a stop of the engine ([`Engine::stop_on`]) may come during an attack. Either way the result is `None`, and the state is that
    /// between two steps.
    pub fn epoch(&mut self, go_on: &mut dyn FnMut(usize) -> bool) -> Result<Option<EpochOutcome>> {
        let order = self.pruning.order(self.progress.epoch);
        let weights = self.pruning.weights(&order);
        let upload = |weights: &Vec<f32>| self.engine.upload("epoch weights", weights);
        let table = self.pruning.table(&order);
        let upload_table = |(losses, rows): (Tensor<f32>, Vec<u32>)| -> Result<_> {
            Ok((losses, self.engine.upload("places of the epoch's samples", &rows)?))
        };
        let visit = Visit {
            order: self.engine.upload("epoch order", &order)?,
            weights: weights.as_ref().map(upload).transpose()?,
            table: table.map(upload_table).transpose()?,
        };
        self.objective.begin_epoch(self.epoch_schedule().schedule_epoch(self.progress.epoch));
        let steps = self.steps_per_epoch();
        let mut clock = StepClock::new(steps, self.recipe.accelerate.super_batch);
        let stopwatch = Stopwatch::start();
        let mut finished = true;
        let attacks_before = std::mem::take(&mut self.progress.epoch_attacks);
        while self.progress.step < steps {
            finished = unless_stopped(self.step(&visit, &mut clock))?.is_some();
            if finished {
                self.progress.step += 1;
                let stop = !go_on(self.progress.step);
                finished = !self.engine.on_any_rank(stop)?;
            }
            if !finished {
                break;
            }
        }
        self.engine.phase(Phase::Other);
        self.gather(&visit)?;
        self.progress.epoch_attacks += attacks_before;
        self.engine.synchronize()?;
        let seconds = clock.divide(stopwatch.wall(), self.engine)?;
        self.progress.spend(Seconds { cpu: stopwatch.cpu(), ..seconds });
        if !finished {
            return Ok(None);
        }
        let last_replay = self.objective.replays() - 1;
        let learning_rate = self.rates(steps - 1, last_replay).learning_rate;
        Ok(Some(EpochOutcome { order, weights, samples: self.samples_so_far()?, learning_rate }))
    }

    /// Goes to the next epoch, after what [`Trainer::epoch`] gave and whatever was measured of it.
    pub fn end_epoch(&mut self, outcome: &EpochOutcome) {
        let state = &mut self.progress;
        *state.run_images.get_or_insert(0) += outcome.order.len() as u64;
        state.epoch += 1;
        state.step = 0;
        state.epoch_attacks = AttackWork::default();
        state.epoch_seconds = Seconds::default();
        self.pruning.learn(&outcome.order, &outcome.samples.scores);
    }

    /// One minibatch: one training step, or as many as the objective replays it. A stop is heard while nothing has changed that
    /// a checkpoint keeps: in the attack of a step without replays, on folded weights; among ranks only between two steps.
    fn step(&mut self, visit: &Visit, clock: &mut StepClock) -> Result<()> {
        let repeatable = self.objective.replays() == 1
            && self.recipe.attack.batch_norm == BatchNorm::Eval
            && self.engine.group().is_none();
        let held = if repeatable { None } else { self.engine.stop_on(None) };
        self.whole_step(visit, clock)?;
        if held.is_some() {
            self.engine.stop_on(held);
        }
        Ok(())
    }

    fn whole_step(&mut self, visit: &Visit, clock: &mut StepClock) -> Result<()> {
        let step = self.progress.step;
        let minibatch = self.images_after(step)..self.images_after(step + 1);
        let range = self.engine.share(minibatch.clone());
        let mut batch = self.batch.rows(0..range.len()).keeping(
            visit.order.slice(range.clone()),
            self.losses.slice(range.clone()),
            self.predictions.slice(range.clone()),
        );
        batch.weights = visit.weights.as_ref().map(|weights| weights.slice(range.clone()));
        batch.share =
            Share { first: range.start - minibatch.start, images: self.engine.shared_items(minibatch.len()) };

        self.engine.phase(Phase::Step);
        clock.begin(step, self.engine)?;
        self.engine.phase(Phase::Gather);
        self.gather_images(&batch)?;
        clock.ended(Part::Train, self.engine)?;

        for replay in 0..self.objective.replays() {
            self.engine.phase(Phase::Attack);
            self.attack(visit, &batch)?;
            clock.ended(Part::Attack, self.engine)?;

            self.engine.phase(Phase::Train);
            let displacement = self.objective.gradient(self.engine, &batch)?;
            if let Some(scores) = &self.scores {
                scores.measure(self.engine, &batch, self.objective.has_clean_pass(), range.clone())?;
            }
            self.engine.average_statistics()?;
            let rates = self.rates(step, replay);
            let optimizer = &self.recipe.optimizer;
            let done = self.progress.optimizer_steps.get_or_insert(0);
            self.engine.phase(Phase::Optimizer);
            self.engine.step(&Sgd {
                learning_rate: rates.learning_rate as f32,
                momentum: rates.momentum as f32,
                average_decay: average_decay(optimizer, *done).map(|decay| decay as f32),
                displacement: displacement.as_ref(),
                ..optimizer.sgd()
            })?;
            *done += 1;
            clock.ended(Part::Train, self.engine)?;
        }
        Ok(())
    }

    /// The images of a batch as the current epoch crops and flips them, and their labels.
    fn gather_images(&mut self, batch: &Batch) -> Result<()> {
        let (seed, epoch) = (self.recipe.seed, self.progress.epoch);
        let augment = self.recipe.augmentation(seed, epoch);
        self.engine.run(&batch.gather(self.set, augment))
    }

    /// Makes the adversarial images of a minibatch: by an attack now, or by that on the super-batch it belongs to.
    fn attack(&mut self, visit: &Visit, minibatch: &Batch) -> Result<()> {
        let step = self.progress.step;
        let Some(ahead) = &self.super_batch else { return self.attack_now(minibatch) };
        if ahead.begins(step) {
            let range = self.images_after(step)..self.images_after(step + ahead.steps);
            let all = ahead.of(visit.order.slice(range));
            let range = self.engine.share(0..all.len());
            let mut own = all.rows(range.clone());
            own.share = Share { first: range.start, images: self.engine.shared_items(all.len()) };
            self.engine.phase(Phase::Gather);
            self.gather_images(&own)?;
            self.engine.phase(Phase::Attack);
            self.attack_now(&own)?;
            // Shares of its minibatches are others than those of the whole.
            self.engine.gather_rows(&all.perturbed, IMAGE_LEN)?;
        }
        if let Some(ahead) = &self.super_batch {
            ahead.hand_over(self.engine, step, minibatch)?;
        }
        Ok(())
    }

    fn attack_now(&mut self, batch: &Batch) -> Result<()> {
        if self.objective.needs_fold() {
            self.engine.fold_batch_norm(WeightSet::Live)?;
        }
        let (seed, epoch) = (self.recipe.seed, self.progress.epoch);
        let key = Key { seed, purpose: Purpose::AttackStart, epoch, step: 0 };
        self.progress.epoch_attacks += self.objective.attack(self.engine, key, batch)?;
        Ok(())
    }
}
