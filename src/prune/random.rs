//! The controls: all candidates, or so many at random, of each class in proportion if wanted.
//!
//! Checked by `tests/prune_simple.rs`. Called by the table of selections.

use super::{Candidates, PruneError, Selection, Subset, Survey};
use crate::data::order::shuffled;
use crate::engine::Engine;

/// No pruning.
#[derive(Clone, Copy, Debug)]
pub struct All;

/// A random subset with weight 1: drawn once or again and again, as the recipe's interval says.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    /// Whether each class keeps its share of the candidates (by largest remainder, the lower class among equals).
    pub class_balanced: bool,
}

impl Selection for All {
    fn select(
        &self,
        _: &mut dyn Engine,
        candidates: &Candidates,
        _: &mut Survey,
    ) -> Result<Subset, PruneError> {
        Ok(Subset::uniform(candidates.samples.to_vec()))
    }
}

impl Selection for Random {
    fn select(
        &self,
        _: &mut dyn Engine,
        candidates: &Candidates,
        _: &mut Survey,
    ) -> Result<Subset, PruneError> {
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
