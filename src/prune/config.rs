//! `[selection]`: which training samples are trained on, when they are chosen again, and the constants of each method.

use serde::Serialize;

use super::{
    AtomMode, CandidatePasses, Coverage, GradientPart, Greedy, Knowledge, RidgeUnit, Sampling, Score,
    SelectionMethod, StepAlong,
};
use crate::config::{self, ConfigError, Refusal, Section, above};
use crate::names::named;

/// Data pruning.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SelectionConfig {
    pub method: SelectionMethod,
    /// Share of the training samples that a subset holds, to the nearest sample; no default, for no paper's choice
    /// fits all. 1 where the method decides it (`full`, `info-batch`). For `short`, the share of the epochs.
    pub fraction: f64,
    /// Epochs from one selection to the next (R); 0 selects once. 20 as in GRAD-MATCH and GLISTER where a selection costs
    /// an attack on every candidate, 1 where its scores come free from training, 0 for one random draw.
    pub every: usize,
    /// The weights that the candidates are attacked and scored with. Before the first step both are one.
    pub weights: SelectionWeights,
    /// How `random-online` draws.
    pub sampling: Sampling,
    /// The share of a subset that is drawn at random, with weight 1, from what the method leaves over.
    pub random_share: f64,
    /// What `el2n`, `grand` and `easy-core` rank by.
    pub scores: Scores,
    /// kappa of GRAD-MATCH (Killamsetty et al., ICML 2021): the share of the schedule whose cost is spent on epochs
    /// on all samples, before the first selection.
    pub warm_start: f64,
    /// What Adv-GRAD-MATCH chooses among.
    pub mode: AtomMode,
    /// Draws that the target of Adv-GRAD-MATCH is the mean of: the candidates as they are, and then so many more with crop,
    /// flip and attack drawn anew. Each costs a pass over all candidates.
    pub target_draws: usize,
    /// The regularisation lambda of Adv-GRAD-MATCH: 0.05 of the mean squared norm of its atoms is about GRAD-MATCH's 0.5,
    /// which is added to the Gram matrix as it is (`ridge_unit = "absolute"`) and means another thing for every network.
    /// The error of the subset's gradient with each ridge stands in `prune::grad_match`.
    pub ridge: f64,
    pub ridge_unit: RidgeUnit,
    /// A pursuit of Adv-GRAD-MATCH ends where its residual is this share of its target; 1e-4 in GRAD-MATCH's library.
    pub tolerance: f64,
    /// How Adv-GLISTER follows its gain.
    pub greedy: Greedy,
    /// Updates of the held-out gradient with `greedy = "rounds"`; 15 in GLISTER's library.
    pub rounds: usize,
    /// eta of Adv-GLISTER, the step of the last layer along the gradient of the subset, in units of 1 / mean(|h'|^2 + 1);
    /// absent ("learning-rate"): the recipe's learning rate as it is, GLISTER's choice (Killamsetty et al., AAAI 2021).
    #[serde(serialize_with = "config::learning_rate")]
    pub step_size: Option<f64>,
    /// Whether that step is along the mean gradient of the subset or, GLISTER's choice, along their sum, which saturates the
    /// softmax after some hundred picks.
    pub step_along: StepAlong,
    /// The gradients that Adv-GLISTER works with; GLISTER's configurations for CIFAR take those of the bias alone.
    pub gradient: GradientPart,
    /// Share of the validation images that Adv-GLISTER chooses by; the others choose the best epoch.
    pub held_out_share: f64,
    /// Scale of the Gumbel noise on the scores of rankings and the gains of Adv-GLISTER, in standard deviations of these
    /// (arXiv 2302.01801). 0 is the top-k as published, which collects alike images and collapses when repeated.
    pub temperature: f64,
    /// Whether rankings and Adv-GLISTER take of each class its share, by largest remainder; not so as published.
    pub class_quotas: bool,
    /// Whether rankings and Adv-GLISTER weigh a sample by 1 / p, with p the probability of its choice; else by 1.
    pub importance_weights: bool,
    /// Whether each selection also tells the error of its gradient on a second draw of augmentation and attack: that attacks
    /// every candidate once more.
    pub holdout_draw: bool,
    /// The share of the easy samples that InfoBatch leaves out (Qin et al., ICLR 2024: r = 0.5).
    pub prune_share: f64,
    /// The last share of the schedule that is trained on all samples, to the earlier whole epoch: 1 - delta = 0.125 for
    /// InfoBatch (the same paper), 0 for the others.
    pub full_share: f64,
}

named! {
    /// Weights of the network.
    pub enum SelectionWeights {
        Live = "live",
        /// Their moving average, which `optimizer.average_decay` keeps.
        Average = "average",
    }
}

named! {
    /// What the score of a sample is.
    pub enum Scores {
        /// Its mean over training: EL2N and last-layer GraNd of each of its adversarial images, from the logits and features of the
        /// train pass, free; of EasyCore, whose gradients no step of training makes, over the selections.
        Accumulated = "accumulated",
        /// What the network gives at the moment of the selection, for all candidates.
        Snapshot = "snapshot",
    }
}

impl SelectionMethod {
    /// Whether subsets are chosen at all, during training.
    pub fn selects(self) -> bool {
        match self.row().coverage {
            Coverage::All | Coverage::FewerEpochs => false,
            Coverage::Fraction | Coverage::Own { .. } => true,
        }
    }

    /// Whether the recipe's `fraction` decides how much is trained on.
    pub fn has_fraction(self) -> bool {
        match self.row().coverage {
            Coverage::All | Coverage::Own { .. } => false,
            Coverage::FewerEpochs | Coverage::Fraction => true,
        }
    }

    /// Whether it chooses a subset of a given size by what it knows: then chance may choose a part of it.
    pub fn is_informed(self) -> bool {
        matches!(self.row().coverage, Coverage::Fraction) && self.row().knowledge != Knowledge::Nothing
    }

    /// Epochs from one selection to the next, where the recipe does not say.
    pub fn default_every(self, scores: Scores) -> usize {
        match self.row().knowledge {
            // As often as training scores the samples.
            Knowledge::LastLayerScore(_) if scores == Scores::Accumulated => 1,
            _ => self.row().every,
        }
    }
}

impl SelectionConfig {
    pub(crate) fn read(mut section: Section) -> Result<Self, ConfigError> {
        let method: SelectionMethod = section.name("method", Some(SelectionMethod::Full))?;
        let fraction = (!method.has_fraction()).then_some(1.0);
        let warm_start = if matches!(method.row().coverage, Coverage::FewerEpochs) { 1.0 } else { 0.0 };
        let scores = section.name("scores", Some(Scores::Accumulated))?;
        let selection = Self {
            method,
            fraction: section.number("fraction", above(0.0, 1.0), fraction)?,
            every: section.integer("every", 0..=100_000, Some(method.default_every(scores)))?,
            weights: section.name("weights", Some(SelectionWeights::Live))?,
            sampling: section.name("sampling", Some(Sampling::Permutation))?,
            random_share: section.number("random_share", 0.0..1.0, Some(0.0))?,
            scores,
            warm_start: section.number("warm_start", 0.0..=1.0, Some(warm_start))?,
            mode: section.name("mode", Some(AtomMode::PerClass))?,
            target_draws: section.integer("target_draws", 1..=100, Some(1))?,
            ridge: section.number("ridge", 0.0..=1e9, Some(0.05))?,
            ridge_unit: section.name("ridge_unit", Some(RidgeUnit::Relative))?,
            tolerance: section.number("tolerance", 0.0..1.0, Some(1e-4))?,
            greedy: section.name("greedy", Some(Greedy::Rounds))?,
            rounds: section.integer("rounds", 1..=1_000_000, Some(15))?,
            step_size: section.number_or("step_size", "learning-rate", above(0.0, 1e6), Some(10.0))?,
            step_along: section.name("step_along", Some(StepAlong::Mean))?,
            gradient: section.name("gradient", Some(GradientPart::LastLayer))?,
            held_out_share: section.number("held_out_share", above(0.0, 1.0), Some(0.5))?,
            temperature: section.number("temperature", 0.0..=1e6, Some(1.0))?,
            class_quotas: section.boolean("class_quotas", true)?,
            importance_weights: section.boolean("importance_weights", false)?,
            holdout_draw: section.boolean("holdout_draw", false)?,
            prune_share: section.number("prune_share", 0.0..1.0, Some(0.5))?,
            full_share: section.number("full_share", 0.0..=1.0, Some(method.row().full_share))?,
        };
        section.finish(selection, Self::validate)
    }

    /// Refuses values that the method does not work with.
    pub fn validate(&self) -> Result<(), Refusal> {
        let method = self.method;
        let fixed = |key: &str, actual: f64, expected: f64, why: &str| match actual == expected {
            true => Ok(()),
            false => Err(Refusal::new(key, actual, format!("{expected}: {method} {why}"))),
        };
        if !method.has_fraction() {
            fixed("fraction", self.fraction, 1.0, "decides itself how many samples it keeps")?;
            fixed("warm_start", self.warm_start, 0.0, "has no fraction that sets its length")?;
        } else if !method.selects() {
            fixed("warm_start", self.warm_start, 1.0, "trains on all samples throughout")?;
        }
        if !method.selects() {
            fixed("full_share", self.full_share, 0.0, "trains on all samples throughout")?;
            fixed("every", self.every as f64, 0.0, "selects nothing")?;
        }
        if !method.is_informed() {
            fixed("random_share", self.random_share, 0.0, "makes no choice to mix with chance")?;
        }
        if self.importance_weights && self.temperature == 0.0 {
            let expected = "above 0: a choice without noise has no probabilities to weigh by";
            return Err(Refusal::new("temperature", 0, expected));
        }
        (method.row().check)(self)
    }

    /// Share of the validation images that the selection uses up.
    pub fn held_out_share(&self) -> f64 {
        if self.method.row().holds_out { self.held_out_share } else { 0.0 }
    }

    /// How many of `samples` a subset holds.
    pub fn budget(&self, samples: usize) -> usize {
        ((self.fraction * samples as f64).round() as usize).min(samples)
    }

    /// How many of a subset of `budget` samples are drawn at random, to the nearest.
    pub fn random_part(&self, budget: usize) -> usize {
        (self.random_share * budget as f64).round() as usize
    }

    /// The score that the selections rank by, where that is a mean over training.
    pub fn mean_score(&self) -> Option<Score> {
        let score = match self.method.row().knowledge {
            Knowledge::LastLayerScore(score) => score,
            Knowledge::InputGradient => Score::InputGradient,
            Knowledge::Nothing | Knowledge::LastLoss | Knowledge::LastLayerGradient => return None,
        };
        (self.scores == Scores::Accumulated).then_some(score)
    }

    /// Whether the mean score over training ranks, and nothing is measured for a selection once training has begun.
    pub fn scored_by_training(&self) -> bool {
        let from_passes = matches!(self.method.row().knowledge, Knowledge::LastLayerScore(_));
        from_passes && self.scores == Scores::Accumulated
    }

    /// What a selection passes of each candidate, where `scored` says whether training has left a loss and a score of them.
    pub fn candidate_passes(&self, scored: bool) -> CandidatePasses {
        let known = match self.method.row().knowledge {
            Knowledge::Nothing => true,
            Knowledge::InputGradient => return CandidatePasses::InputGradient,
            Knowledge::LastLoss => scored,
            Knowledge::LastLayerScore(_) => scored && self.scored_by_training(),
            Knowledge::LastLayerGradient => false,
        };
        if known { CandidatePasses::None } else { CandidatePasses::Attack }
    }

    /// Whether a selection attacks the candidates.
    pub fn attacks_candidates(&self, scored: bool) -> bool {
        self.candidate_passes(scored) == CandidatePasses::Attack
    }
}
