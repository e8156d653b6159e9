//! The cost model: passes of images through the network, by which a run's cost can be told without a clock.
//!
//! Unit: the forward pass of one image; the backward pass to the activations is as much again, and so is that to the weights.
//!
//! | work | passes an image |
//! |---|---|
//! | training on a batch | 3 (forward, backward twice), 6 with a clean pass and the adversarial one (TRADES, MART); times the gradients of a minibatch |
//! | a sign step | 2; 0 for Free-AT, whose steps come with its train passes |
//! | the clean forward before the attack | 1, where TRADES needs its target or BulletTrain its scores |
//! | BulletTrain's forward of what it attacked | 1 for each attacked image; 0 for Free-AT and standard training |
//! | a selection that attacks its candidates | for each (and each held-out image of Adv-GLISTER) the attack, and a forward of what the loss passes: 1 or 2; times the draws of Adv-GRAD-MATCH's target |
//! | a selection by input gradients | 2 for each candidate |
//! | any other selection | 0 |
//!
//! Algebra on the host, normalisations, the optimizer and the algorithms of the selections are left out. What a method passes
//! stands in its row of `objective`, `accelerate` and `prune`.

use serde::{Deserialize, Serialize};

use crate::data::order::held_out;
use crate::objective::AttackKind;
use crate::prune::{CandidatePasses, Coverage};
use crate::recipe::Recipe;
use crate::train::Stage;
use crate::train::metrics::EpochMetrics;

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
        let (prices, epoch_schedule) = (Prices::of_recipe(recipe), recipe.epoch_schedule());
        let mut cost = Self::default();
        for epoch in epochs {
            let attack = prices.attack(epoch.steps, epoch.attacked);
            cost.epochs += 1;
            cost.images += epoch.images;
            cost.attack_steps += epoch.images * epoch.steps;
            cost.attack_passes += epoch.images * attack;
            let gradients = recipe.objective.gradients(epoch_schedule.schedule_epoch(epoch.epoch));
            cost.train_passes += epoch.images * prices.train * gradients as f64;
            if epoch.selects {
                cost.selections += 1;
                cost.select_passes += selection(recipe, epoch.epoch > 0, attack, prices.forwards);
            }
        }
        cost
    }

    /// What a recipe will cost: the steps of an acceleration and the samples that a selection keeps by itself are those of
    /// their rows, everything else is known.
    pub fn predicted(recipe: &Recipe) -> Self {
        let (epoch_schedule, attack) = (recipe.epoch_schedule(), recipe.full_attack());
        let step_share = recipe.accelerate.method.row().step_share;
        let samples = recipe.data.training_samples();
        let subset = match recipe.selection.method.row().coverage {
            Coverage::All | Coverage::FewerEpochs => samples as f64,
            Coverage::Fraction => recipe.selection.budget(samples) as f64,
            Coverage::Own { share, .. } => samples as f64 * share(&recipe.selection),
        };
        let epochs = (0..epoch_schedule.epochs() as u32).map(|epoch| {
            let stage = epoch_schedule.stage(epoch);
            let steps = match recipe.objective.method.row().attack {
                AttackKind::None => 0.0,
                AttackKind::Steps { .. } => attack.at(epoch).steps as f64,
                AttackKind::Replays { .. } => recipe.objective.replays as f64,
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

/// Passes an image.
struct Prices {
    /// Of one gradient.
    train: f64,
    step: f64,
    /// Before the attack.
    clean: f64,
    /// Of an attacked image, after the attack.
    attacked: f64,
    /// Of the loss.
    forwards: f64,
}

impl Prices {
    fn of_recipe(recipe: &Recipe) -> Self {
        let row = recipe.objective.method.row();
        let groups = recipe.accelerate.method.row().groups;
        let forwards = row.passes.forwards() as f64;
        let (step, attacked) = match row.attack {
            AttackKind::None => (2.0, false),
            AttackKind::Steps { .. } => (2.0, groups),
            // The train passes move the images.
            AttackKind::Replays { .. } => (0.0, false),
        };
        Self {
            train: 3.0 * forwards,
            step,
            clean: f64::from(u8::from(groups || row.ascends.needs_clean_logits())),
            attacked: f64::from(u8::from(attacked)),
            forwards,
        }
    }

    fn attack(&self, steps: f64, attacked: f64) -> f64 {
        self.clean + self.step * steps + self.attacked * attacked
    }
}

/// Passes of one selection; `scored` says whether training has left a loss of each candidate.
fn selection(recipe: &Recipe, scored: bool, attack: f64, forwards: f64) -> f64 {
    let selection = &recipe.selection;
    let candidates = recipe.data.training_samples() as f64;
    let held_out = held_out(recipe.data.validation, selection.held_out_share()) as f64;
    match selection.candidate_passes(scored) {
        CandidatePasses::None => 0.0,
        CandidatePasses::InputGradient => 2.0 * candidates,
        CandidatePasses::Attack => {
            let draws = (selection.method.row().draws)(selection) as f64;
            (candidates + held_out) * (attack + forwards) * draws
        }
    }
}
