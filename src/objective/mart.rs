//! MART: boosted cross-entropy of x' and a divergence weighted by the doubt about x,
//! L = -log q_y - log(1.0001 - q_k + 1e-12) + lambda (1.0000001 - p_y) KL(p || q + 1e-12), k the best wrong class of q.
//!
//! Its attack ascends the cross-entropy from the start of TRADES. The gradients stand at [`PairedForm::Mart`].

use super::attacked::Attacked;
use super::{ObjectiveRow, TrainPasses, trades};
use crate::ops::PairedForm;

pub(super) const ROW: ObjectiveRow = ObjectiveRow {
    name: "mart",
    about: "boosted CE(z', y) + lambda (1 - p_y) KL(p || q)",
    paper: "Wang et al., ICLR 2020",
    defaults: trades::DEFAULTS,
    passes: TrainPasses::CleanAndAdversarial,
    // lambda; that of the official code for ResNet-18.
    beta: 5.0,
    hard_labels: Some("mart's margin and its weight 1 - p_y are defined by one true class"),
    new: |parts| Box::new(Attacked::paired(&parts, PairedForm::Mart)),
    ..ObjectiveRow::PGD
};
