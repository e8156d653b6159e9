//! What an epoch gave, as a line of `metrics.jsonl` and as a line for the user.

use super::metrics::{EpochMetrics, Seconds};
use super::overfitting::Watched;
use super::{EpochOutcome, Trainer};
use crate::prune::{Diagnosis, Subset};

/// What was measured after the training of an epoch.
pub(super) struct Measured {
    /// Clean and robust accuracy on the validation images, where they were measured.
    pub validated: Option<(f64, f64)>,
    /// Those of the live weights, where a moving average is kept too.
    pub live: Option<(f64, f64)>,
    /// Whether the epoch is the best so far.
    pub best: bool,
    pub watched: Watched,
}

/// The metrics of the epoch that `trainer` has just finished; `labels` are those of the image set.
pub(super) fn metrics(
    trainer: &Trainer,
    labels: &[u32],
    outcome: &EpochOutcome,
    measured: &Measured,
) -> EpochMetrics {
    let progress = &trainer.progress;
    let images = outcome.order.len();
    let weight = |place: usize| outcome.weights.as_ref().map_or(1.0, |weights| f64::from(weights[place]));
    let (mut total, mut loss, mut right) = (0.0, 0.0, 0.0);
    for (place, &image) in outcome.order.iter().enumerate() {
        let weight = weight(place);
        total += weight;
        loss += weight * f64::from(outcome.samples.losses[place]);
        if outcome.samples.predictions[place] == labels[image as usize] {
            right += weight;
        }
    }
    let subset = trainer.subset();
    let selection = progress.selection.filter(|_| subset.is_some());
    let diagnosis = selection.and_then(|last| last.diagnosis);
    let figure = |figure: fn(Diagnosis) -> Option<f64>| diagnosis.and_then(figure);
    let (attacks, seconds) = (progress.epoch_attacks, progress.epoch_seconds);
    let grouped = attacks.outliers + attacks.boundary + attacks.robust;
    let share = |part: u64| (grouped > 0).then(|| part as f64 / grouped as f64);
    EpochMetrics {
        epoch: progress.epoch + 1,
        learning_rate: outcome.learning_rate,
        images,
        subset_size: subset.map(Subset::len),
        subset_fraction: subset.map(|subset| subset.len() as f64 / trainer.pruning.candidates().len() as f64),
        selected: selection.is_some_and(|last| last.epoch == progress.epoch),
        subset_class_entropy: figure(|diagnosis| Some(diagnosis.class_entropy)),
        subset_missing_classes: diagnosis.map(|diagnosis| diagnosis.missing_classes),
        subset_effective_size: figure(|diagnosis| Some(diagnosis.effective_size)),
        subset_wrong: figure(|diagnosis| Some(diagnosis.wrong)),
        subset_accuracy_gap: figure(|diagnosis| diagnosis.accuracy_gap),
        residual: figure(|diagnosis| diagnosis.residual),
        residual_holdout_draw: figure(|diagnosis| diagnosis.residual_holdout_draw),
        train_loss: loss / total,
        train_robust: right / total,
        validation_clean: measured.validated.map(|(clean, _)| clean),
        validation_robust: measured.validated.map(|(_, robust)| robust),
        validation_live_clean: measured.live.map(|(clean, _)| clean),
        validation_live_robust: measured.live.map(|(_, robust)| robust),
        attack_steps_per_sample: attacks.steps as f64 / attacks.samples.max(1) as f64,
        outlier_share: share(attacks.outliers),
        boundary_share: share(attacks.boundary),
        robust_share: share(attacks.robust),
        co_pgd5_accuracy: measured.watched.accuracy,
        co_detected: measured.watched.accuracy.map(|_| measured.watched.fall.is_some()),
        best: measured.best,
        seconds_attack: seconds.attack,
        seconds_train: seconds.train,
        seconds_select: seconds.select,
        seconds_evaluate: seconds.evaluate,
        seconds_cpu: seconds.cpu,
        images_per_second: images as f64 / seconds.training(),
    }
}

/// The user's line of an epoch of `epochs`; `diagnosis` is that of a subset chosen in it.
pub(super) fn line(metrics: &EpochMetrics, diagnosis: Option<Diagnosis>, epochs: usize) -> String {
    let mut line = format!(
        "epoch {}/{epochs}: loss {:.4}, training robust {:.1} %",
        metrics.epoch,
        metrics.train_loss,
        100.0 * metrics.train_robust
    );
    if let (Some(size), Some(fraction)) = (metrics.subset_size, metrics.subset_fraction) {
        let new = if metrics.selected { "new " } else { "" };
        line += &format!(" of a {new}subset of {size} ({:.1} %", 100.0 * fraction);
        line += &diagnosis.map_or(String::new(), |diagnosis| format!(", {diagnosis}"));
        line += ")";
    }
    if let (Some(outlier), Some(boundary)) = (metrics.outlier_share, metrics.boundary_share) {
        line += &format!(
            ", attack steps {:.1} (outliers {:.0} %, boundary {:.0} %)",
            metrics.attack_steps_per_sample,
            100.0 * outlier,
            100.0 * boundary
        );
    }
    if let (Some(clean), Some(robust)) = (metrics.validation_clean, metrics.validation_robust) {
        let best = if metrics.best { " (best)" } else { "" };
        line += &format!(", validation clean {:.1} %, robust {:.1} %{best}", 100.0 * clean, 100.0 * robust);
    }
    if let (Some(clean), Some(robust)) = (metrics.validation_live_clean, metrics.validation_live_robust) {
        line += &format!(", live weights {:.1} and {:.1} %", 100.0 * clean, 100.0 * robust);
    }
    let Seconds { attack, train, select, evaluate, .. } = metrics.seconds();
    let select = if metrics.selected { format!("select {select:.1}, ") } else { String::new() };
    line + &format!(
        "; {:.1} s (attack {attack:.1}, train {train:.1}, {select}evaluate {evaluate:.1}), {:.0} images/s",
        metrics.seconds().total(),
        metrics.images_per_second
    )
}
