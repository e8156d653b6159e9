//! The ascent of the CW protocol: the margin `max wrong z' - z'_y`, which does not saturate as the softmax does.

use super::Ascent;
use crate::batch::Batch;
use crate::engine::{Engine, Margin, Result};

/// Ascends the margin loss of Carlini and Wagner (2017), unclipped, as robustness papers do under the name CW-inf.
#[derive(Clone, Copy, Debug, Default)]
pub struct MarginAscent;

impl Ascent for MarginAscent {
    fn logit_gradient(&mut self, engine: &mut dyn Engine, batch: &Batch) -> Result<()> {
        engine.margin_loss(Margin::BestWrong, &batch.logits, &batch.labels, batch.outputs())
    }
}
