//! The cost model: passes of images through the network, by which a run's cost can be told without a clock.
//!
//! Unit: the forward pass of one image; the backward pass to the activations is as much again, and so is that to the weights.
//!
//! | work | passes an image |
//! |---|---|
//! | training on a batch | 3 (forward, backward twice), 6 with a clean pass beside the adversarial one (TRADES, MART); times the replays of Free-AT |
//! | a sign step | 2; 0 for Free-AT, whose steps come with its train passes |
//! | the clean forward before the attack | 1, where TRADES needs its target or BulletTrain its scores |
//! | BulletTrain's look at what it attacked | 1 for each attacked image; 0 for Free-AT and standard training |
//! | a selection that attacks its candidates | for each (and each held-out image of Adv-GLISTER) the attack, and a forward of what the loss passes: 1 or 2; times the draws of Adv-GRAD-MATCH's target |
//! | a selection by input gradients | 2 for each candidate |
//! | any other selection | 0 |
//!
//! Algebra on the host, normalisations, the optimizer and the algorithms of the selections are left out. Called by the table
//! and by the dry run. Checked by `tests/recipes.rs` (against the paper's speed-ups) and `tests/bench_speedup.rs`.

use serde::{Deserialize, Serialize};

use crate::attack::ScheduledPgd;
use crate::data::order::held_out;
use crate::recipe::{Acceleration, Method, Recipe, SelectionMethod, Stage};
use crate::train::metrics::EpochMetrics;

/// Steps an image that BulletTrain is taken to make before it has run, over those of the full attack: what the paper's 5.66x
/// leaves where pruning alone gives 3.44x (4.4 of 10 steps). A network that predicts little right makes far fewer.
pub const BULLET_STEP_SHARE: f64 = 0.44;

/// Share of the samples below the mean loss, of which InfoBatch prunes its share: that of symmetric losses.
pub const EASY_SHARE: f64 = 0.5;

/// What one trained epoch does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpochWork {
    /// Counted from 0.
    pub epoch: u32,
    /// Images that it trains on.
    pub images: f64,
    /// Sign steps an image.
    pub steps: f64,
    /// Share of the images that are attacked at all.
    pub attacked: f64,
    /// Whether a selection comes before it.
    pub selects: bool,
}

/// What a whole run costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Trained epochs.
    pub epochs: usize,
    /// Images trained on, each time counted.
    pub images: f64,
    /// Sign steps on those images.
    pub attack_steps: f64,
    pub selections: usize,
    /// Passes of an image through the network, by what they serve.
    pub attack_passes: f64,
    pub train_passes: f64,
    pub select_passes: f64,
}

impl Cost {
    /// The cost of the epochs of a recipe.
    pub fn of_epochs(recipe: &Recipe, epochs: impl IntoIterator<Item = EpochWork>) -> Self {
        let prices = Prices::of_recipe(recipe);
        let mut cost = Self::default();
        for epoch in epochs {
            let attack = prices.attack(epoch.steps, epoch.attacked);
            cost.epochs += 1;
            cost.images += epoch.images;
            cost.attack_steps += epoch.images * epoch.steps;
            cost.attack_passes += epoch.images * attack;
            cost.train_passes += epoch.images * prices.train;
            if epoch.selects {
                cost.selections += 1;
                cost.select_passes += selection(recipe, epoch.epoch > 0, attack, prices.forwards);
            }
        }
        cost
    }

    /// What a recipe will cost: BulletTrain's steps and InfoBatch's subsets are taken for [`BULLET_STEP_SHARE`] and
    /// [`EASY_SHARE`], everything else is known.
    pub fn predicted(recipe: &Recipe) -> Self {
        let (timeline, attack) = (recipe.timeline(), ScheduledPgd::of_recipe(recipe));
        let step_share = match recipe.accelerate.method {
            Acceleration::None => 1.0,
            Acceleration::BulletTrain => BULLET_STEP_SHARE,
        };
        let samples = training_samples(recipe);
        let subset = match recipe.selection.method {
            SelectionMethod::InfoBatch => samples as f64 * (1.0 - EASY_SHARE * recipe.selection.prune_share),
            _ => recipe.selection.budget(samples) as f64,
        };
        let epochs = (0..timeline.epochs() as u32).map(|epoch| {
            let stage = timeline.stage(epoch);
            let steps = match recipe.objective.method {
                Method::Standard => 0.0,
                Method::Free => recipe.objective.replays as f64,
                _ => attack.at(epoch).steps as f64,
            };
            EpochWork {
                epoch,
                images: if stage == Stage::Whole { samples as f64 } else { subset },
                steps: steps * step_share,
                attacked: 1.0,
                selects: stage == Stage::Subset { select: true },
            }
        });
        Self::of_epochs(recipe, epochs)
    }

    /// What a run did, by its metrics.
    pub fn measured(recipe: &Recipe, metrics: &[EpochMetrics]) -> Self {
        let epochs = metrics.iter().map(|epoch| EpochWork {
            epoch: epoch.epoch - 1,
            images: epoch.images as f64,
            steps: epoch.attack_steps_per_sample,
            attacked: 1.0 - epoch.outlier_share.unwrap_or(0.0),
            selects: epoch.selected,
        });
        Self::of_epochs(recipe, epochs)
    }

    /// All passes.
    pub fn passes(&self) -> f64 {
        self.attack_passes + self.train_passes + self.select_passes
    }
}

/// Training images beside the validation ones.
pub fn training_samples(recipe: &Recipe) -> usize {
    let data = &recipe.data;
    data.train_limit.unwrap_or(data.set.sizes().train) - data.validation
}

/// Passes an image.
struct Prices {
    train: f64,
    step: f64,
    /// Before the attack.
    clean: f64,
    /// Of an attacked image.
    judge: f64,
    /// Of the loss.
    forwards: f64,
}

impl Prices {
    fn of_recipe(recipe: &Recipe) -> Self {
        let method = recipe.objective.method;
        let bullet = recipe.accelerate.method == Acceleration::BulletTrain;
        let forwards = if matches!(method, Method::Trades | Method::Mart) { 2.0 } else { 1.0 };
        Self {
            train: 3.0 * forwards * recipe.objective.replays as f64,
            step: if method == Method::Free { 0.0 } else { 2.0 },
            clean: f64::from(u8::from(bullet || method == Method::Trades)),
            judge: f64::from(u8::from(bullet && !matches!(method, Method::Free | Method::Standard))),
            forwards,
        }
    }

    fn attack(&self, steps: f64, attacked: f64) -> f64 {
        self.clean + self.step * steps + self.judge * attacked
    }
}

/// Passes of one selection; `scored` says whether training has left a loss of each candidate.
fn selection(recipe: &Recipe, scored: bool, attack: f64, forwards: f64) -> f64 {
    let method = recipe.selection.method;
    let candidates = training_samples(recipe) as f64;
    let held_out = held_out(recipe.data.validation, recipe.selection.held_out_share()) as f64;
    match method {
        SelectionMethod::EasyCore => 2.0 * candidates,
        _ if recipe.selection.attacks_candidates(scored) => {
            let draws = match method {
                SelectionMethod::AdvGradMatch => recipe.selection.target_draws as f64,
                _ => 1.0,
            };
            (candidates + held_out) * (attack + forwards) * draws
        }
        _ => 0.0,
    }
}
