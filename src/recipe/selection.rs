//! `[selection]`: which training samples are trained on, when they are chosen again, and the constants of each method.
//!
//! Checked by tests/recipes.rs. Called by the recipe; used by `prune` and by the [`super::Timeline`].

use serde::Serialize;

use super::reader::{Section, above};
use super::{BatchNorm, Method, Recipe, RecipeError, value};
use crate::data::order;
use crate::names::named;

/// Data pruning.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Selection {
    pub method: SelectionMethod,
    /// Share of the training samples that a subset holds, to the nearest sample; no default, for no paper's choice
    /// fits all. 1 where the method decides it (`full`, `info-batch`). For `short`, the share of the epochs.
    pub fraction: f64,
    /// Epochs from one selection to the next (R); 0 selects once. 20 as in GRAD-MATCH and GLISTER where a selection costs
    /// an attack on every candidate, 1 where its scores come free from training, 0 for one random draw.
    pub every: usize,
    /// The weights that the candidates are attacked and judged with. Before the first step both are one.
    pub weights: SelectionWeights,
    /// How `random-online` draws.
    pub sampling: Sampling,
    /// The share of a subset that is drawn at random, with weight 1, from what the method leaves over.
    pub random_share: f64,
    /// What `el2n`, `grand` and `easy-core` rank by.
    pub scores: Scores,
    /// kappa of GRAD-MATCH (Killamsetty et al., ICML 2021): the share of the schedule whose cost is spent on epochs
    /// on all samples, before the first selection. See [`super::Timeline`].
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
    #[serde(serialize_with = "value::learning_rate")]
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

/// A value of the recipe that a method cannot work with.
pub struct Refusal {
    pub key: &'static str,
    pub met: &'static str,
    pub wanted: String,
}

named! {
    /// Ways to choose the training samples.
    pub enum SelectionMethod {
        /// All of them.
        Full = "full",
        /// All of them, for `fraction` of the epochs under the same learning-rate shape: what pruning must beat.
        Short = "short",
        /// A random subset, drawn once.
        Random = "random",
        /// A random subset, drawn again and again (Okanovic et al. 2024: RS2).
        RandomOnline = "random-online",
        /// A random subset, drawn once, of each class in proportion.
        ClassBalanced = "class-balanced",
        /// The largest last adversarial losses in training; this ranking and those below with noise and class quotas.
        LossRank = "loss-rank",
        /// A random half of the easy samples left out, the other half weighted up (Qin et al. 2024).
        InfoBatch = "info-batch",
        /// The largest error norms of the adversarial images (Paul et al. 2021).
        El2n = "el2n",
        /// The largest gradient norms of the last layer on the adversarial images. GraNd (Paul et al. 2021) is the norm over all
        /// layers, with which this one correlates by 0.23.
        GraNd = "grand",
        /// The smallest input-gradient norms of the clean images (EasyCore).
        EasyCore = "easy-core",
        /// A weighted subset whose last-layer gradient matches that of all (Li et al. 2023).
        AdvGradMatch = "adv-grad-match",
        /// The subset whose step lowers the loss of held-out images most (Li et al. 2023).
        AdvGlister = "adv-glister",
    }
}

named! {
    /// What the atoms of a pursuit are.
    pub enum AtomMode {
        /// Random batches: an atom is the gradient sum of one (its mean, but for the scale), and every sample of a chosen
        /// batch has its weight.
        PerBatch = "per-batch",
        /// Samples, with a pursuit for each class that matches the gradient sum of that class.
        PerClass = "per-class",
        /// Samples, with one pursuit over all.
        PerSample = "per-sample",
    }
}

named! {
    /// What Adv-GRAD-MATCH's ridge is a multiple of.
    pub enum RidgeUnit {
        /// The mean squared norm of the atoms of a pursuit.
        Relative = "relative",
        /// 1: the number that GRAD-MATCH adds to the Gram matrix.
        Absolute = "absolute",
    }
}

named! {
    /// Which gradient of the picked samples Adv-GLISTER's step follows.
    pub enum StepAlong {
        Mean = "mean",
        Sum = "sum",
    }
}

named! {
    /// The parameters whose gradients Adv-GLISTER works with.
    pub enum GradientPart {
        /// Weight and bias of the last layer.
        LastLayer = "last-layer",
        /// Its bias alone, whose gradient is that of the logits.
        Bias = "bias",
    }
}

named! {
    /// How Adv-GLISTER follows its gain.
    pub enum Greedy {
        /// The best k / rounds candidates at once, then a new held-out gradient.
        Rounds = "rounds",
        /// The best of a random pool of (n / k) ln(1 / 0.01), then a new held-out gradient (Mirzasoleiman et al. 2015).
        Stochastic = "stochastic",
    }
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
    /// How random subsets follow one another.
    pub enum Sampling {
        /// The next stretch of one permutation, round and round: every sample once in every 1 / fraction draws (RS2 without
        /// replacement).
        Permutation = "permutation",
        /// Each draw for itself.
        Independent = "independent",
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
        !matches!(self, Self::Full | Self::Short)
    }

    /// Whether the recipe's `fraction` decides the size of a subset.
    pub fn has_fraction(self) -> bool {
        !matches!(self, Self::Full | Self::InfoBatch)
    }

    /// Whether a part of a subset may be drawn at random: the rest has a method and a number of its own.
    fn has_random_share(self) -> bool {
        matches!(
            self,
            Self::LossRank
                | Self::El2n
                | Self::GraNd
                | Self::EasyCore
                | Self::AdvGradMatch
                | Self::AdvGlister
        )
    }

    /// Epochs from one selection to the next, where the recipe does not say.
    pub fn default_every(self, scores: Scores) -> usize {
        match self {
            Self::Full | Self::Short | Self::Random | Self::ClassBalanced => 0,
            Self::RandomOnline | Self::LossRank | Self::InfoBatch => 1,
            Self::El2n | Self::GraNd if scores == Scores::Accumulated => 1,
            Self::El2n | Self::GraNd | Self::EasyCore | Self::AdvGradMatch | Self::AdvGlister => 20,
        }
    }
}

impl Selection {
    pub(super) fn read(mut section: Section) -> Result<Self, RecipeError> {
        let method: SelectionMethod = section.name("method", Some(SelectionMethod::Full))?;
        let short = method == SelectionMethod::Short;
        let fraction = (!method.has_fraction()).then_some(1.0);
        let full_share = if method == SelectionMethod::InfoBatch { 0.125 } else { 0.0 };
        let scores = section.name("scores", Some(Scores::Accumulated))?;
        let selection = Self {
            method,
            fraction: section.number("fraction", above(0.0, 1.0), fraction)?,
            every: section.integer("every", 0..=100_000, Some(method.default_every(scores)))?,
            weights: section.name("weights", Some(SelectionWeights::Live))?,
            sampling: section.name("sampling", Some(Sampling::Permutation))?,
            random_share: section.number("random_share", 0.0..1.0, Some(0.0))?,
            scores,
            warm_start: section.number("warm_start", 0.0..=1.0, Some(if short { 1.0 } else { 0.0 }))?,
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
            full_share: section.number("full_share", 0.0..=1.0, Some(full_share))?,
        };
        let fixed = |key: &str, met: f64, wanted: f64, why: &str| match met == wanted {
            true => Ok(()),
            false => Err(section.value_error(key, met, format!("{wanted}: {method} {why}"))),
        };
        if !method.has_fraction() {
            fixed("fraction", selection.fraction, 1.0, "decides itself how many samples it keeps")?;
            fixed("warm_start", selection.warm_start, 0.0, "has no fraction that sets its length")?;
        }
        if short {
            fixed("warm_start", selection.warm_start, 1.0, "trains on all samples throughout")?;
        }
        if !method.selects() {
            fixed("full_share", selection.full_share, 0.0, "trains on all samples throughout")?;
        }
        if !method.has_random_share() {
            fixed("random_share", selection.random_share, 0.0, "makes no choice to mix with chance")?;
        }
        match method {
            SelectionMethod::Full | SelectionMethod::Short => {
                fixed("every", selection.every as f64, 0.0, "selects nothing")?;
            }
            SelectionMethod::Random => {
                fixed("every", selection.every as f64, 0.0, "draws once; \"random-online\" draws again")?;
            }
            SelectionMethod::RandomOnline if selection.every == 0 => {
                let wanted = "1 at least: random-online draws again; \"random\" draws once";
                return Err(section.value_error("every", 0, wanted));
            }
            _ => {}
        }
        if selection.importance_weights {
            if selection.temperature == 0.0 {
                let wanted = "above 0: a choice without noise has no probabilities to weigh by";
                return Err(section.value_error("temperature", 0, wanted));
            }
            if method == SelectionMethod::AdvGlister && selection.greedy == Greedy::Stochastic {
                let wanted = "\"rounds\": the probabilities of a choice from random pools are not known";
                return Err(section.value_error("greedy", "\"stochastic\"", wanted));
            }
        }
        section.finish()?;
        Ok(selection)
    }

    /// Share of the validation images that the selection uses up.
    pub fn held_out_share(&self) -> f64 {
        if self.method == SelectionMethod::AdvGlister { self.held_out_share } else { 0.0 }
    }

    /// How many of `samples` a subset holds.
    pub fn budget(&self, samples: usize) -> usize {
        ((self.fraction * samples as f64).round() as usize).min(samples)
    }

    /// How many of a subset of `budget` samples are drawn at random, to the nearest.
    pub fn random_part(&self, budget: usize) -> usize {
        (self.random_share * budget as f64).round() as usize
    }

    /// Whether the mean score over training ranks, and nothing is measured for a selection once training has begun.
    pub fn scored_by_training(&self) -> bool {
        let from_passes = matches!(self.method, SelectionMethod::El2n | SelectionMethod::GraNd);
        from_passes && self.scores == Scores::Accumulated
    }

    /// Whether a selection attacks the candidates, where `scored` says whether training has left a loss and a score of them.
    pub fn attacks_candidates(&self, scored: bool) -> bool {
        match self.method {
            SelectionMethod::AdvGradMatch | SelectionMethod::AdvGlister => true,
            SelectionMethod::El2n | SelectionMethod::GraNd => !(scored && self.scored_by_training()),
            SelectionMethod::LossRank | SelectionMethod::InfoBatch => !scored,
            _ => false,
        }
    }

    /// Refuses what does not go with the rest of the recipe. `train` samples are left beside the validation ones.
    pub(super) fn check(&self, recipe: &Recipe, train: usize, root: &Section) -> Result<(), RecipeError> {
        let method = self.method;
        if method.selects() && self.budget(train) == 0 {
            let wanted = format!("{} at least, for one sample of {train}", 0.5 / train as f64);
            return Err(root.value_error("selection.fraction", self.fraction, wanted));
        }
        let per_batch = method == SelectionMethod::AdvGradMatch && self.mode == AtomMode::PerBatch;
        if per_batch && self.budget(train) < recipe.batch {
            let wanted = format!("{} at least, for one batch of {train}", recipe.batch as f64 / train as f64);
            return Err(root.value_error("selection.fraction", self.fraction, wanted));
        }
        let chosen = self.budget(train) - self.random_part(self.budget(train));
        let least = if per_batch { recipe.batch } else { 1 };
        if self.random_share > 0.0 && chosen < least {
            let wanted =
                format!("so little that {method} chooses {least} of {} at least", self.budget(train));
            return Err(root.value_error("selection.random_share", self.random_share, wanted));
        }
        if self.weights == SelectionWeights::Average && recipe.optimizer.average_decay.is_none() {
            let wanted = "\"live\" where optimizer.average_decay keeps no average";
            return Err(root.value_error("selection.weights", "\"average\"", wanted));
        }
        let validation = recipe.data.validation;
        let held_out = order::held_out(validation, self.held_out_share());
        if method == SelectionMethod::AdvGlister && (held_out == 0 || held_out == validation) {
            let wanted = format!(
                "more: {method} chooses by the loss of {held_out} of them (selection.held_out_share), and the best epoch by \
                 the others"
            );
            return Err(root.value_error("data.validation", validation, wanted));
        }
        // A run that never selects attacks no candidates either.
        let scored = recipe.timeline().first_selection() != Some(0);
        match self.attack_refused(recipe, scored) {
            Some(Refusal { key, met, wanted }) => Err(root.value_error(key, format!("\"{met}\""), wanted)),
            None => Ok(()),
        }
    }

    /// Why the attack cannot be made on the candidates, where the method needs that. `scored` says whether training has
    /// left a loss of them.
    pub fn attack_refused(&self, recipe: &Recipe, scored: bool) -> Option<Refusal> {
        let method = match self.attacks_candidates(scored) {
            true => self.method.name(),
            false if self.holdout_draw && self.method.selects() => "selection.holdout_draw",
            false => return None,
        };
        if recipe.attack.batch_norm != BatchNorm::Eval {
            let wanted =
                format!("\"eval\": {method} attacks the candidates, which must not move the statistics");
            let met = recipe.attack.batch_norm.name();
            return Some(Refusal { key: "attack.batch_norm", met, wanted });
        }
        if recipe.objective.method == Method::Free {
            let wanted =
                format!("another: {method} attacks candidates, and the attack of free is that of a place");
            return Some(Refusal { key: "objective.method", met: "free", wanted });
        }
        None
    }
}
