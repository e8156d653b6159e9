//! The ascent of PGD-AT and of the PGD protocols: CE(z', y) against the true label.

use super::Ascent;
use crate::batch::Batch;
use crate::engine::{CrossEntropy, Engine, Result};

/// Ascends the cross-entropy of the adversarial logits; hard labels, as in the original code of PGD-AT, also where
/// the training loss smooths them.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrossEntropyAscent;

impl Ascent for CrossEntropyAscent {
    fn logit_gradient(&mut self, engine: &mut dyn Engine, batch: &Batch) -> Result<()> {
        // Scale 1 and not 1 / batch: only the sign matters, and small factors would waste the range of bf16.
        let loss = CrossEntropy { smoothing: 0.0, scale: 1.0 };
        engine.cross_entropy(&loss, &batch.logits, &batch.labels, None, batch.outputs())
    }
}
