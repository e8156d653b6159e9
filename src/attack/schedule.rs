//! PGD for every image of a batch, with steps that may change over training.
//!
//! Called by the objectives that attack. Checked by `tests/methods.rs`.

use super::{Adversary, Ascent, AttackWork, Pgd};
use crate::batch::Batch;
use crate::engine::{Engine, Result};
use crate::philox::Key;
use crate::recipe::Recipe;

/// The attack of each epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduledPgd {
    first: Pgd,
    /// Trained epoch, counted from 0, and the attack from its start on; ascending.
    later: Vec<(u32, Pgd)>,
}

impl ScheduledPgd {
    /// The attack and the phases of a recipe. Its phases count epochs of the schedule; here they begin with the first
    /// trained epoch that has come as far.
    pub fn of_recipe(recipe: &Recipe) -> Self {
        let first = Pgd::of_recipe(&recipe.attack);
        let timeline = recipe.timeline();
        let later = recipe.attack.phases.iter().map(|phase| {
            let mut pgd = Pgd { steps: phase.steps, ..first };
            pgd.step.step_size = phase.step_size.as_f32();
            (timeline.first_at(phase.from_epoch) as u32, pgd)
        });
        Self { first, later: later.collect() }
    }

    /// The attack in a trained epoch, counted from 0.
    pub fn at(&self, epoch: u32) -> Pgd {
        self.later.iter().rev().find(|(from, _)| *from <= epoch).map_or(self.first, |(_, pgd)| *pgd)
    }

    /// The same attacks, changed by `change`.
    pub fn map(self, change: impl Fn(Pgd) -> Pgd) -> Self {
        let later = self.later.into_iter().map(|(from, pgd)| (from, change(pgd))).collect();
        Self { first: change(self.first), later }
    }
}

impl Adversary for ScheduledPgd {
    fn needs_fold(&self) -> bool {
        // Without steps it never asks the network.
        let steps = self.first.steps > 0 || self.later.iter().any(|(_, pgd)| pgd.steps > 0);
        steps && self.first.pass.is_eval()
    }

    fn perturb(
        &mut self,
        engine: &mut Engine,
        ascent: &mut dyn Ascent,
        key: Key,
        batch: &Batch,
    ) -> Result<AttackWork> {
        let pgd = self.at(key.epoch);
        pgd.perturb(engine, ascent, key, batch)?;
        let samples = batch.len() as u64;
        Ok(AttackWork { samples, steps: samples * pgd.steps as u64, ..AttackWork::default() })
    }
}
