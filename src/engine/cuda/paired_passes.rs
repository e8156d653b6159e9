//! Both train passes of a step as one: two sets of images in every launch, each with batch statistics of its own.
//!
//! What it keeps is as much as two train slots would, and is made when the first pair comes, together with a scratch for two
//! batches: the other passes' own, whose addresses recorded graphs hold, has room for one. Checked by `tests/paired_passes.rs`
//! against two passes, one after the other.

use super::engine::Cuda;
use super::scratch::Scratch;
use super::train::{TrainPass, Wanted};
use crate::engine::{Error, PairedPasses, Result, Tensor};

/// A train pass over two sets, and the scratch for it.
pub struct Pair {
    pass: TrainPass,
    scratch: Scratch,
}

impl Pair {
    /// The weights changed: the last forward pass is of others.
    pub fn forget(&mut self) {
        self.pass.forget();
    }
}

impl PairedPasses for Cuda {
    fn forward_pair(&mut self, images: [&Tensor<f32>; 2], logits: [&Tensor<f32>; 2]) -> Result<()> {
        let (batch, first) = self.images(images[0])?;
        let images = [first, self.sized(images[1], images[0].len())?];
        let logits = [self.logits(logits[0], batch)?, self.logits(logits[1], batch)?];
        let Self { driver, passes, parameters, max_batch, .. } = self;
        let pair = match &mut self.pair {
            Some(pair) => pair,
            empty => empty.insert(Pair {
                pass: TrainPass::new(driver, parameters, 2, *max_batch)?,
                scratch: Scratch::new(driver, &parameters.layout, 2, *max_batch)?,
            }),
        };
        pair.pass.forward(passes, parameters, &pair.scratch, batch, &images, &logits)
    }

    fn pair_features(&mut self, set: usize, features: &Tensor<f32>) -> Result<()> {
        let kept = self.pair.as_ref().and_then(|pair| pair.pass.features()).filter(|_| set < 2);
        let Some((batch, from)) = kept else {
            return Err(Error::Invalid(format!(
                "features of set {set} of a pair of train passes: expected 0 or 1, after a forward pass on the present weights"
            )));
        };
        let len = batch * self.parameters.layout.network.features();
        let to = self.sized(features, len)?;
        self.driver.copy(from.offset::<f32>(set * len), to, len * size_of::<f32>())
    }

    fn pair_gradient(&mut self, logit_gradients: [&Tensor<f32>; 2]) -> Result<()> {
        let batch = logit_gradients[0].len() / self.parameters.layout.network.classes;
        let gradients = [self.logits(logit_gradients[0], batch)?, self.logits(logit_gradients[1], batch)?];
        let Self { pair, passes, parameters, .. } = self;
        let pair = pair.as_ref().ok_or_else(|| {
            Error::Invalid("gradients of a pair of train passes: no forward pass yet".into())
        })?;
        let wanted = Wanted { parameters: Some(false), image: None };
        pair.pass.backward(passes, parameters, &pair.scratch, batch, &gradients, &wanted)
    }
}
