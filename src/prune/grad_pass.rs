//! What a selection can learn about samples: the training attack on each, one forward pass, and what follows from them.
//!
//! Images pass as they are, or cropped and flipped where asked for, and attacked afresh, so no perturbation ever
//! meets another image than its own. BatchNorm is in eval mode. Ranks of a group pass a share of the samples each, and gather what all
//! have found.

use std::ops::Range;
use std::time::Instant;

use super::{PruneError, Result};
use crate::batch::Batch;
use crate::engine::{Engine, Error, GradRequest, Pass, Phase, Tensor, WeightSet};
use crate::model::layers::IMAGE_LEN;
use crate::objective::Objective;
use crate::ops::{Augment, ImageSet, LastLayerGradients, RowNorms, Term};
use crate::philox::Key;
use crate::progress::Watch;

/// The means to look at samples of an image set with the present weights.
pub struct GradPass<'a> {
    pub set: &'a ImageSet,
    /// Its attack and its loss are those of training.
    pub objective: &'a mut dyn Objective,
    /// Live weights, or their moving average.
    pub weights: WeightSet,
    /// Crop and flip of the images whose last layer is asked for; `None` takes them as they are.
    pub augment: Option<Augment>,
    /// Room for one batch at a time.
    pub scratch: &'a Batch,
    /// Keys the random starts of the attack.
    pub key: Key,
    /// Called with the number of samples done and their total; returns `false` to stop.
    pub watch: Watch<'a>,
    /// Where the time went, for measurements: the device is waited for then.
    pub seconds: Option<&'a mut GradPassSeconds>,
}

/// Seconds of a last-layer gradient pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GradPassSeconds {
    pub attack: f64,
    /// All of its passes, the attack included.
    pub total: f64,
}

/// The last layer over a list of samples, in their order: kept on the device.
#[derive(Clone, Debug)]
pub struct LastLayerView {
    /// Gradient of each sample's own loss (no mean, no weight).
    pub gradients: LastLayerGradients,
    /// The logits behind each term, `len x classes`.
    pub logits: Vec<Tensor<f32>>,
    pub labels: Tensor<u32>,
    /// Loss of the objective of each sample.
    pub losses: Tensor<f32>,
}

impl<'a> GradPass<'a> {
    /// Of the images as they are, with the live weights.
    pub fn new(
        set: &'a ImageSet,
        objective: &'a mut dyn Objective,
        scratch: &'a Batch,
        key: Key,
        watch: Watch<'a>,
    ) -> Self {
        let (weights, augment, seconds) = (WeightSet::Live, None, None);
        Self { set, objective, weights, augment, scratch, key, watch, seconds }
    }

    /// Does `work` and, where time is taken, adds its seconds to a part of them.
    fn timed<T>(
        &mut self,
        engine: &mut Engine,
        part: fn(&mut GradPassSeconds) -> &mut f64,
        work: impl FnOnce(&mut Self, &mut Engine) -> Result<T>,
    ) -> Result<T> {
        if self.seconds.is_none() {
            return work(self, engine);
        }
        engine.synchronize()?;
        let begin = Instant::now();
        let done = work(self, engine)?;
        engine.synchronize()?;
        self.seconds.iter_mut().for_each(|seconds| *part(seconds) += begin.elapsed().as_secs_f64());
        Ok(done)
    }

    /// Attacks `samples` as in training, passes them forward, and takes the gradients of the last layer.
    pub fn last_layer(&mut self, engine: &mut Engine, samples: &[u32]) -> Result<LastLayerView> {
        let (classes, features) = (engine.network().classes, engine.network().features());
        let term = |engine: &Engine| -> Result<_, Error> {
            let logit_gradient =
                engine.alloc("logit gradients of the candidates", samples.len() * classes)?;
            let features = engine.alloc("features of the candidates", samples.len() * features)?;
            let logits: Tensor<f32> = engine.alloc("logits of the candidates", samples.len() * classes)?;
            Ok((Term { logit_gradient, features }, logits))
        };
        let paired = self.objective.has_clean_pass();
        let terms = (0..1 + usize::from(paired)).map(|_| term(engine)).collect::<Result<Vec<_>, _>>()?;
        let (terms, logits) = terms.into_iter().unzip();
        let view = LastLayerView {
            gradients: LastLayerGradients { terms, len: samples.len() },
            logits,
            labels: engine.alloc("labels of the candidates", samples.len())?,
            losses: engine.alloc("losses of the candidates", samples.len())?,
        };
        // The attack may learn from what it meets; that is for training alone, and a pass cut short leaves no trace.
        let state = self.objective.state();
        let done = self.timed(
            engine,
            |seconds| &mut seconds.total,
            |pass, engine| pass.fill(engine, samples, &view),
        );
        self.objective.restore(&state).map_err(PruneError::Invalid)?;
        done.map(|()| view)
    }

    fn fill(&mut self, engine: &mut Engine, samples: &[u32], view: &LastLayerView) -> Result<()> {
        let features = engine.network().features();
        engine.fold_batch_norm(self.weights)?;
        for whole in chunks(engine, samples.len(), self.scratch.len()) {
            let range = engine.share(whole.clone());
            let batch = view.batch(self.scratch, range.clone());
            engine.write(&batch.samples, &samples[range.clone()])?;
            engine.run(&batch.gather(self.set, self.augment))?;
            self.timed(
                engine,
                |seconds| &mut seconds.attack,
                |pass, engine| Ok(pass.objective.attack(engine, pass.key, &batch)?),
            )?;
            engine.phase(Phase::Select);
            let mut start = range.start;
            for part in batch.parts(engine.micro_batch()) {
                let rows = start..start + part.len();
                let (clean, adversarial) = view.terms();
                if let Some(clean) = clean {
                    engine.forward(Pass::Eval, &part.images, &part.clean_logits)?;
                    engine.features(Pass::Eval, 0, &clean.features.rows(rows.clone(), features))?;
                }
                engine.forward(Pass::Eval, &part.perturbed, &part.logits)?;
                engine.features(Pass::Eval, 0, &adversarial.features.rows(rows.clone(), features))?;
                start = rows.end;
            }
            self.objective.loss(engine, &batch, 1.0)?;
            view.exchange(engine, whole.clone())?;
            if !(self.watch)(whole.end, samples.len()) {
                return Err(PruneError::Stopped);
            }
        }
        Ok(())
    }

    /// How many of `samples` the network classifies correctly, without attack or augmentation.
    pub fn correct(&mut self, engine: &mut Engine, samples: &[u32]) -> Result<usize> {
        engine.fold_batch_norm(self.weights)?;
        let mut correct = 0;
        for chunk in samples.chunks(self.scratch.len()) {
            let batch = self.scratch.gathered(engine, self.set, chunk, None)?;
            for part in batch.parts(engine.micro_batch()) {
                engine.forward(Pass::Eval, &part.images, &part.logits)?;
            }
            engine.run(&batch.cross_entropy(1.0))?;
            let (predictions, labels) = (engine.read(&batch.predictions)?, engine.read(&batch.labels)?);
            correct +=
                predictions.iter().zip(&labels).filter(|(predicted, label)| predicted == label).count();
        }
        Ok(correct)
    }

    /// The Euclidean norm of the gradient of each sample's clean cross-entropy with respect to its image.
    pub fn input_gradient_norms(&mut self, engine: &mut Engine, samples: &[u32]) -> Result<Tensor<f32>> {
        let norms = engine.alloc("input-gradient norms", samples.len())?;
        let fill = |pass: &mut Self, engine: &mut Engine| pass.fill_norms(engine, samples, &norms);
        self.timed(engine, |seconds| &mut seconds.total, fill)?;
        Ok(norms)
    }

    fn fill_norms(&mut self, engine: &mut Engine, samples: &[u32], norms: &Tensor<f32>) -> Result<()> {
        engine.fold_batch_norm(self.weights)?;
        for whole in chunks(engine, samples.len(), self.scratch.len().min(engine.micro_batch())) {
            let range = engine.share(whole.clone());
            let batch = self.scratch.gathered(engine, self.set, &samples[range.clone()], None)?;
            engine.forward(Pass::Eval, &batch.images, &batch.logits)?;
            engine.run(&batch.cross_entropy(1.0))?;
            engine.backward(Pass::Eval, &batch.logit_gradient, GradRequest::images(&batch.perturbed))?;
            let own = norms.slice(range);
            engine.run(&RowNorms { values: &batch.perturbed, row_len: IMAGE_LEN, norms: &own })?;
            engine.gather_rows(&norms.slice(whole.clone()), 1)?;
            if !(self.watch)(whole.end, samples.len()) {
                return Err(PruneError::Stopped);
            }
        }
        Ok(())
    }
}

/// What ranks pass at a time of `len` samples, each at most `size`.
fn chunks(engine: &Engine, len: usize, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let size = size * engine.ranks();
    (0..len).step_by(size).map(move |start| start..len.min(start + size))
}

impl LastLayerView {
    /// Takes what other ranks have found of the samples at `range`.
    fn exchange(&self, engine: &Engine, range: Range<usize>) -> Result<(), Error> {
        let rows = |tensor: &Tensor<f32>| {
            let row_len = tensor.len() / self.gradients.len;
            engine.gather_rows(&tensor.rows(range.clone(), row_len), row_len)
        };
        for (term, logits) in self.gradients.terms.iter().zip(&self.logits) {
            [&term.logit_gradient, &term.features, logits].into_iter().try_for_each(rows)?;
        }
        engine.gather_rows(&self.labels.slice(range.clone()), 1)?;
        rows(&self.losses)
    }

    /// The clean term, where there is one, and the adversarial one.
    pub fn terms(&self) -> (Option<&Term>, &Term) {
        match self.gradients.terms.as_slice() {
            [clean, adversarial] => (Some(clean), adversarial),
            terms => (None, &terms[0]),
        }
    }

    /// The logits of the adversarial images.
    pub fn adversarial_logits(&self) -> &Tensor<f32> {
        &self.logits[self.logits.len() - 1]
    }

    /// The rows of this view as batches of `scratch`: see [`LastLayerView::batch`].
    pub fn batches<'a>(&'a self, scratch: &'a Batch) -> impl Iterator<Item = Batch> + 'a {
        let (len, size) = (self.gradients.len, scratch.len());
        (0..len).step_by(size).map(move |start| self.batch(scratch, start..len.min(start + size)))
    }

    /// A batch of `scratch` whose logits, gradients, labels and losses are rows `range` of this view.
    pub fn batch(&self, scratch: &Batch, range: Range<usize>) -> Batch {
        let classes = scratch.classes();
        let (clean, adversarial) = self.terms();
        let mut batch = scratch.rows(0..range.len());
        batch.labels = self.labels.slice(range.clone());
        batch.losses = self.losses.slice(range.clone());
        batch.logits = self.adversarial_logits().rows(range.clone(), classes);
        batch.logit_gradient = adversarial.logit_gradient.rows(range.clone(), classes);
        if let Some(clean) = clean {
            batch.clean_logits = self.logits[0].rows(range.clone(), classes);
            batch.clean_gradient = clean.logit_gradient.rows(range, classes);
        }
        batch
    }
}
