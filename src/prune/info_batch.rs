//! InfoBatch (Qin et al., ICLR 2024): of the easy samples a random part, weighted up, so that the gradient summed over an
//! epoch stays unbiased.
//!
//! Easy are the samples whose last loss lies below the mean; the scores come free from training. The weights 1 and 1 / (1 - r)
//! are not normalised: a minibatch has the plain mean of weight times loss, so fewer and longer steps go as far as an epoch
//! on all samples. Counts and weights are those of the published code (NUS-HPC-AI-Lab/InfoBatch). Nothing is pruned in the last
//! epochs: `selection.full_share`.

use super::{Candidates, Coverage, GradPass, Knowledge, PruneError, Result, Selection, SelectionRow, Subset};
use crate::data::order::shuffled;
use crate::engine::Engine;

pub(super) const ROW: SelectionRow = SelectionRow {
    name: "info-batch",
    title: "InfoBatch",
    about: "a random half of the easy samples left out, the other half weighted up",
    paper: "Qin et al., ICLR 2024",
    coverage: Coverage::Own {
        share: |config| 1.0 - EASY_SHARE * config.prune_share,
        assumes: || format!("a share of {EASY_SHARE} of InfoBatch's samples is taken for easy"),
    },
    knowledge: Knowledge::LastLoss,
    every: 1,
    full_share: 0.125,
    starts_whole: true,
    new: |config, _| Box::new(InfoBatch { prune_share: config.prune_share }),
    ..SelectionRow::ALL
};

/// Share of the samples that is expected below the mean loss: that of symmetric losses.
const EASY_SHARE: f64 = 0.5;

/// A random share of the easy samples is left out.
#[derive(Clone, Copy, Debug)]
pub struct InfoBatch {
    /// The share r of the easy samples that is left out, in [0, 1); 0.5 in the paper.
    pub prune_share: f64,
}

impl Selection for InfoBatch {
    /// Keeps every sample whose last loss is not below the mean of all known losses, or unknown, with weight 1; of the
    /// n below it, (1 - r) n rounded down, drawn at random, with weight 1 / (1 - r). The budget is not consulted.
    fn select(&self, engine: &mut Engine, candidates: &Candidates, pass: &mut GradPass) -> Result<Subset> {
        let samples = candidates.samples;
        let losses = match candidates.losses {
            Some(losses) => engine.read(losses)?,
            None => {
                let view = pass.last_layer(engine, samples)?;
                engine.read(&view.losses)?
            }
        };
        if let Some(place) = losses.iter().position(|loss| loss.is_nan()) {
            return Err(PruneError::Invalid(format!(
                "training image {}: its loss is NaN, expected a number: training has diverged",
                samples[place]
            )));
        }
        let known: Vec<f64> =
            losses.iter().filter(|loss| loss.is_finite()).map(|&loss| loss.into()).collect();
        let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
        let scored = || samples.iter().zip(&losses);
        let easy: Vec<u32> =
            scored().filter(|&(_, &loss)| f64::from(loss) < mean).map(|(&sample, _)| sample).collect();
        let hard = scored().filter(|&(_, &loss)| f64::from(loss) >= mean).map(|(&sample, _)| (sample, 1.0));

        let keep_share = 1.0 - self.prune_share;
        let mut drawn = shuffled(candidates.key, &easy);
        drawn.truncate((keep_share * easy.len() as f64) as usize);
        Subset::unnormalised(hard.chain(drawn.iter().map(|&sample| (sample, 1.0 / keep_share))).collect())
    }
}
