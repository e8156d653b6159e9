//! Selections by a score of each sample: the largest or the smallest, perturbed or as they are.
//!
//! As published the k best are kept, whatever their class: [`TopK::PLAIN`], ranked on the device. The default draws them with
//! noise and quotas: see `top_k` for why.

use super::top_k::Draw;
use super::{
    Candidates, Coverage, GradPass, Knowledge, PruneError, Result, Selection, SelectionRow, Subset, TopK,
};
use crate::engine::{Engine, Error, Tensor};
use crate::ops::{RowNorms, SelectTopK, Term};

pub(super) const LOSS_RANK: SelectionRow = SelectionRow {
    name: "loss-rank",
    title: "loss ranking",
    about: "the largest last adversarial losses in training",
    coverage: Coverage::Fraction,
    knowledge: Knowledge::LastLoss,
    every: 1,
    new: |config, _| Box::new(Ranking { score: Score::LastLoss, top_k: TopK::from_config(config) }),
    ..SelectionRow::ALL
};

pub(super) const EL2N: SelectionRow = SelectionRow {
    name: "el2n",
    title: "EL2N",
    about: "the largest error norms of the adversarial images",
    paper: "Paul et al., NeurIPS 2021",
    knowledge: Knowledge::LastLayerScore(Score::El2n),
    every: 20,
    new: |config, _| Box::new(Ranking { score: Score::El2n, top_k: TopK::from_config(config) }),
    ..LOSS_RANK
};

pub(super) const GRAND: SelectionRow = SelectionRow {
    name: "grand",
    title: "last-layer GraNd",
    about: "the largest gradient norms of the last layer on the adversarial images (GraNd's are of all layers)",
    knowledge: Knowledge::LastLayerScore(Score::GraNd),
    new: |config, _| Box::new(Ranking { score: Score::GraNd, top_k: TopK::from_config(config) }),
    ..EL2N
};

pub(super) const EASY_CORE: SelectionRow = SelectionRow {
    name: "easy-core",
    title: "EasyCore",
    about: "the smallest input-gradient norms of the clean images",
    paper: "",
    knowledge: Knowledge::InputGradient,
    new: |config, _| Box::new(Ranking { score: Score::InputGradient, top_k: TopK::from_config(config) }),
    ..EL2N
};

/// What samples are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// The last adversarial loss in training, the largest kept; a sample that was never trained on comes first. Where
    /// nothing was trained yet, the loss after an attack now.
    LastLoss,
    /// EL2N (Paul et al., NeurIPS 2021) of the adversarial image, `||q - e_y||`, the largest kept.
    El2n,
    /// The norm of the last layer's gradient, `||q - e_y|| sqrt(1 + |h'|^2)`, the largest kept. GraNd (same paper) is the norm
    /// over all layers: the two correlate by 0.23.
    GraNd,
    /// The norm of the loss gradient with respect to the clean image, the smallest kept (EasyCore).
    InputGradient,
}

/// The samples that rank first by a score.
#[derive(Clone, Copy, Debug)]
pub struct Ranking {
    pub score: Score,
    pub top_k: TopK,
}

impl Selection for Ranking {
    fn select(&self, engine: &mut Engine, candidates: &Candidates, pass: &mut GradPass) -> Result<Subset> {
        let scores = self.scores(engine, candidates, pass)?;
        if self.top_k != TopK::PLAIN {
            let scores: Vec<f64> = engine.read(&scores)?.into_iter().map(f64::from).collect();
            let mut draw = Draw::new(self.top_k, candidates);
            draw.take(&scores, candidates.budget)?;
            return draw.subset();
        }
        let top: Tensor<u32> =
            engine.alloc("chosen places", candidates.budget.min(candidates.samples.len()))?;
        if !top.is_empty() {
            engine.run(&SelectTopK { values: &scores, top: &top }).map_err(|error| match error {
                Error::NotANumber { position, .. } => PruneError::Invalid(format!(
                    "training image {}: its score is NaN, expected a number: training has diverged",
                    candidates.samples[position]
                )),
                error => error.into(),
            })?;
        }
        let chosen = engine.read(&top)?;
        Ok(Subset::uniform(chosen.iter().map(|&place| candidates.samples[place as usize]).collect()))
    }
}

impl Ranking {
    /// The score of each candidate, the first rank to the largest: its mean over training where the candidates have one.
    pub fn scores(
        &self,
        engine: &mut Engine,
        candidates: &Candidates,
        pass: &mut GradPass,
    ) -> Result<Tensor<f32>> {
        let samples = candidates.samples;
        if let Some(means) = candidates.scores {
            return Ok(engine.upload("mean scores", means)?);
        }
        match self.score {
            Score::LastLoss => match candidates.losses {
                Some(losses) => Ok(losses.clone()),
                None => Ok(pass.last_layer(engine, samples)?.losses),
            },
            Score::InputGradient => {
                let norms = pass.input_gradient_norms(engine, samples)?;
                let negated: Vec<f32> = engine.read(&norms)?.iter().map(|norm| -norm).collect();
                Ok(engine.upload("scores", &negated)?)
            }
            Score::El2n | Score::GraNd => {
                let view = pass.last_layer(engine, samples)?;
                let classes = engine.network().classes;
                // Both are norms of the plain cross-entropy's gradient, whatever the objective.
                for batch in view.batches(pass.scratch) {
                    engine.run(&batch.cross_entropy(1.0))?;
                }
                let Term { logit_gradient, features } = view.terms().1;
                let norms = |values: &Tensor<f32>, row_len, engine: &mut Engine| -> Result<Tensor<f32>> {
                    let norms = engine.alloc("row norms", samples.len())?;
                    engine.run(&RowNorms { values, row_len, norms: &norms })?;
                    Ok(norms)
                };
                let slopes = norms(logit_gradient, classes, engine)?;
                if self.score == Score::El2n {
                    return Ok(slopes);
                }
                // |dz (x) [h, 1]| = |dz| |[h, 1]|.
                let inputs = norms(features, engine.network().features(), engine)?;
                let pairs = engine.read(&slopes)?.into_iter().zip(engine.read(&inputs)?);
                let norms: Vec<f32> = pairs.map(|(slope, input)| slope * input.hypot(1.0)).collect();
                Ok(engine.upload("GraNd scores", &norms)?)
            }
        }
    }
}
