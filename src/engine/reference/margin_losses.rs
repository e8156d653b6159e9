//! [`MarginLosses`] on the CPU: lengths and classes checked, samples one by one. Checked by `tests/apgd.rs`.

use super::engine::Reference;
use crate::engine::margin::check_rank;
use crate::engine::{LossOutputs, Margin, MarginLosses, Result, Tensor};

impl MarginLosses for Reference {
    fn margin_loss(
        &mut self,
        margin: Margin,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        outputs: LossOutputs,
    ) -> Result<()> {
        self.losses().margin_loss(margin, logits, labels, outputs)
    }

    fn wrong_class(
        &mut self,
        rank: usize,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        classes: &Tensor<u32>,
    ) -> Result<()> {
        check_rank(rank, self.losses().classes)?;
        self.losses().wrong_class(rank, logits, labels, classes)
    }
}
