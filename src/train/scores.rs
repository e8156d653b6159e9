//! Scores of the samples of an epoch from what their steps have computed: EL2N and last-layer GraNd of each adversarial image,
//! by the logits and features of its train pass. Two small kernels a step, and no pass of the network.

use std::ops::Range;

use super::Recipe;
use crate::batch::Batch;
use crate::engine::{Engine, Pass, Result, Tensor};
use crate::ops::{CrossEntropy, LossOutputs, RowNorms};
use crate::prune::Score;

/// Memory for the scores of an epoch, in its order.
pub(super) struct EpochScores {
    /// `||q - e_y||`.
    errors: Tensor<f32>,
    /// `|h'|`, where the score has it.
    feature_norms: Option<Tensor<f32>>,
    // Of one minibatch.
    features: Tensor<f32>,
    losses: Tensor<f32>,
    predictions: Tensor<u32>,
    logit_gradient: Tensor<f32>,
}

impl EpochScores {
    /// For epochs of up to `samples` samples.
    pub fn new(engine: &Engine, recipe: &Recipe, score: Score, samples: usize) -> Result<Self> {
        let (batch, network) = (recipe.batch, engine.network());
        let norms = (score == Score::GraNd).then(|| engine.alloc("epoch feature norms", samples));
        Ok(Self {
            errors: engine.alloc("epoch error norms", samples)?,
            feature_norms: norms.transpose()?,
            features: engine.alloc("features of a step", batch * network.features())?,
            losses: engine.alloc("losses of the scores", batch)?,
            predictions: engine.alloc("predictions of the scores", batch)?,
            logit_gradient: engine.alloc("error vectors of a step", batch * network.classes)?,
        })
    }

    /// Scores the minibatch at `range` of the epoch; its gradient was just computed and the weights have not moved since.
    /// `paired` says whether it passed clean images too.
    pub fn measure(
        &self,
        engine: &mut Engine,
        batch: &Batch,
        paired: bool,
        range: Range<usize>,
    ) -> Result<()> {
        let (len, network) = (batch.len(), engine.network());
        let logit_gradient = self.logit_gradient.rows(0..len, network.classes);
        // The gradient of the plain cross-entropy, whatever the objective.
        let outputs = LossOutputs {
            losses: &self.losses.slice(0..len),
            predictions: &self.predictions.slice(0..len),
            logit_gradient: &logit_gradient,
        };
        engine.run(&CrossEntropy { outputs, ..batch.cross_entropy(1.0) })?;
        engine.run(&RowNorms {
            values: &logit_gradient,
            row_len: network.classes,
            norms: &self.errors.slice(range.clone()),
        })?;
        if let Some(norms) = &self.feature_norms {
            let features = self.features.rows(0..len, network.features());
            match paired {
                true => engine.features(Pass::Pair, 1, &features)?,
                false => engine.features(Pass::Train { slot: 0 }, 0, &features)?,
            }
            engine.run(&RowNorms {
                values: &features,
                row_len: network.features(),
                norms: &norms.slice(range),
            })?;
        }
        Ok(())
    }

    /// The scores of the first `done` samples.
    pub fn read(&self, engine: &Engine, done: usize) -> Result<Vec<f32>> {
        let mut scores = engine.read(&self.errors.slice(0..done))?;
        if let Some(norms) = &self.feature_norms {
            let norms = engine.read(&norms.slice(0..done))?;
            scores.iter_mut().zip(norms).for_each(|(score, norm)| *score *= (1.0 + norm * norm).sqrt());
        }
        Ok(scores)
    }

    /// Takes back what [`EpochScores::read`] gave, to the bit: a feature norm of 0 is a factor of 1.
    pub fn restore(&self, engine: &Engine, scores: &[f32]) -> Result<()> {
        engine.write(&self.errors.slice(0..scores.len()), scores)?;
        match &self.feature_norms {
            Some(norms) => engine.write(&norms.slice(0..scores.len()), &vec![0.0; scores.len()]),
            None => Ok(()),
        }
    }
}
