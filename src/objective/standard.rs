//! Standard training, no attack: the yardstick of cost, L = CE(z, y). Its adversarial images are the clean ones.
//!
//! With BulletTrain its groups are formed and reported, and all of them get the same nothing: the shares show how the other
//! methods' groups would look without adversarial training. That saves no work and costs the clean forward of each batch.

use super::attacked::Attacked;
use super::{AttackKind, ObjectiveRow};
use crate::attack::{AttackDefaults, Pgd, Start};

pub(super) const ROW: ObjectiveRow = ObjectiveRow {
    name: "standard",
    about: "CE(z, y), without an attack: the yardstick of cost",
    attack: AttackKind::None,
    defaults: AttackDefaults { steps: 0, start: Start::None, ..AttackDefaults::PGD },
    new: |parts| Box::new(Attacked::cross_entropy(&parts, |pgd| Pgd { start: None, steps: 0, ..pgd })),
    ..ObjectiveRow::PGD
};
