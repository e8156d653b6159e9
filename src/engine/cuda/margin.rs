//! [`MarginLosses`] on our kernels. Checked by tests/apgd.rs.

use super::driver::Address;
use super::engine::Cuda;
use super::launch::loss;
use crate::engine::margin::check_rank;
use crate::engine::{Engine, LossOutputs, Margin, MarginLosses, Result, Tensor};

impl MarginLosses for Cuda {
    fn margin_loss(
        &mut self,
        margin: Margin,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        outputs: LossOutputs,
    ) -> Result<()> {
        let (batch, classes) = (labels.len(), self.network().classes);
        margin.check(classes)?;
        let params = loss::MarginParams {
            logits: self.logits(logits, batch)?,
            labels: self.address(labels)?,
            targets: match margin {
                Margin::BestWrong => Address::NULL,
                Margin::TargetedDlr { targets } => self.sized(targets, batch)?,
            },
            losses: self.sized(outputs.losses, batch)?,
            predictions: self.sized(outputs.predictions, batch)?,
            logit_gradient: self.logits(outputs.logit_gradient, batch)?,
            batch: batch as u32,
            classes: classes as u32,
        };
        loss::margin_loss(self.driver(), &params)
    }

    fn wrong_class(
        &mut self,
        rank: usize,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        classes: &Tensor<u32>,
    ) -> Result<()> {
        let (batch, count) = (labels.len(), self.network().classes);
        check_rank(rank, count)?;
        let params = loss::WrongClassParams {
            logits: self.logits(logits, batch)?,
            labels: self.address(labels)?,
            wrong: self.sized(classes, batch)?,
            batch: batch as u32,
            classes: count as u32,
            rank: rank as u32,
            padding: 0,
        };
        loss::wrong_class(self.driver(), &params)
    }
}
