//! Data pruning: which samples the next epochs train on, and with which weights.
//!
//! Every way to choose is a [`Selection`]: candidates in, a weighted [`Subset`] out. What it must know about the
//! candidates, it asks of a [`GradPass`]: last-layer gradients on the training attack, or input-gradient norms. A new
//! one is one more file here with its row, and one line in the table [`SelectionMethod`]. [`SelectionRun`] makes one outside of training.

pub mod atoms;
pub mod cholesky;
mod config;
mod diagnosis;
pub mod factored;
mod file;
mod glister;
mod grad_match;
mod grad_pass;
pub mod gram;
mod info_batch;
mod mean_scores;
pub mod pursuit;
mod random;
mod ranking;
mod row;
mod session;
mod subset;
mod top_k;

pub use config::{Scores, SelectionConfig, SelectionWeights};
pub use diagnosis::{Diagnosis, HoldoutDraw, residual};
pub use glister::{Glister, GradientPart, Greedy, StepAlong, StepSize};
pub use grad_match::{AtomMode, GradMatch, RidgeUnit};
pub use grad_pass::{GradPass, GradPassSeconds, LastLayerView};
pub use info_batch::InfoBatch;
pub use mean_scores::MeanScores;
pub use random::{All, PartlyRandom, Random, RandomOnline, Sampling};
pub use ranking::{Ranking, Score};
pub use row::{CandidatePasses, Coverage, Knowledge, SelectionRow, Setting};
pub use session::{Chosen, SelectionRun};
pub use subset::Subset;
pub use top_k::TopK;

use crate::data::DataError;
use crate::data::order::quotas;
use crate::engine::{self, Engine, Tensor};
use crate::names::table;
use crate::ops::{GatherRows, GradientSum, LastLayerGradients, Term};
use crate::philox::Key;
use crate::recipe::Recipe;

table! {
    /// Ways to choose the training samples.
    pub enum SelectionMethod: SelectionRow {
        Full = random::FULL,
        Short = random::SHORT,
        Random = random::RANDOM,
        RandomOnline = random::RANDOM_ONLINE,
        ClassBalanced = random::CLASS_BALANCED,
        LossRank = ranking::LOSS_RANK,
        InfoBatch = info_batch::ROW,
        El2n = ranking::EL2N,
        GraNd = ranking::GRAND,
        EasyCore = ranking::EASY_CORE,
        AdvGradMatch = grad_match::ROW,
        AdvGlister = glister::ROW,
    }
}

/// A way to choose samples. It keeps no state: the same candidates, weights and key give the same subset.
pub trait Selection {
    /// Chooses among `candidates`.
    fn select(&self, engine: &mut Engine, candidates: &Candidates, pass: &mut GradPass) -> Result<Subset>;
}

/// The selection of a configuration in a run.
pub fn build(config: &SelectionConfig, setting: &Setting) -> Box<dyn Selection> {
    let choice = (config.method.row().new)(config, setting);
    match config.random_share > 0.0 {
        true => Box::new(PartlyRandom { config: config.clone(), choice }),
        false => choice,
    }
}

/// Chooses among `candidates` as the recipe has it.
///
/// # Errors
/// [`PruneError::Invalid`] where nothing is chosen; those of the selection.
pub fn choose(
    engine: &mut Engine,
    recipe: &Recipe,
    candidates: &Candidates,
    pass: &mut GradPass,
) -> Result<Subset> {
    let subset = recipe.new_selection().select(engine, candidates, pass)?;
    if subset.is_empty() {
        let (method, count) = (recipe.selection.method, candidates.samples.len());
        let reason = format!("{method} chose none of {count} samples, expected 1 at least");
        return Err(PruneError::Invalid(reason));
    }
    Ok(subset)
}

/// What there is to choose from.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// Positions in the image set, ascending; they key all random numbers.
    pub samples: &'a [u32],
    /// The class of each.
    pub labels: &'a [u32],
    pub classes: usize,
    /// Positions of images that are held out of training, for methods that choose by them.
    pub held_out: &'a [u32],
    /// How many samples to choose, at most.
    pub budget: usize,
    /// The last adversarial loss of each candidate in training, infinite where there is none yet; on the device.
    pub losses: Option<&'a Tensor<f32>>,
    /// The mean score of each candidate over training, the first rank to the largest; where absent, scores are measured.
    pub scores: Option<&'a [f32]>,
    /// Keys the draws of this selection.
    pub key: Key,
}

impl Candidates<'_> {
    /// The budget divided among the classes in proportion to their candidates, by largest remainder.
    pub fn class_budgets(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes];
        for &label in self.labels {
            counts[label as usize] += 1;
        }
        quotas(&counts, self.budget.min(self.samples.len()))
    }
}

/// `sum_i w_i g_i` as one vector, w = 1 where absent.
fn sum(
    engine: &mut Engine,
    gradients: &LastLayerGradients,
    weights: Option<&Tensor<f64>>,
) -> Result<Tensor<f64>> {
    let network = engine.network();
    let sum = engine.alloc("sum of gradients", network.classes * (network.features() + 1))?;
    engine.run(&GradientSum { gradients, weights, sum: &sum })?;
    Ok(sum)
}

/// The gradients at `places`, compacted.
fn part(engine: &mut Engine, gradients: &LastLayerGradients, places: &[u32]) -> Result<LastLayerGradients> {
    let rows = engine.upload("places of candidates", places)?;
    let mut compact = |from: &Tensor<f32>| {
        let row = from.len() / gradients.len;
        let to = engine.alloc("factors of some candidates", places.len() * row)?;
        engine.run(&GatherRows::new(from, &rows, &to)).map(|()| to)
    };
    let terms = gradients.terms.iter().map(|term| {
        Ok(Term { logit_gradient: compact(&term.logit_gradient)?, features: compact(&term.features)? })
    });
    Ok(LastLayerGradients { terms: terms.collect::<Result<_>>()?, len: places.len() })
}

/// Result of a selection.
pub type Result<T, E = PruneError> = std::result::Result<T, E>;

/// Why a selection failed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    #[error("{0}")]
    Engine(#[source] engine::Error),
    #[error(transparent)]
    Data(#[from] DataError),
    /// The request cannot be met: a sentence that names the thing, the actual value and the expected one.
    #[error("{0}")]
    Invalid(String),
    /// The user asked to stop.
    #[error("interrupted")]
    Stopped,
}

impl From<engine::Error> for PruneError {
    fn from(error: engine::Error) -> Self {
        match error {
            engine::Error::Stopped => Self::Stopped,
            error => Self::Engine(error),
        }
    }
}
