//! Data pruning in the training loop: when a subset is chosen, what it is chosen from, and what a checkpoint keeps of it.
//!
//! The candidates are the training split; the last adversarial loss of each stays on the device, in a table that every
//! step scatters into. Mean scores are kept here, and learn from each finished epoch. Extra images are no candidates: every batch
//! takes its share of them, whatever was chosen.

use std::ops::Range;

use super::checkpoint::SelectionState;
use super::{EpochSchedule, Recipe, Stage};
use crate::batch::Batch;
use crate::data::order::{Split, epoch_order, with_extra};
use crate::engine::{self, Engine, Tensor, WeightSet};
use crate::objective::Objective;
use crate::ops::ImageSet;
use crate::philox::{Key, Purpose};
use crate::progress::Watch;
use crate::prune::{
    self, Candidates, Diagnosis, GradPass, MeanScores, Ranking, SelectionWeights, Subset, TopK,
};

/// Which samples train now.
pub(super) struct Pruning<'a> {
    recipe: &'a Recipe,
    pub epoch_schedule: EpochSchedule,
    split: &'a Split,
    /// `None` trains on all.
    subset: Option<Subset>,
    /// The last adversarial loss of each training sample, in the order of the split; infinite at first. Only where the
    /// recipe selects.
    losses: Option<Tensor<f32>>,
    /// The mean score of each training sample, in the order of the split. Only where the recipe ranks by it.
    scores: Option<MeanScores>,
}

impl<'a> Pruning<'a> {
    /// The pruning of a recipe, at the start of a run.
    pub fn new(engine: &Engine, recipe: &'a Recipe, split: &'a Split) -> engine::Result<Self> {
        let selects = recipe.selection.method.selects();
        let unknown = vec![f32::INFINITY; split.train.len()];
        let losses = selects.then(|| engine.upload("last losses", &unknown)).transpose()?;
        let scores = recipe.selection.mean_score().map(|_| MeanScores::new(split.train.len()));
        Ok(Self { recipe, epoch_schedule: recipe.epoch_schedule(), split, subset: None, losses, scores })
    }

    /// Every training sample, pruned or not.
    pub fn candidates(&self) -> &'a [u32] {
        &self.split.train
    }

    /// The samples that train now, ascending.
    pub fn samples(&self) -> &[u32] {
        self.subset.as_ref().map_or(&self.split.train, |subset| &subset.samples)
    }

    /// What was chosen last, while it trains.
    pub fn subset(&self) -> Option<&Subset> {
        self.subset.as_ref()
    }

    /// The samples of an epoch, batch by batch.
    pub fn order(&self, epoch: u32) -> Vec<u32> {
        let Recipe { seed, batch, ref data, .. } = *self.recipe;
        let order = epoch_order(seed, epoch, self.samples());
        with_extra(order, self.split.extra.clone(), data.extra_share, batch, seed, epoch)
    }

    /// The weights of the samples of an epoch, in its order: 1 for extra images. `None` where all are 1.
    pub fn weights(&self, order: &[u32]) -> Option<Vec<f32>> {
        let subset =
            self.subset.as_ref().filter(|subset| subset.weights.iter().any(|&weight| weight != 1.0))?;
        let weight = |place: Option<usize>| place.map_or(1.0, |place| subset.weights[place]);
        Some(places(&subset.samples, &self.split.extra, order).map(weight).collect())
    }

    /// The table of last losses and the row of each sample of an epoch in it, in the epoch's order; one that no table has for extra
    /// images.
    pub fn table(&self, order: &[u32]) -> Option<(Tensor<f32>, Vec<u32>)> {
        let losses = self.losses.as_ref()?;
        let row = |place: Option<usize>| place.map_or(u32::MAX, |place| place as u32);
        Some((losses.clone(), places(&self.split.train, &self.split.extra, order).map(row).collect()))
    }

    /// Sees to it that the right samples train in an epoch; returns the figures of those that were chosen anew. `selected` is
    /// the epoch of the last selection: one that was made before an interruption is not made again. `watch` is told how many
    /// of how many samples are done, and returns whether to go on.
    #[expect(clippy::too_many_arguments, reason = "the parts of a trainer, borrowed apart")]
    pub fn begin_epoch(
        &mut self,
        engine: &mut Engine,
        objective: &mut dyn Objective,
        set: &ImageSet,
        scratch: &Batch,
        epoch: u32,
        selected: Option<u32>,
        watch: Watch,
    ) -> prune::Result<Option<Diagnosis>> {
        let stage = self.epoch_schedule.stage(epoch);
        if stage == Stage::Whole {
            self.subset = None;
        }
        if stage != (Stage::Subset { select: true }) || selected == Some(epoch) {
            return Ok(None);
        }
        let labels = engine.read(&set.labels)?;
        let labels: Vec<u32> = self.split.train.iter().map(|&sample| labels[sample as usize]).collect();
        let key = |purpose| Key { seed: self.recipe.seed, purpose, epoch, step: 0 };
        let candidates = Candidates {
            samples: &self.split.train,
            labels: &labels,
            classes: engine.network().classes,
            held_out: &self.split.held_out,
            budget: self.recipe.selection.budget(self.split.train.len()),
            // Before the first epoch there is nothing to rank by.
            losses: self.losses.as_ref().filter(|_| epoch > 0),
            scores: None,
            key: key(Purpose::Selection),
        };
        let weights = match self.recipe.selection.weights {
            // Before the first step there is no average yet.
            SelectionWeights::Average if epoch > 0 => WeightSet::Average,
            _ => WeightSet::Live,
        };
        let start = key(Purpose::SelectionStart);
        let mut pass = GradPass { weights, ..GradPass::new(set, objective, scratch, start, watch) };
        let mut scores = self.scores.clone();
        if let (Some(scores), Some(score)) = (&mut scores, self.recipe.selection.mean_score())
            && !(scores.complete() && self.recipe.selection.scored_by_training())
        {
            let measured = Ranking { score, top_k: TopK::PLAIN }.scores(engine, &candidates, &mut pass)?;
            let measured = engine.read(&measured)?;
            measured.into_iter().enumerate().for_each(|(place, score)| scores.add(place, score));
        }
        let means = scores.as_ref().map(|scores| scores.means.as_slice());
        let candidates = Candidates { scores: means, ..candidates };
        let subset = prune::choose(engine, self.recipe, &candidates, &mut pass)?;
        let validation = &self.split.validation;
        let diagnosis =
            Diagnosis::of_recipe(engine, self.recipe, &candidates, validation, &mut pass, &subset)?;
        self.scores = scores;
        self.subset = Some(subset);
        Ok(Some(diagnosis))
    }

    /// Adds the scores of a finished epoch, in its order, to the means.
    pub fn learn(&mut self, order: &[u32], epoch_scores: &[f32]) {
        if let Some(scores) = &mut self.scores {
            for (place, &score) in places(&self.split.train, &self.split.extra, order).zip(epoch_scores) {
                if let Some(place) = place {
                    scores.add(place, score);
                }
            }
        }
    }

    /// What a checkpoint keeps.
    pub fn state(&self, engine: &Engine) -> engine::Result<SelectionState> {
        let subset = self.subset.clone().unwrap_or_default();
        let losses = self.losses.as_ref().map(|losses| engine.read(losses)).transpose()?;
        Ok(SelectionState {
            samples: subset.samples,
            weights: subset.weights,
            losses: losses.unwrap_or_default(),
            scores: self.scores.clone().unwrap_or_default(),
        })
    }

    /// Whether [`Pruning::restore`] can use a state; says why not.
    pub fn accepts(&self, state: &SelectionState) -> Result<(), String> {
        let expected = self.losses.as_ref().map_or(0, Tensor::len);
        if state.losses.len() != expected {
            let actual = state.losses.len();
            return Err(format!(
                "last losses of {actual} samples, expected {expected}; it is of a run that selects otherwise"
            ));
        }
        let expected = self.scores.as_ref().map_or(0, |scores| scores.means.len());
        if state.scores.means.len() != expected {
            let actual = state.scores.means.len();
            return Err(format!(
                "mean scores of {actual} samples, expected {expected}; it is of a run that ranks otherwise"
            ));
        }
        if let Some(sample) =
            state.samples.iter().find(|sample| self.split.train.binary_search(sample).is_err())
        {
            return Err(format!(
                "its subset holds image {sample}, which is not a training image of this run"
            ));
        }
        Ok(())
    }

    /// Takes back what [`Pruning::state`] gave.
    pub fn restore(&mut self, engine: &Engine, state: &SelectionState) -> engine::Result<()> {
        if let Some(losses) = &self.losses {
            engine.write(losses, &state.losses)?;
        }
        let SelectionState { samples, weights, scores, .. } = state.clone();
        self.scores = self.scores.is_some().then_some(scores);
        self.subset = (!samples.is_empty()).then(|| Subset { samples, weights, ..Subset::default() });
        Ok(())
    }
}

/// The place of each of `order` among ascending `samples`, which hold all of it but extra images; none for these.
fn places<'a>(
    samples: &'a [u32],
    extra: &'a Range<u32>,
    order: &'a [u32],
) -> impl Iterator<Item = Option<usize>> + 'a {
    let place = move |sample: &u32| samples.binary_search(sample).expect("a sample of the split");
    order.iter().map(move |sample| (!extra.contains(sample)).then(|| place(sample)))
}
