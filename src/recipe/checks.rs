//! What does not go together, across sections.

use super::Recipe;
use crate::attack::{BatchNorm, Start};
use crate::config::Refusal;
use crate::data::order;
use crate::objective::AttackKind;
use crate::prune::SelectionWeights;

type Outcome = Result<(), Refusal>;

impl Recipe {
    /// Refuses values of different sections that do not go together.
    pub fn validate(&self) -> Outcome {
        let samples = self.data.training_samples();
        if self.batch > samples {
            let expected = format!("at most the {samples} training images");
            return Err(Refusal::new("batch", self.batch, expected));
        }
        let (batch, share) = (self.batch, self.data.extra_share);
        if !self.data.extra.is_empty() && order::extra_part(share, batch) == 0 {
            let expected = format!("enough for one of the {batch} images of a batch, and one of the others");
            return Err(Refusal::new("data.extra_share", share, expected));
        }
        self.validate_attack()?;
        self.validate_acceleration()?;
        self.validate_selection(samples)
    }

    /// What the objective's method prescribes of the attack.
    fn validate_attack(&self) -> Outcome {
        let (method, attack) = (self.objective.method, &self.attack);
        let kind = method.row().attack;
        if let Some(fixed) = kind.fixed_steps() {
            let phases = attack.phases.iter().enumerate();
            let phases = phases.map(|(index, phase)| (format!("attack.phases[{index}].steps"), phase.steps));
            let mut all = [("attack.steps".into(), attack.steps)].into_iter().chain(phases);
            if let Some((key, steps)) = all.find(|&(_, steps)| steps != fixed) {
                return Err(Refusal::new(key, steps, format!("{fixed} for {method}")));
            }
        }
        if kind.is_replayed() && attack.start != Start::None {
            let expected = format!("\"none\" for {method}, which carries its perturbation on");
            return Err(Refusal::of_text("attack.start", attack.start, expected));
        }
        Ok(())
    }

    /// What the acceleration can do for this attack.
    fn validate_acceleration(&self) -> Outcome {
        let (method, accelerate) = (self.objective.method, &self.accelerate);
        if accelerate.method.row().groups && self.attack.batch_norm != BatchNorm::Eval {
            let expected = format!("\"eval\" with {}, which attacks parts of a batch", accelerate.method);
            return Err(Refusal::of_text("attack.batch_norm", self.attack.batch_norm, expected));
        }
        match method.row().attack {
            AttackKind::Replays { .. } if accelerate.super_batch > 1 => {
                let expected = format!("1 for {method}, whose attack is its training steps");
                Err(Refusal::new("accelerate.super_batch", accelerate.super_batch, expected))
            }
            AttackKind::None if accelerate.warmup_accuracy > 0.0 => {
                let expected = format!("0 for {method}, which attacks nothing");
                Err(Refusal::new("accelerate.warmup_accuracy", accelerate.warmup_accuracy, expected))
            }
            AttackKind::None | AttackKind::Steps { .. } | AttackKind::Replays { .. } => Ok(()),
        }
    }

    /// What the selection needs of the rest; `samples` are there to choose from.
    fn validate_selection(&self, samples: usize) -> Outcome {
        let (method, selection) = (self.selection.method, &self.selection);
        let budget = selection.budget(samples);
        let least = (method.row().least)(selection, self.batch);
        let too_small = |share: f64, what: &str| {
            let expected = format!("{share} at least, for one {what} of {samples}");
            Err(Refusal::new("selection.fraction", selection.fraction, expected))
        };
        if method.selects() && budget == 0 {
            return too_small(0.5 / samples as f64, "sample");
        }
        if method.selects() && budget < least {
            return too_small(least as f64 / samples as f64, "batch");
        }
        if selection.random_share > 0.0 && budget - selection.random_part(budget) < least {
            let expected = format!("so little that {method} chooses {least} of {budget} at least");
            return Err(Refusal::new("selection.random_share", selection.random_share, expected));
        }
        if selection.weights == SelectionWeights::Average && self.optimizer.average_decay.is_none() {
            let expected = "\"live\" where optimizer.average_decay keeps no average";
            return Err(Refusal::of_text("selection.weights", selection.weights, expected));
        }
        let validation = self.data.validation;
        let held_out = order::held_out(validation, selection.held_out_share());
        if method.row().holds_out && (held_out == 0 || held_out == validation) {
            let expected = format!(
                "more: {method} chooses by the loss of {held_out} of them (selection.held_out_share), and the best epoch by \
                 the others"
            );
            return Err(Refusal::new("data.validation", validation, expected));
        }
        // A run that never selects attacks no candidates either.
        self.validate_attack_on_candidates(self.epoch_schedule().first_selection() != Some(0))
    }

    /// Refuses an attack that cannot be made on candidates, where the selection needs that. `scored` says whether training has
    /// left a loss of them.
    pub fn validate_attack_on_candidates(&self, scored: bool) -> Outcome {
        let selection = &self.selection;
        let what = match selection.attacks_candidates(scored) {
            true => selection.method.name(),
            false if selection.holdout_draw && selection.method.selects() => "selection.holdout_draw",
            false => return Ok(()),
        };
        if self.attack.batch_norm != BatchNorm::Eval {
            let expected =
                format!("\"eval\": {what} attacks the candidates, which must not move the statistics");
            return Err(Refusal::of_text("attack.batch_norm", self.attack.batch_norm, expected));
        }
        let method = self.objective.method;
        if method.row().attack.is_replayed() {
            let expected =
                format!("another: {what} attacks candidates, and the attack of {method} is that of a place");
            return Err(Refusal::of_text("objective.method", method, expected));
        }
        Ok(())
    }
}
