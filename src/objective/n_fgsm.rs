//! N-FGSM, "Make some noise": strong noise, then one step that is not projected,
//! x' = clip01(clip01(x + U(-2 eps, 2 eps)) + eps sign g); L = CE(z', y).
//!
//! The training images lie outside the eps-ball by design, up to 3 eps from x. Noise and step size are the recipe's.

use super::attacked::Attacked;
use super::{AttackKind, ObjectiveRow};
use crate::attack::{AttackDefaults, Pgd};
use crate::engine::SignStep;

pub(super) const ROW: ObjectiveRow = ObjectiveRow {
    name: "n-fgsm",
    about: "CE(z', y), one step from strong noise, outside the ball",
    paper: "de Jorge et al., NeurIPS 2022",
    attack: AttackKind::Steps { fixed: Some(1) },
    defaults: AttackDefaults { step_size: "8/255", steps: 1, start_scale: 2.0, ..AttackDefaults::PGD },
    new: |parts| Box::new(Attacked::cross_entropy(&parts, unprojected)),
    ..ObjectiveRow::PGD
};

/// Onto [0, 1] only.
fn unprojected(pgd: Pgd) -> Pgd {
    Pgd { step: SignStep { epsilon: f32::INFINITY, ..pgd.step }, ..pgd }
}
