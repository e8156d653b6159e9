//! FGSM-RS, "Fast is better than free": one projected step from a uniform start, L = CE(z', y). Noise and step size are the
//! recipe's.

use super::{AttackKind, ObjectiveRow};
use crate::attack::AttackDefaults;

pub(super) const ROW: ObjectiveRow = ObjectiveRow {
    name: "fgsm-rs",
    about: "CE(z', y), one step from a random start",
    paper: "Wong et al., ICLR 2020",
    attack: AttackKind::Steps { fixed: Some(1) },
    defaults: AttackDefaults { step_size: "10/255", steps: 1, ..AttackDefaults::PGD },
    ..ObjectiveRow::PGD
};
