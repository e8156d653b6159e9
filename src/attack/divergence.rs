//! The ascent of TRADES (Zhang et al., 2019): KL(p || q), p of the clean image fixed, q of the adversarial one.

use super::Ascent;
use crate::batch::Batch;
use crate::ops::AscentLoss;

/// Ascends the divergence of the adversarial prediction from the clean one. The clean logits are computed once a
/// step; the official code computes them again at each step of the attack, with the same result.
#[derive(Clone, Copy, Debug, Default)]
pub struct DivergenceAscent;

impl Ascent for DivergenceAscent {
    fn needs_clean_logits(&self) -> bool {
        true
    }

    fn loss<'a>(&self, batch: &'a Batch) -> AscentLoss<'a> {
        AscentLoss::Divergence { target_logits: &batch.clean_logits }
    }
}
