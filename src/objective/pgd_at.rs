//! PGD-AT: the cross-entropy of the images that PGD found, L = CE(z', y).

use super::ObjectiveRow;

pub(super) const ROW: ObjectiveRow =
    ObjectiveRow { name: "pgd-at", paper: "Madry et al., ICLR 2018", ..ObjectiveRow::PGD };
