//! PGD for every image of a batch, with steps that may change over training.

use super::{Adversary, AttackConfig, AttackWork, Pgd};
use crate::batch::Batch;
use crate::engine::{Engine, Result};
use crate::ops::AscentLoss;
use crate::philox::Key;

/// The attack of each epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduledPgd {
    first: Pgd,
    /// Trained epoch, counted from 0, and the attack from its start on; ascending.
    later: Vec<(u32, Pgd)>,
}

impl ScheduledPgd {
    /// The attack and its phases. A phase begins with the first trained epoch that has come as far in the schedule:
    /// `first_at` maps epochs of the schedule to trained ones.
    pub fn from_config(attack: &AttackConfig, first_at: impl Fn(usize) -> usize) -> Self {
        let first = Pgd::from_config(attack);
        let later = attack.phases.iter().map(|phase| {
            let mut pgd = Pgd { steps: phase.steps, ..first };
            pgd.step.step_size = phase.step_size.as_f32();
            (first_at(phase.from_epoch) as u32, pgd)
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
        ascent: AscentLoss,
        key: Key,
        batch: &Batch,
    ) -> Result<AttackWork> {
        let pgd = self.at(key.epoch);
        pgd.perturb(engine, ascent, key, batch)?;
        let samples = batch.len() as u64;
        Ok(AttackWork { samples, steps: samples * pgd.steps as u64, ..AttackWork::default() })
    }
}
