//! A selection as a session: the training samples that a recipe would train on next, under given weights.

use std::time::Instant;

use super::{Candidates, Diagnosis, GradPass, Result, Subset, choose};
use crate::batch::Batch;
use crate::data::{DataSet, Split};
use crate::engine::Engine;
use crate::model::Weights;
use crate::objective::Objective;
use crate::ops::ImageSet;
use crate::philox::{Key, Purpose};
use crate::progress::{Event, ProgressSink, watch};
use crate::recipe::Recipe;

/// A selection on a device. It is made in one go, so there is nothing to resume.
pub struct SelectionRun<'a> {
    engine: &'a mut Engine,
    recipe: &'a Recipe,
    split: Split,
    /// Of `split.train`, in that order.
    labels: Vec<u32>,
    set: ImageSet,
    scratch: Batch,
    objective: Box<dyn Objective>,
    seed: u64,
}

/// What was chosen.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub subset: Subset,
    pub diagnosis: Diagnosis,
    /// How many samples there were to choose from.
    pub candidates: usize,
    /// Of the choice, without its diagnosis.
    pub seconds: f64,
}

impl Chosen {
    /// The bytes of the file that keeps it: see [`Subset::to_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        self.subset.to_bytes(&self.diagnosis)
    }
}

impl<'a> SelectionRun<'a> {
    /// Starts a selection by the recipe's method among its training images `data`. `engine` is opened for the network of `weights`
    /// and for batches of the recipe's size. `seed` keys the draws and the attack; the split is that of the recipe's seed.
    ///
    /// # Errors
    /// Those of the split and of the engine.
    pub fn start(
        engine: &'a mut Engine,
        weights: &Weights,
        recipe: &'a Recipe,
        data: &DataSet,
        seed: u64,
    ) -> Result<Self> {
        let split = recipe.split(data)?;
        engine.load_weights(weights)?;
        let set = ImageSet::upload(engine, &data.train.pixels, &data.train.labels)?;
        let scratch = Batch::alloc(engine, recipe.batch)?;
        let labels = split.train.iter().map(|&sample| data.train.labels[sample as usize]).collect();
        let objective = recipe.new_objective();
        Ok(Self { engine, recipe, split, labels, set, scratch, objective, seed })
    }

    /// Attacks the candidates where the method looks at them, and chooses.
    ///
    /// # Errors
    /// [`PruneError::Stopped`](super::PruneError) where `progress` stops it: nothing is kept.
    /// [`PruneError::Invalid`](super::PruneError) where nothing can be chosen.
    pub fn run(&mut self, progress: &dyn ProgressSink) -> Result<Chosen> {
        let Self { engine, recipe, split, labels, set, scratch, objective, seed } = self;
        let engine = &mut **engine;
        let candidates = Candidates {
            samples: &split.train,
            labels,
            classes: engine.network().classes,
            held_out: &split.held_out,
            budget: recipe.selection.budget(split.train.len()),
            losses: None,
            scores: None,
            key: Key { seed: *seed, purpose: Purpose::Selection, epoch: 0, step: 0 },
        };
        let mut watch = watch(progress, TASK.into());
        let start = attack_start(*seed);
        let pass = &mut GradPass::new(set, objective.as_mut(), scratch, start, &mut watch);
        let begin = Instant::now();
        let subset = choose(engine, recipe, &candidates, pass)?;
        engine.synchronize()?;
        let seconds = begin.elapsed().as_secs_f64();
        let diagnosis = Diagnosis::of_recipe(engine, recipe, &candidates, &split.validation, pass, &subset)?;
        progress.event(Event::End);
        Ok(Chosen { subset, diagnosis, candidates: split.train.len(), seconds })
    }

    /// The factors of the last-layer gradients of all candidates, as the bytes of a file ([`super::LastLayerView::to_bytes`]):
    /// attacks them once more.
    ///
    /// # Errors
    /// [`PruneError::Stopped`](super::PruneError); those of the engine.
    pub fn factors(&mut self, progress: &dyn ProgressSink) -> Result<Vec<u8>> {
        let Self { engine, split, set, scratch, objective, seed, .. } = self;
        let engine = &mut **engine;
        let mut watch = watch(progress, TASK.into());
        let start = attack_start(*seed);
        let mut pass = GradPass::new(set, objective.as_mut(), scratch, start, &mut watch);
        let view = pass.last_layer(engine, &split.train)?;
        progress.event(Event::End);
        Ok(view.to_bytes(engine, &split.train)?)
    }
}

/// What is reported while the candidates are attacked.
const TASK: &str = "candidates";

/// Keys the attack on the candidates.
fn attack_start(seed: u64) -> Key {
    Key { seed, purpose: Purpose::SelectionStart, epoch: 0, step: 0 }
}
