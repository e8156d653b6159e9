//! [`PairedPasses`] on the CPU: one pass after the other, in slots of their own. Checked by `tests/paired_passes.rs`.

use super::engine::Reference;
use super::invalid;
use super::memory::expect_len;
use super::train::PAIR;
use crate::engine::{PairedPasses, Result, Tensor};

impl PairedPasses for Reference {
    fn forward_pair(&mut self, images: [&Tensor<f32>; 2], logits: [&Tensor<f32>; 2]) -> Result<()> {
        expect_len(images[1], images[0].len())?;
        expect_len(logits[1], logits[0].len())?;
        self.pair_batch = None;
        let mut batch = 0;
        for at in 0..2 {
            batch = self.train_forward(PAIR[at], images[at], logits[at])?;
        }
        self.pair_batch = Some(batch);
        Ok(())
    }

    fn pair_features(&mut self, set: usize, features: &Tensor<f32>) -> Result<()> {
        let (Some(batch), Some(&slot)) = (self.pair_batch, PAIR.get(set)) else {
            return invalid(format!(
                "features of set {set} of a pair of train passes: expected 0 or 1, after a forward pass on the present weights"
            ));
        };
        expect_len(features, batch * self.network.features())?;
        self.heap.view_mut(features)?.copy_from_slice(self.train.features(slot));
        Ok(())
    }

    fn pair_gradient(&mut self, logit_gradients: [&Tensor<f32>; 2]) -> Result<()> {
        let Some(batch) = self.pair_batch else {
            return invalid("a pair of train passes: backward without a forward pass on the present weights");
        };
        for gradient in logit_gradients {
            expect_len(gradient, batch * self.network.classes)?;
        }
        self.train_gradient(PAIR[0], batch, logit_gradients[0], false, None)?;
        self.train_gradient(PAIR[1], batch, logit_gradients[1], true, None)
    }
}
