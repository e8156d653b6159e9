//! A batch on the device: its images and labels, the adversarial images made from them, and the outputs of a loss.
//!
//! Attacks, objectives, training and evaluation all work on this one set of tensors, allocated once.

use std::ops::Range;

use crate::engine::{Engine, Result, Tensor};
use crate::model::layers::IMAGE_LEN;
use crate::ops::{
    Augment, CrossEntropy, GatherImages, GatherRows, ImageSet, LossOutputs, Noise, PairedLossOutputs, Perturb,
};
use crate::philox::Key;

/// The tensors of one batch, or (as views of the same memory) of a part of one.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Index of each sample in its image set; keys all randomness of the sample.
    pub samples: Tensor<u32>,
    pub labels: Tensor<u32>,
    /// `len x 32 x 32 x 3`, NHWC in [0, 1]: the clean images x.
    pub images: Tensor<f32>,
    /// The adversarial images x', same layout.
    pub perturbed: Tensor<f32>,
    /// `len x classes`, of the adversarial images.
    pub logits: Tensor<f32>,
    /// `len x classes`.
    pub logit_gradient: Tensor<f32>,
    /// `len x classes`, of the clean images, for attacks and losses that compare the two.
    pub clean_logits: Tensor<f32>,
    /// `len x classes`.
    pub clean_gradient: Tensor<f32>,
    pub losses: Tensor<f32>,
    pub predictions: Tensor<u32>,
    /// Factor of each sample on what its loss adds to the gradients of a training step; `None` for ones.
    pub weights: Option<Tensor<f32>>,
    /// What it is of the minibatch that the losses of training are means over.
    pub share: Share,
    classes: usize,
}

/// Which part of its minibatch a batch is, where ranks share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Images before it in the minibatch.
    pub first: usize,
    /// Images of all ranks' shares together.
    pub images: usize,
}

impl Share {
    /// A minibatch of its own.
    pub fn whole(images: usize) -> Self {
        Self { first: 0, images }
    }
}

impl Batch {
    /// Room for `len` images of the engine's network.
    pub fn alloc(engine: &Engine, len: usize) -> Result<Self> {
        let classes = engine.network().classes;
        Ok(Self {
            samples: engine.alloc("batch samples", len)?,
            labels: engine.alloc("batch labels", len)?,
            images: engine.alloc("batch images", len * IMAGE_LEN)?,
            perturbed: engine.alloc("batch adversarial images", len * IMAGE_LEN)?,
            logits: engine.alloc("batch logits", len * classes)?,
            logit_gradient: engine.alloc("batch logit gradient", len * classes)?,
            clean_logits: engine.alloc("batch clean logits", len * classes)?,
            clean_gradient: engine.alloc("batch clean logit gradient", len * classes)?,
            losses: engine.alloc("batch losses", len)?,
            predictions: engine.alloc("batch predictions", len)?,
            weights: None,
            share: Share::whole(len),
            classes,
        })
    }

    /// Images in the batch.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Images `range` of the batch: the same memory, narrowed.
    ///
    /// # Panics
    /// If the range does not lie inside the batch.
    pub fn rows(&self, range: Range<usize>) -> Self {
        Self {
            samples: self.samples.slice(range.clone()),
            labels: self.labels.slice(range.clone()),
            images: self.images.rows(range.clone(), IMAGE_LEN),
            perturbed: self.perturbed.rows(range.clone(), IMAGE_LEN),
            logits: self.logits.rows(range.clone(), self.classes),
            logit_gradient: self.logit_gradient.rows(range.clone(), self.classes),
            clean_logits: self.clean_logits.rows(range.clone(), self.classes),
            clean_gradient: self.clean_gradient.rows(range.clone(), self.classes),
            losses: self.losses.slice(range.clone()),
            predictions: self.predictions.slice(range.clone()),
            weights: self.weights.as_ref().map(|weights| weights.slice(range.clone())),
            share: Share::whole(range.len()),
            classes: self.classes,
        }
    }

    /// The batch cut into parts of at most `size` images, in order.
    pub fn parts(&self, size: usize) -> impl Iterator<Item = Self> + '_ {
        let (len, size) = (self.len(), size.max(1));
        (0..len).step_by(size).map(move |start| self.rows(start..len.min(start + size)))
    }

    /// The same batch with other tensors for what outlives it: slices of an epoch's order, losses and predictions.
    pub fn keeping(self, samples: Tensor<u32>, losses: Tensor<f32>, predictions: Tensor<u32>) -> Self {
        Self { samples, losses, predictions, ..self }
    }

    /// The first rows of the batch, filled with `samples` of a set, of which there are at most as many.
    pub fn gathered(
        &self,
        engine: &mut Engine,
        set: &ImageSet,
        samples: &[u32],
        augment: Option<Augment>,
    ) -> Result<Self> {
        let batch = self.rows(0..samples.len());
        engine.write(&batch.samples, samples)?;
        engine.run(&batch.gather(set, augment))?;
        Ok(batch)
    }

    /// Copies samples, labels, clean images and, where asked for, clean logits at `places` to `group`, which has as many.
    pub fn compact(
        &self,
        engine: &mut Engine,
        places: &Tensor<u32>,
        group: &Self,
        clean_logits: bool,
    ) -> Result<()> {
        engine.run(&GatherRows::new(&self.samples, places, &group.samples))?;
        engine.run(&GatherRows::new(&self.labels, places, &group.labels))?;
        engine.run(&GatherRows::new(&self.images, places, &group.images))?;
        if clean_logits {
            engine.run(&GatherRows::new(&self.clean_logits, places, &group.clean_logits))?;
        }
        Ok(())
    }

    /// Fills images and labels with those of `samples`.
    pub fn gather<'a>(&'a self, set: &'a ImageSet, augment: Option<Augment>) -> GatherImages<'a> {
        GatherImages { set, samples: &self.samples, augment, images: &self.images, labels: &self.labels }
    }

    /// Fills `perturbed` with the images and noise.
    pub fn perturb(&self, noise: Noise, key: Key) -> Perturb<'_> {
        Perturb { noise, key, samples: &self.samples, images: &self.images, perturbed: &self.perturbed }
    }

    /// The cross-entropy of `logits` and the labels, without smoothing and weights; `scale` as in [`CrossEntropy::scale`].
    pub fn cross_entropy(&self, scale: f32) -> CrossEntropy<'_> {
        CrossEntropy {
            smoothing: 0.0,
            scale,
            logits: &self.logits,
            labels: &self.labels,
            weights: None,
            outputs: self.outputs(),
        }
    }

    /// Where a loss over this batch writes.
    pub fn outputs(&self) -> LossOutputs<'_> {
        LossOutputs {
            losses: &self.losses,
            predictions: &self.predictions,
            logit_gradient: &self.logit_gradient,
        }
    }

    /// Where a loss of clean and adversarial logits writes.
    pub fn paired_outputs(&self) -> PairedLossOutputs<'_> {
        PairedLossOutputs {
            losses: &self.losses,
            predictions: &self.predictions,
            clean_gradient: &self.clean_gradient,
            adversarial_gradient: &self.logit_gradient,
        }
    }
}
