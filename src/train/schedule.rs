//! The learning rate, the momentum and the decay of the moving average of each step: pure functions, nothing to save.
//!
//! The tests compare rate and momentum with those that PyTorch's schedulers set (`scripts/make-schedule-fixtures.py`).

use std::f64::consts::PI;

use super::config::{OptimizerConfig, Position, Schedule, Update};

/// What a schedule decides about one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    pub learning_rate: f64,
    pub momentum: f64,
}

/// Length of a run, as its present steps cover it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// Epochs of the schedule.
    pub epochs: usize,
    /// This many steps ...
    pub steps: usize,
    /// ... cover this many epochs of the schedule: 1 but for a warm start (see [`super::EpochSchedule`]).
    pub covered: usize,
}

impl Horizon {
    /// Steps that an epoch of the schedule takes.
    fn steps_per_epoch(self) -> f64 {
        self.steps as f64 / self.covered as f64
    }

    /// Steps that the whole schedule takes.
    fn end(self) -> f64 {
        (self.epochs * self.steps) as f64 / self.covered as f64
    }
}

/// The rates of step `step`, counted from 0 over a whole schedule of `horizon`'s steps.
pub fn rates(schedule: &Schedule, optimizer: &OptimizerConfig, horizon: Horizon, step: usize) -> Rates {
    let peak = optimizer.learning_rate;
    let fixed = |learning_rate| Rates { learning_rate, momentum: optimizer.momentum };
    match schedule {
        Schedule::Constant { warmup_epochs } => fixed(peak * warm_up(*warmup_epochs, horizon, step)),
        Schedule::Step { drops, factor, position, warmup_epochs } => {
            let at = step + usize::from(*position == Position::End);
            let epoch = (at * horizon.covered) as f64 / horizon.steps as f64;
            let passed = drops.iter().filter(|&&drop| epoch >= drop).count();
            fixed(peak * factor.powi(passed as i32) * warm_up(*warmup_epochs, horizon, step))
        }
        Schedule::Cosine { floor, update, warmup_epochs } => {
            let (now, end) = position(*update, horizon, step);
            let warm = *warmup_epochs * end / horizon.epochs as f64;
            // The cosine starts where the warm-up ends.
            let share = if end > warm { ((now - warm) / (end - warm)).clamp(0.0, 1.0) } else { 0.0 };
            let cosine = floor + (1.0 - floor) * (1.0 + (PI * share).cos()) / 2.0;
            fixed(peak * cosine * warm_up(*warmup_epochs, horizon, step))
        }
        Schedule::OneCycle { rise, initial_divisor, final_divisor, update, momentum_range } => {
            let (now, end) = position(*update, horizon, step);
            let initial = peak / initial_divisor;
            let learning_rate = one_cycle(*rise, now, end, [initial, peak, initial / final_divisor]);
            let momentum = match momentum_range {
                Some([low, high]) => one_cycle(*rise, now, end, [*high, *low, *high]),
                None => optimizer.momentum,
            };
            Rates { learning_rate, momentum }
        }
        Schedule::Cyclic { peak_at, momentum_range } => {
            let share = step as f64 / horizon.end();
            let up = if *peak_at > 0.0 { share / peak_at } else { 1.0 };
            let down = if *peak_at < 1.0 { (1.0 - share) / (1.0 - peak_at) } else { 1.0 };
            let height = up.min(down).clamp(0.0, 1.0);
            let momentum = match momentum_range {
                Some([low, high]) => high - (high - low) * height,
                None => optimizer.momentum,
            };
            Rates { learning_rate: peak * height, momentum }
        }
    }
}

/// Decay of the moving average in optimizer step `step`, counted from 0 over the run; `None` where none is kept.
pub fn average_decay(optimizer: &OptimizerConfig, step: u64) -> Option<f64> {
    let decay = optimizer.average_decay?;
    let first = (1 + step) as f64 / (10 + step) as f64;
    Some(if optimizer.average_warmup { decay.min(first) } else { decay })
}

/// Where the run stands and where it ends, in steps or whole epochs.
fn position(update: Update, horizon: Horizon, step: usize) -> (f64, f64) {
    match update {
        Update::Step => (step as f64, horizon.end()),
        Update::Epoch => ((step * horizon.covered / horizon.steps) as f64, horizon.epochs as f64),
    }
}

/// Linear from one step's share to 1 over the warm-up.
fn warm_up(epochs: f64, horizon: Horizon, step: usize) -> f64 {
    let steps = epochs * horizon.steps_per_epoch();
    ((step + 1) as f64 / steps.max(1.0)).min(1.0)
}

/// PyTorch's OneCycleLR, two phases, cosine annealing: `values` at 0, at `rise * end - 1` and at `end - 1`.
fn one_cycle(rise: f64, now: f64, end: f64, values: [f64; 3]) -> f64 {
    let anneal = |from: f64, to: f64, share: f64| to + (from - to) / 2.0 * (1.0 + (PI * share).cos());
    let (top, last) = (rise * end - 1.0, end - 1.0);
    if now <= top {
        // A rise of one position only (top = 0) is at its start.
        anneal(values[0], values[1], if top > 0.0 { now / top } else { 0.0 })
    } else {
        anneal(values[1], values[2], if last > top { ((now - top) / (last - top)).min(1.0) } else { 1.0 })
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::recipe::Recipe;

    /// A schedule, and what PyTorch's scheduler of the same arguments set before each step.
    #[derive(Deserialize)]
    struct Case {
        name: String,
        /// TOML of `[optimizer]` and `[schedule]`.
        recipe: String,
        epochs: usize,
        steps_per_epoch: usize,
        learning_rate: Vec<f64>,
        momentum: Vec<f64>,
    }

    fn recipe(epochs: usize, sections: &str) -> Recipe {
        let text = format!("epochs = {epochs}\nbatch = 50\ndata.set = 'generated'\n{sections}");
        Recipe::parse("test", &text, &[]).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn rates_and_momenta_are_those_of_pytorch() {
        let fixture = include_str!("../../tests/fixtures/schedules.json");
        let cases: Vec<Case> = serde_json::from_str(fixture).unwrap();
        let mut kinds: Vec<&str> = Vec::new();
        for case in &cases {
            let recipe = recipe(case.epochs, &case.recipe);
            kinds.push(match recipe.schedule {
                Schedule::Constant { .. } => "constant",
                Schedule::Step { .. } => "step",
                Schedule::Cosine { .. } => "cosine",
                Schedule::OneCycle { .. } => "one-cycle",
                Schedule::Cyclic { .. } => "cyclic",
            });
            let horizon = Horizon { epochs: case.epochs, steps: case.steps_per_epoch, covered: 1 };
            let steps = case.epochs * case.steps_per_epoch;
            assert_eq!((case.learning_rate.len(), case.momentum.len()), (steps, steps), "{}", case.name);
            for step in 0..steps {
                let actual = rates(&recipe.schedule, &recipe.optimizer, horizon, step);
                for (what, actual, expected) in [
                    ("learning rate", actual.learning_rate, case.learning_rate[step]),
                    ("momentum", actual.momentum, case.momentum[step]),
                ] {
                    let error = (actual - expected).abs();
                    assert!(
                        error < 1e-12,
                        "{}, step {step}: {what} {actual}, expected {expected}",
                        case.name
                    );
                }
            }
        }
        for kind in ["constant", "step", "cosine", "one-cycle", "cyclic"] {
            assert!(kinds.contains(&kind), "no fixture of {kind}");
        }
    }

    #[test]
    fn a_peak_at_either_end_is_no_division_by_zero() {
        let horizon = Horizon { epochs: 10, steps: 1, covered: 1 };
        for peak_at in [0.0, 1.0] {
            let cyclic = Schedule::Cyclic { peak_at, momentum_range: Some([0.8, 0.9]) };
            let one_cycle = Schedule::OneCycle {
                rise: peak_at,
                initial_divisor: 25.0,
                final_divisor: 1e4,
                update: Update::Step,
                momentum_range: Some([0.8, 0.9]),
            };
            let optimizer = recipe(10, "optimizer.learning_rate = 0.2\nschedule.kind = 'cyclic'").optimizer;
            for schedule in [cyclic, one_cycle] {
                for step in 0..10 {
                    let Rates { learning_rate, momentum } = rates(&schedule, &optimizer, horizon, step);
                    assert!(
                        (0.0..=0.2).contains(&learning_rate),
                        "{schedule:?}, step {step}: {learning_rate}"
                    );
                    assert!((0.8..=0.9).contains(&momentum), "{schedule:?}, step {step}: {momentum}");
                }
            }
        }
    }

    #[test]
    fn the_average_follows_the_weights_closely_at_first() {
        let text =
            "optimizer.learning_rate = 0.2\noptimizer.average_decay = 0.999\nschedule.kind = 'constant'";
        let mut optimizer = recipe(1, text).optimizer;
        let decays: Vec<f64> =
            [0, 1, 90, 8_990, 8_991].map(|step| average_decay(&optimizer, step).unwrap()).to_vec();
        assert_eq!(decays, [0.1, 2.0 / 11.0, 0.91, 8_991.0 / 9_000.0, 0.999]);
        // What is left of the first weights after 50 steps: nothing, where a plain decay leaves 95 %.
        let left: f64 = (1..=50).map(|step| average_decay(&optimizer, step).unwrap()).product();
        assert!(left < 1e-6, "{left}");
        optimizer.average_warmup = false;
        assert_eq!(average_decay(&optimizer, 0), Some(0.999));
        optimizer.average_decay = None;
        assert_eq!(average_decay(&optimizer, 0), None);
    }

    /// A warm start of 2 epochs that stand for 6 of 12: its steps have the values of the schedule at their epoch.
    #[test]
    fn a_warm_start_has_the_values_of_the_schedule_at_its_epochs() {
        let fast = Horizon { epochs: 12, steps: 2 * 5, covered: 6 };
        let slow = Horizon { epochs: 12, steps: 5, covered: 1 };
        let at_start = "learning_rate = 0.1\n[schedule]\n";
        for schedule in [
            "kind = 'step'\ndrops = [3, 9]",
            "kind = 'cyclic'\npeak_at = 0.4\nmomentum_range = [0.8, 0.9]",
            "kind = 'cosine'\nupdate = 'step'",
            "kind = 'cosine'\nupdate = 'epoch'",
        ] {
            let recipe = recipe(12, &format!("[optimizer]\n{at_start}{schedule}"));
            for step in 0..fast.steps {
                let actual = rates(&recipe.schedule, &recipe.optimizer, fast, step);
                let expected = rates(&recipe.schedule, &recipe.optimizer, slow, 3 * step);
                let error = (actual.learning_rate - expected.learning_rate).abs();
                assert!(error < 1e-12, "{schedule}, step {step}: {actual:?}, expected {expected:?}");
                assert!((actual.momentum - expected.momentum).abs() < 1e-12, "{schedule}, step {step}");
            }
        }
        // The end of a fast step lies three slow ones further.
        let recipe =
            recipe(12, &format!("[optimizer]\n{at_start}kind = 'step'\ndrops = [3]\nposition = 'end'"));
        let actual: Vec<f64> =
            (3..6).map(|step| rates(&recipe.schedule, &recipe.optimizer, fast, step).learning_rate).collect();
        assert_eq!(actual, [0.1, 0.1 * 0.1, 0.1 * 0.1]);
        // The warm-up of 3 epochs takes 5 of these steps.
        let warm = self::recipe(
            12,
            "optimizer.learning_rate = 0.5\nschedule = {kind = 'constant', warmup_epochs = 3}",
        );
        for (step, expected) in [0.1, 0.2, 0.3, 0.4, 0.5, 0.5].into_iter().enumerate() {
            let actual = rates(&warm.schedule, &warm.optimizer, fast, step).learning_rate;
            assert!((actual - expected).abs() < 1e-12, "step {step}: {actual}, expected {expected}");
        }
    }
}
