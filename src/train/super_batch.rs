//! Super-batches: minibatches that are attacked together before the first of them is trained on.
//!
//! The groups of an attack that spares most images leave micro-batches part-full; those of n minibatches fill them, and
//! BatchNorm is folded once. The price: the last of n steps trains on images that were attacked n - 1 steps ago. Each
//! epoch begins a super-batch; its last one may be smaller.

use std::ops::Range;

use crate::batch::Batch;
use crate::engine::{Engine, Result, Tensor};
use crate::model::layers::IMAGE_LEN;
use crate::ops::GatherRows;

/// Memory for one super-batch, whose adversarial images wait for their steps.
pub(super) struct SuperBatch {
    /// Steps that a super-batch lasts.
    pub steps: usize,
    /// Images of a minibatch.
    minibatch: usize,
    batch: Batch,
    /// 0, 1, ...: places in the super-batch.
    places: Tensor<u32>,
}

impl SuperBatch {
    /// Of `steps` minibatches of up to `minibatch` images.
    pub fn new(engine: &Engine, steps: usize, minibatch: usize) -> Result<Self> {
        let places: Vec<u32> = (0..(steps * minibatch) as u32).collect();
        let places = engine.upload("places in a super-batch", &places)?;
        Ok(Self { steps, minibatch, batch: Batch::alloc(engine, steps * minibatch)?, places })
    }

    /// The place of step `step` of an epoch in its super-batch.
    fn place(&self, step: usize) -> usize {
        step % self.steps
    }

    /// Whether step `step` of an epoch begins one.
    pub fn begins(&self, step: usize) -> bool {
        self.place(step) == 0
    }

    /// The batch of the samples of a whole super-batch.
    pub fn of(&self, samples: Tensor<u32>) -> Batch {
        let batch = self.batch.rows(0..samples.len());
        let (losses, predictions) = (batch.losses.clone(), batch.predictions.clone());
        batch.keeping(samples, losses, predictions)
    }

    /// Copies the adversarial images of step `step` to its minibatch, or to a rank's share of it.
    pub fn hand_over(&self, engine: &mut Engine, step: usize, minibatch: &Batch) -> Result<()> {
        let start = self.place(step) * self.minibatch + minibatch.share.first;
        let places = self.places.slice(start..start + minibatch.len());
        engine.run(&GatherRows::new(&self.batch.perturbed, &places, &minibatch.perturbed))
    }

    /// Images that were attacked before step `step` and not trained on yet, of an epoch of `images`.
    pub fn waiting(&self, step: usize, images: usize) -> usize {
        match self.place(step) {
            0 => 0,
            place => {
                let end = (step - place + self.steps) * self.minibatch;
                end.min(images).saturating_sub(step * self.minibatch)
            }
        }
    }

    fn waiting_images(&self, step: usize, count: usize) -> Tensor<f32> {
        let start = self.place(step) * self.minibatch;
        let range: Range<usize> = start..start + count;
        self.batch.perturbed.rows(range, IMAGE_LEN)
    }

    /// Those images, for a checkpoint.
    pub fn read(&self, engine: &Engine, step: usize, images: usize) -> Result<Vec<f32>> {
        match self.waiting(step, images) {
            0 => Ok(Vec::new()),
            count => engine.read(&self.waiting_images(step, count)),
        }
    }

    /// Takes back what [`SuperBatch::read`] gave.
    pub fn restore(&self, engine: &Engine, step: usize, adversarial: &[f32]) -> Result<()> {
        match adversarial.len() / IMAGE_LEN {
            0 => Ok(()),
            count => engine.write(&self.waiting_images(step, count), adversarial),
        }
    }
}
