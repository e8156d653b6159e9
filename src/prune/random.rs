//! The controls: all candidates, or so many at random, of each class in proportion if wanted; and a share of chance in
//! another choice.
//!
//! Checked by `tests/prune_simple.rs`. Called by the table of selections.

use super::{Candidates, PruneError, Selection, Subset, Survey};
use crate::data::order::shuffled;
use crate::engine::Engine;
use crate::philox::Key;
use crate::recipe;

/// The step of the key that a share of chance draws with; other draws of a selection have smaller ones.
const SHARE_STEP: u32 = 1 << 20;

/// No pruning.
#[derive(Clone, Copy, Debug)]
pub struct All;

/// A random subset with weight 1; each draw for itself.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    /// Whether each class keeps its share of the candidates (by largest remainder, the lower class among equals).
    pub class_balanced: bool,
}

impl Selection for All {
    fn select(&self, _: &mut Engine, candidates: &Candidates, _: &mut Survey) -> Result<Subset, PruneError> {
        Ok(Subset::uniform(candidates.samples.to_vec()))
    }
}

impl Selection for Random {
    fn select(&self, _: &mut Engine, candidates: &Candidates, _: &mut Survey) -> Result<Subset, PruneError> {
        let mut order = shuffled(candidates.key, candidates.samples);
        if self.class_balanced {
            let mut left = candidates.class_budgets();
            let classes: std::collections::HashMap<u32, u32> =
                candidates.samples.iter().copied().zip(candidates.labels.iter().copied()).collect();
            order.retain(|sample| {
                let left = &mut left[classes[sample] as usize];
                let take = *left > 0;
                *left -= usize::from(take);
                take
            });
        }
        order.truncate(candidates.budget);
        Ok(Subset::uniform(order))
    }
}

/// Random subsets without replacement (RS2, Okanovic et al., ICLR 2024): each is the next stretch of one permutation, round and
/// round, so that every candidate comes once in every n / k selections. Weight 1.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// The epoch of the first selection, counted from 0.
    pub first: u32,
    /// Epochs from one selection to the next.
    pub every: u32,
}

impl Selection for Walk {
    fn select(&self, _: &mut Engine, candidates: &Candidates, _: &mut Survey) -> Result<Subset, PruneError> {
        let order = shuffled(Key { epoch: self.first, ..candidates.key }, candidates.samples);
        let budget = candidates.budget.min(order.len());
        let before = (candidates.key.epoch.saturating_sub(self.first) / self.every.max(1)) as usize;
        let start = before * budget % order.len().max(1);
        Ok(Subset::uniform(order.iter().cycle().skip(start).take(budget).copied().collect()))
    }
}

/// Another choice of a part of the budget, and for the rest of it a random draw from what that leaves over, with weight 1: the
/// mean weight of the choice. With the order the other way round the choice would match what chance has left.
pub struct PartlyRandom {
    pub recipe: recipe::Selection,
    pub choice: Box<dyn Selection>,
}

impl Selection for PartlyRandom {
    fn select(
        &self,
        engine: &mut Engine,
        candidates: &Candidates,
        survey: &mut Survey,
    ) -> Result<Subset, PruneError> {
        let budget = candidates.budget.min(candidates.samples.len());
        let random = self.recipe.random_part(budget);
        let chosen =
            self.choice.select(engine, &Candidates { budget: budget - random, ..*candidates }, survey)?;
        let left: Vec<u32> = candidates
            .samples
            .iter()
            .copied()
            .filter(|sample| chosen.samples.binary_search(sample).is_err())
            .collect();
        let mut drawn = shuffled(Key { step: SHARE_STEP, ..candidates.key }, &left);
        drawn.truncate(random);
        Ok(chosen.with(&drawn))
    }
}
