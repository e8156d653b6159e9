//! Data pruning: which samples the next epochs train on, and with which weights.
//!
//! Every way to choose is a [`Selection`]: candidates in, a weighted [`Subset`] out. What it must know about the
//! candidates, it asks of a [`Survey`]: last-layer gradients after the training attack, or input-gradient norms. A new
//! one is one more file here and one name in the recipe. [`SelectionRun`] makes one outside of training.
//!
//! | file | what it chooses |
//! |---|---|
//! | `random` | all; so many at random, of each class in proportion if wanted; a share of chance in another choice |
//! | `ranking` | by scores: last loss, EL2N, last-layer GraNd, EasyCore's input-gradient norm |
//! | `top_k` | what rankings and Adv-GLISTER make of scores: the best, with noise and class quotas |
//! | `info_batch` | InfoBatch's unbiased random half of the easy samples |
//! | `grad_match` | Adv-GRAD-MATCH: weights whose gradient sum matches that of all |
//! | [`atoms`], [`pursuit`], [`cholesky`] | its atoms on a device, its solver, and the factor that the solver grows |
//! | `glister` | Adv-GLISTER: what lowers the loss of held-out images most |
//! | `diagnosis` | figures of a subset: balance, effective size, accuracy, gradient error |

pub mod atoms;
pub mod cholesky;
mod diagnosis;
mod file;
mod glister;
mod grad_match;
mod info_batch;
mod mean_scores;
pub mod pursuit;
mod random;
mod ranking;
mod session;
mod subset;
mod survey;
mod top_k;

pub use diagnosis::{Diagnosis, HoldoutDraw, residual};
pub use glister::{Glister, StepSize};
pub use grad_match::GradMatch;
pub use info_batch::InfoBatch;
pub use mean_scores::MeanScores;
pub use random::{All, PartlyRandom, Random, Walk};
pub use ranking::{Ranking, Score};
pub use session::{Chosen, SelectionRun};
pub use subset::Subset;
pub use survey::{LastLayerView, Survey};
pub use top_k::TopK;

use crate::data::DataError;
use crate::data::order::quotas;
use crate::engine::{self, Engine, LastLayerGradients, Tensor, Term};
use crate::philox::Key;
use crate::recipe::{Recipe, Sampling, Scores, SelectionMethod};

/// A way to choose samples. It keeps no state: the same candidates, weights and key give the same subset.
pub trait Selection {
    /// Chooses among `candidates`.
    fn select(
        &self,
        engine: &mut dyn Engine,
        candidates: &Candidates,
        survey: &mut Survey,
    ) -> Result<Subset, PruneError>;
}

/// The selection of a recipe.
pub fn of_recipe(recipe: &Recipe) -> Box<dyn Selection> {
    let choice = choice_of_recipe(recipe);
    match recipe.selection.random_share > 0.0 {
        true => Box::new(PartlyRandom { recipe: recipe.selection.clone(), choice }),
        false => choice,
    }
}

/// Chooses among `candidates` as the recipe has it.
///
/// # Errors
/// [`PruneError::Invalid`] where nothing is chosen; those of the selection.
pub fn choose(
    engine: &mut dyn Engine,
    recipe: &Recipe,
    candidates: &Candidates,
    survey: &mut Survey,
) -> Result<Subset, PruneError> {
    let subset = of_recipe(recipe).select(engine, candidates, survey)?;
    if subset.is_empty() {
        let (method, count) = (recipe.selection.method, candidates.samples.len());
        let reason = format!("{method} chose none of {count} samples, expected 1 at least");
        return Err(PruneError::Invalid(reason));
    }
    Ok(subset)
}

/// The score that a recipe's selections rank by, where that is a mean over training.
pub fn mean_score_of_recipe(recipe: &Recipe) -> Option<Score> {
    let score = match recipe.selection.method {
        SelectionMethod::El2n => Score::El2n,
        SelectionMethod::GraNd => Score::GraNd,
        SelectionMethod::EasyCore => Score::InputGradient,
        _ => return None,
    };
    (recipe.selection.scores == Scores::Accumulated).then_some(score)
}

/// The table of selections.
fn choice_of_recipe(recipe: &Recipe) -> Box<dyn Selection> {
    let selection = &recipe.selection;
    let top_k = TopK {
        temperature: selection.temperature,
        class_quotas: selection.class_quotas,
        importance_weights: selection.importance_weights,
    };
    let ranking = |score| Box::new(Ranking { score, top_k });
    match selection.method {
        SelectionMethod::Full | SelectionMethod::Short => Box::new(All),
        SelectionMethod::RandomOnline if selection.sampling == Sampling::Permutation => {
            let first = recipe.timeline().first_selection().unwrap_or(0) as u32;
            Box::new(Walk { first, every: selection.every as u32 })
        }
        SelectionMethod::Random | SelectionMethod::RandomOnline => Box::new(Random { class_balanced: false }),
        SelectionMethod::ClassBalanced => Box::new(Random { class_balanced: true }),
        SelectionMethod::LossRank => ranking(Score::LastLoss),
        SelectionMethod::El2n => ranking(Score::El2n),
        SelectionMethod::GraNd => ranking(Score::GraNd),
        SelectionMethod::EasyCore => ranking(Score::InputGradient),
        SelectionMethod::InfoBatch => Box::new(InfoBatch { prune_share: selection.prune_share }),
        SelectionMethod::AdvGradMatch => Box::new(GradMatch {
            mode: selection.mode,
            ridge: selection.ridge,
            ridge_unit: selection.ridge_unit,
            tolerance: selection.tolerance,
            batch: recipe.batch,
            target_draws: selection.target_draws,
            augment: recipe.data.augmentation(recipe.seed, 0),
        }),
        SelectionMethod::AdvGlister => Box::new(Glister {
            greedy: selection.greedy,
            rounds: selection.rounds,
            top_k,
            gradient: selection.gradient,
            step_along: selection.step_along,
            step: match selection.step_size {
                Some(size) => StepSize::Relative(size),
                None => StepSize::Absolute(recipe.optimizer.learning_rate),
            },
        }),
    }
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

/// The gradients at `places`, compacted.
fn part(
    engine: &mut dyn Engine,
    gradients: &LastLayerGradients,
    places: &[u32],
) -> Result<LastLayerGradients, PruneError> {
    let rows = engine.upload("places of candidates", places)?;
    let mut compact = |from: &Tensor<f32>| {
        let row = from.len() / gradients.len;
        let to = engine.alloc("factors of some candidates", places.len() * row)?;
        engine.gather_rows(from, &rows, row, &to).map(|()| to)
    };
    let terms = gradients.terms.iter().map(|term| {
        Ok(Term { logit_gradient: compact(&term.logit_gradient)?, features: compact(&term.features)? })
    });
    Ok(LastLayerGradients { terms: terms.collect::<Result<_, PruneError>>()?, len: places.len() })
}

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
