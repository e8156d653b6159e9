//! The ascent of PGD-AT and of the PGD protocols: CE(z', y) against the true label.

use super::Ascent;
use crate::batch::Batch;
use crate::ops::AscentLoss;

/// Ascends the cross-entropy of the adversarial logits; hard labels, as in the original code of PGD-AT, also where
/// the training loss smooths them.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrossEntropyAscent;

impl Ascent for CrossEntropyAscent {
    fn loss<'a>(&self, batch: &'a Batch) -> AscentLoss<'a> {
        AscentLoss::CrossEntropy { labels: &batch.labels }
    }
}
