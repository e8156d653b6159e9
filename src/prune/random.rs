//! The controls: all candidates, or N at random, of each class in proportion where asked for; and a share of chance in
//! another choice.

use super::{Candidates, Coverage, GradPass, Result, Selection, SelectionConfig, SelectionRow, Subset};
use crate::config::Refusal;
use crate::data::order::{by_quota, shuffled};
use crate::engine::Engine;
use crate::names::named;
use crate::philox::Key;

pub(super) const FULL: SelectionRow =
    SelectionRow { name: "full", title: "full", about: "all of them", ..SelectionRow::ALL };

pub(super) const SHORT: SelectionRow = SelectionRow {
    name: "short",
    title: "short",
    about: "all of them, for a fraction of the epochs under the same learning-rate shape: what pruning must beat",
    coverage: Coverage::FewerEpochs,
    ..SelectionRow::ALL
};

pub(super) const RANDOM: SelectionRow = SelectionRow {
    name: "random",
    title: "random",
    about: "a random subset, drawn once",
    coverage: Coverage::Fraction,
    check: |config| match config.every {
        0 => Ok(()),
        every => Err(Refusal::new("every", every, "0: random draws once; \"random-online\" draws again")),
    },
    new: |_, _| Box::new(Random { class_balanced: false }),
    ..SelectionRow::ALL
};

pub(super) const RANDOM_ONLINE: SelectionRow = SelectionRow {
    name: "random-online",
    title: "RS2",
    about: "a random subset, drawn again and again",
    paper: "Okanovic et al., ICLR 2024",
    coverage: Coverage::Fraction,
    every: 1,
    check: |config| match config.every {
        0 => Err(Refusal::new("every", 0, "1 at least: random-online draws again; \"random\" draws once")),
        _ => Ok(()),
    },
    new: |config, setting| match config.sampling {
        Sampling::Permutation => {
            Box::new(RandomOnline { first: setting.first_selection, every: config.every as u32 })
        }
        Sampling::Independent => Box::new(Random { class_balanced: false }),
    },
    ..SelectionRow::ALL
};

pub(super) const CLASS_BALANCED: SelectionRow = SelectionRow {
    name: "class-balanced",
    title: "class-balanced",
    about: "a random subset, drawn once, of each class in proportion",
    coverage: Coverage::Fraction,
    new: |_, _| Box::new(Random { class_balanced: true }),
    ..SelectionRow::ALL
};

named! {
    /// How random subsets follow one another.
    pub enum Sampling {
        /// The next stretch of one permutation, round and round: every sample once in every 1 / fraction draws (RS2 without
        /// replacement).
        Permutation = "permutation",
        /// Each draw for itself.
        Independent = "independent",
    }
}

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
    fn select(&self, _: &mut Engine, candidates: &Candidates, _: &mut GradPass) -> Result<Subset> {
        Ok(Subset::uniform(candidates.samples.to_vec()))
    }
}

impl Selection for Random {
    fn select(&self, _: &mut Engine, candidates: &Candidates, _: &mut GradPass) -> Result<Subset> {
        let mut order = shuffled(candidates.key, candidates.samples);
        if self.class_balanced {
            let classes: std::collections::HashMap<u32, u32> =
                candidates.samples.iter().copied().zip(candidates.labels.iter().copied()).collect();
            order = by_quota(order, candidates.class_budgets(), |sample| classes[&sample]);
        }
        order.truncate(candidates.budget);
        Ok(Subset::uniform(order))
    }
}

/// Random subsets without replacement (RS2, Okanovic et al., ICLR 2024): each is the next stretch of one permutation, round and
/// round, so that every candidate comes once in every n / k selections. Weight 1.
#[derive(Clone, Copy, Debug)]
pub struct RandomOnline {
    /// The epoch of the first selection, counted from 0.
    pub first: u32,
    /// Epochs from one selection to the next.
    pub every: u32,
}

impl Selection for RandomOnline {
    fn select(&self, _: &mut Engine, candidates: &Candidates, _: &mut GradPass) -> Result<Subset> {
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
    pub config: SelectionConfig,
    pub choice: Box<dyn Selection>,
}

impl Selection for PartlyRandom {
    fn select(&self, engine: &mut Engine, candidates: &Candidates, pass: &mut GradPass) -> Result<Subset> {
        let budget = candidates.budget.min(candidates.samples.len());
        let random = self.config.random_part(budget);
        let chosen =
            self.choice.select(engine, &Candidates { budget: budget - random, ..*candidates }, pass)?;
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
