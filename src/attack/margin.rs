//! The ascent of the CW protocol: the margin `max wrong z' - z'_y`, which does not saturate as the softmax does.

use super::Ascent;
use crate::batch::Batch;
use crate::ops::AscentLoss;

/// Ascends the margin loss of Carlini and Wagner (2017), unclipped, as robustness papers do under the name CW-inf.
#[derive(Clone, Copy, Debug, Default)]
pub struct MarginAscent;

impl Ascent for MarginAscent {
    fn loss<'a>(&self, batch: &'a Batch) -> AscentLoss<'a> {
        AscentLoss::Margin { labels: &batch.labels }
    }
}
