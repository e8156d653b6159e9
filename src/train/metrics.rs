//! What a run reports: one flat object an epoch in `metrics.jsonl`, and the figures of its end.
//!
//! A reader takes what other builds and editors make of a line: keys that it does not know, keys that are missing, blank lines, a
//! byte-order mark. A number that is not finite is null, as JSON has it.

use std::ops::AddAssign;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Wall-clock seconds by what they were spent on, and CPU seconds.
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
    /// CPU seconds of all threads in attack, train and select; 0 in what was written before they were counted.
    #[serde(default)]
    pub cpu: f64,
}

impl Seconds {
    /// By the wall clock.
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
        self.cpu += other.cpu;
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
pub struct EpochMetrics {
    /// 1 is the first epoch.
    pub epoch: u32,
    /// At the last step of the epoch.
    pub learning_rate: f64,
    /// Training images that passed through the epoch.
    pub images: usize,
    /// The subset that was trained on: its size and its share of the training samples; absent in an epoch on all.
    pub subset_size: Option<usize>,
    pub subset_fraction: Option<f64>,
    /// Whether that subset was chosen at the start of this epoch.
    #[serde(default)]
    pub selected: bool,
    /// Figures of that subset, as it was chosen: see [`crate::prune::Diagnosis`].
    pub subset_class_entropy: Option<f64>,
    pub subset_missing_classes: Option<usize>,
    pub subset_effective_size: Option<f64>,
    pub subset_wrong: Option<f64>,
    pub subset_accuracy_gap: Option<f64>,
    pub residual: Option<f64>,
    pub residual_holdout_draw: Option<f64>,
    /// Mean loss of the objective over the epoch, each sample with its weight and at the step that trained on it.
    pub train_loss: f64,
    /// Accuracy on the adversarial images of training (of standard training: the clean ones), likewise.
    pub train_robust: f64,
    /// Accuracy on clean images of the validation split, of the moving average where one is kept; absent where the epoch
    /// was not validated.
    pub validation_clean: Option<f64>,
    /// Accuracy under the recipe's validation protocol.
    pub validation_robust: Option<f64>,
    /// The same two of the live weights, where a moving average is kept too.
    pub validation_live_clean: Option<f64>,
    pub validation_live_robust: Option<f64>,
    /// Sign steps an image; NaN where the line has none.
    #[serde(default = "unknown", deserialize_with = "or_unknown")]
    pub attack_steps_per_sample: f64,
    /// Shares of BulletTrain's groups: not attacked, attacked in full, with a short attack (standard training attacks none).
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
    #[serde(default)]
    pub seconds_cpu: f64,
    /// Images over the seconds of attack and train; NaN where the line has none.
    #[serde(default = "unknown", deserialize_with = "or_unknown")]
    pub images_per_second: f64,
}

impl EpochMetrics {
    pub fn seconds(&self) -> Seconds {
        Seconds {
            attack: self.seconds_attack,
            train: self.seconds_train,
            select: self.seconds_select,
            evaluate: self.seconds_evaluate,
            cpu: self.seconds_cpu,
        }
    }
}

fn unknown() -> f64 {
    f64::NAN
}

fn or_unknown<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_else(unknown))
}

/// The lines of `metrics.jsonl` with their ends.
pub fn lines(bytes: &[u8]) -> impl Iterator<Item = Line<'_>> {
    bytes.split_inclusive(|&byte| byte == b'\n').map(Line)
}

/// One line of `metrics.jsonl`, as it stands there.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a>(pub &'a [u8]);

impl<'a> Line<'a> {
    /// Without what editors put before and after the text.
    pub fn text(self) -> &'a [u8] {
        self.0.strip_prefix("\u{feff}".as_bytes()).unwrap_or(self.0).trim_ascii()
    }

    /// Its epoch and its fields; `None` for anything but an object with an epoch.
    pub fn fields(self) -> Option<(u64, Map<String, Value>)> {
        let fields: Map<String, Value> = serde_json::from_slice(self.text()).ok()?;
        Some((fields.get("epoch")?.as_u64()?, fields))
    }
}

/// `metrics.jsonl` as it was after `epochs` epochs.
#[derive(Debug, PartialEq)]
pub struct RolledBack {
    /// Every line but those of later epochs, byte for byte.
    pub kept: Vec<u8>,
    /// Whether there was a line that is none: it is not kept.
    pub damaged: bool,
}

pub fn roll_back(bytes: &[u8], epochs: u32) -> RolledBack {
    let (mut kept, mut damaged) = (Vec::with_capacity(bytes.len()), false);
    for line in lines(bytes) {
        match line.fields() {
            Some((epoch, _)) if epoch > u64::from(epochs) => continue,
            None if !line.text().is_empty() => {
                damaged = true;
                continue;
            }
            _ => kept.extend(line.0),
        }
    }
    // An editor may have left the last line without an end: the next one must not begin in it.
    if !kept.is_empty() && !kept.ends_with(b"\n") {
        kept.push(b'\n');
    }
    RolledBack { kept, damaged }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The metrics of a run from before there was data pruning.
    const OLDER: &[u8] = include_bytes!("../../results/cifar10-demo/metrics.jsonl");

    #[test]
    fn what_other_builds_wrote_is_kept_byte_for_byte() {
        let epochs = lines(OLDER).count();
        assert_eq!(roll_back(OLDER, epochs as u32), RolledBack { kept: OLDER.to_vec(), damaged: false });
        let three: Vec<u8> = lines(OLDER).take(3).flat_map(|line| line.0).copied().collect();
        assert_eq!(roll_back(OLDER, 3), RolledBack { kept: three, damaged: false });
        for line in lines(OLDER) {
            let metrics: EpochMetrics = serde_json::from_slice(line.text()).unwrap();
            assert!(metrics.attack_steps_per_sample.is_nan() && metrics.images_per_second > 0.0);
        }
    }

    #[test]
    fn only_lines_of_later_epochs_and_damage_go() {
        let one = "\u{feff}{\"epoch\": 1, \"images_per_second\": null, \"of_a_later_build\": [1]}\r\n\n";
        let (two, three) = ("{\"epoch\":2}\n", "{\"epoch\":3}\n");
        let kept = |text: &str, epochs| {
            let rolled = roll_back(text.as_bytes(), epochs);
            (String::from_utf8(rolled.kept).unwrap(), rolled.damaged)
        };
        let all = [one, two, three].concat();
        assert_eq!(kept(&all, 3), (all.clone(), false));
        assert_eq!(kept(&all, 2), ([one, two].concat(), false));
        assert_eq!(kept(&all, 0), ("\n".into(), false), "a blank line is of no epoch");
        // Cut short by a power loss, or no line of ours: the others stay.
        for damage in ["{\"epoch\":4,\"learni", "\0\0\0\0", "[1]\n", "{\"epoch\":-1}\n", "{\"epoch\":null}\n"]
        {
            assert_eq!(kept(&(all.clone() + damage), 3), (all.clone(), true), "{damage}");
            assert_eq!(
                kept(&[one, damage.trim_end(), "\n", two].concat(), 3),
                ([one, two].concat(), true),
                "{damage}"
            );
        }
        assert_eq!(kept(all.trim_end(), 3), (all.clone(), false), "the end of the last line is put back");
    }
}
