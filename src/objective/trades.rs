//! TRADES: L = CE(z, t) + beta KL(p || q), its attack ascending KL; the target t is the label, smoothed where asked for.
//!
//! dL/dz = (p - t) + beta p (log p - log q - KL), dL/dz' = beta (q - p). The target p of the attack is computed once
//! a step, under the attack's BatchNorm (the official code computes it again in each step of the attack, with the same
//! result); the train passes give x and x' batch statistics of their own.

use super::attacked::Attacked;
use super::{ObjectiveRow, TrainPasses};
use crate::attack::{AttackDefaults, Start};
use crate::ops::{AscentLoss, PairedForm};

pub(super) const ROW: ObjectiveRow = ObjectiveRow {
    name: "trades",
    about: "CE(z, y) + beta KL(p || q)",
    paper: "Zhang et al., ICML 2019",
    ascends: AscentLoss::Divergence,
    defaults: DEFAULTS,
    passes: TrainPasses::CleanAndAdversarial,
    new: |parts| {
        let smoothing = parts.config.label_smoothing as f32;
        Box::new(Attacked::paired(&parts, PairedForm::Trades { smoothing }))
    },
    ..ObjectiveRow::PGD
};

/// Those of the official code.
pub(super) const DEFAULTS: AttackDefaults =
    AttackDefaults { epsilon: "0.031", step_size: "0.007", start: Start::Normal, ..AttackDefaults::PGD };
