//! What a run reports: one flat object an epoch in `metrics.jsonl`, and the figures of its end.
//!
//! Checked by `tests/training.rs`. Written by the training loop through the run folder.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// Wall-clock seconds by what they were spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seconds {
    /// The inner maximisation, its random start and the BatchNorm fold.
    pub attack: f64,
    /// Gather and augmentation, train passes, optimizer.
    pub train: f64,
    /// Selections of the samples to train on; 0 in what was written before there were any.
    #[serde(default)]
    pub select: f64,
    /// Validation.
    pub evaluate: f64,
}

impl Seconds {
    pub fn total(&self) -> f64 {
        self.attack + self.train + self.select + self.evaluate
    }
    /// What counts for a training rate.
    pub fn training(&self) -> f64 {
        self.attack + self.train
    }
}

impl AddAssign for Seconds {
    fn add_assign(&mut self, other: Self) {
        self.attack += other.attack;
        self.train += other.train;
        self.select += other.select;
        self.evaluate += other.evaluate;
    }
}

/// The epoch with the highest robust accuracy on the validation split; the first among equals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Epochs trained at that point: 1 is the first.
    pub epoch: u32,
    pub validation_clean: f64,
    pub validation_robust: f64,
}

/// One line of `metrics.jsonl`. Accuracies are shares in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochMetrics {
    /// 1 is the first epoch.
    pub epoch: u32,
    /// At the last step of the epoch.
    pub learning_rate: f64,
    /// Training images that passed through the epoch.
    pub images: usize,
    /// The subset that was trained on: its size and its share of the training samples; absent in an epoch on all.
    #[serde(default)]
    pub subset_size: Option<usize>,
    #[serde(default)]
    pub subset_fraction: Option<f64>,
    /// Whether that subset was chosen at the start of this epoch.
    #[serde(default)]
    pub selected: bool,
    /// Figures of that subset, as it was chosen: see [`crate::prune::Diagnosis`].
    #[serde(default)]
    pub subset_class_entropy: Option<f64>,
    #[serde(default)]
    pub subset_missing_classes: Option<usize>,
    #[serde(default)]
    pub subset_effective_size: Option<f64>,
    #[serde(default)]
    pub subset_wrong: Option<f64>,
    #[serde(default)]
    pub subset_accuracy_gap: Option<f64>,
    #[serde(default)]
    pub residual: Option<f64>,
    #[serde(default)]
    pub residual_holdout_draw: Option<f64>,
    /// Mean loss of the objective over the epoch, each sample with its weight and at the step that trained on it.
    pub train_loss: f64,
    /// Accuracy on the adversarial images of training (of standard training: the clean ones), likewise.
    pub train_robust: f64,
    /// Accuracy on clean images of the validation split; absent where the epoch was not validated.
    pub validation_clean: Option<f64>,
    /// Accuracy under the recipe's validation protocol.
    pub validation_robust: Option<f64>,
    /// Sign steps an image.
    pub attack_steps_per_sample: f64,
    /// Shares of BulletTrain's groups: not attacked, attacked in full, attacked briefly (standard training attacks none).
    pub outlier_share: Option<f64>,
    pub boundary_share: Option<f64>,
    pub robust_share: Option<f64>,
    /// PGD-5 accuracy on one batch of training images, where catastrophic overfitting is watched.
    pub co_pgd5_accuracy: Option<f64>,
    /// Whether it fell further than the recipe allows since the epoch before.
    pub co_detected: Option<bool>,
    /// Whether this epoch is the best so far.
    pub best: bool,
    pub seconds_attack: f64,
    pub seconds_train: f64,
    #[serde(default)]
    pub seconds_select: f64,
    pub seconds_evaluate: f64,
    /// Images over the seconds of attack and train.
    pub images_per_second: f64,
}
