//! The ascent of TRADES (Zhang et al., 2019): KL(p || q), p of the clean image fixed, q of the adversarial one.

use super::Ascent;
use crate::batch::Batch;
use crate::engine::{Engine, Result};

/// Ascends the divergence of the adversarial prediction from the clean one. The clean logits are computed once a
/// step; the official code computes them again at each step of the attack, with the same result.
#[derive(Clone, Copy, Debug, Default)]
pub struct DivergenceAscent;

impl Ascent for DivergenceAscent {
    fn needs_clean_logits(&self) -> bool {
        true
    }

    fn logit_gradient(&mut self, engine: &mut dyn Engine, batch: &Batch) -> Result<()> {
        // Scale 1: only the sign of what follows from it matters.
        engine.divergence(&batch.clean_logits, &batch.logits, 1.0, batch.outputs())
    }
}
