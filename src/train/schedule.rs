//! The learning rate (and, where it is cycled, the momentum) of each step: a pure function, nothing to save.
//!
//! Checked by its own tests against the values PyTorch's schedulers give. Called by the training loop.

use std::f64::consts::PI;

use crate::recipe::{Optimizer, Schedule, Update};

/// What a schedule decides about one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    pub learning_rate: f64,
    pub momentum: f64,
}

/// Length of a run, seen from the pace that its steps have now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// Epochs of the schedule.
    pub epochs: usize,
    /// So many steps ...
    pub steps: usize,
    /// ... pass in so many epochs of the schedule: 1 but for a warm start (see [`crate::recipe::Timeline`]).
    pub span: usize,
}

impl Horizon {
    /// Steps that an epoch of the schedule takes.
    fn steps_per_epoch(self) -> f64 {
        self.steps as f64 / self.span as f64
    }

    /// Steps that the whole schedule takes.
    fn end(self) -> f64 {
        (self.epochs * self.steps) as f64 / self.span as f64
    }
}

/// The rates of step `step`, counted from 0 over the whole schedule at the pace of `horizon`.
pub fn rates(schedule: &Schedule, optimizer: &Optimizer, horizon: Horizon, step: usize) -> Rates {
    let peak = optimizer.learning_rate;
    let fixed = |learning_rate| Rates { learning_rate, momentum: optimizer.momentum };
    match schedule {
        Schedule::Constant { warmup_epochs } => fixed(peak * warm_up(*warmup_epochs, horizon, step)),
        Schedule::Step { drops, factor, warmup_epochs } => {
            let epoch = (step * horizon.span) as f64 / horizon.steps as f64;
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
        Schedule::Cyclic { peak_at } => {
            let share = step as f64 / horizon.end();
            let up = if *peak_at > 0.0 { share / peak_at } else { 1.0 };
            let down = if *peak_at < 1.0 { (1.0 - share) / (1.0 - peak_at) } else { 1.0 };
            fixed(peak * up.min(down).clamp(0.0, 1.0))
        }
    }
}

/// Where the run stands and where it ends, in steps or whole epochs.
fn position(update: Update, horizon: Horizon, step: usize) -> (f64, f64) {
    match update {
        Update::Step => (step as f64, horizon.end()),
        Update::Epoch => ((step * horizon.span / horizon.steps) as f64, horizon.epochs as f64),
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
    use super::*;

    const EPOCHS_ONLY: Horizon = Horizon { epochs: 10, steps: 1, span: 1 };

    fn optimizer(learning_rate: f64) -> Optimizer {
        Optimizer { learning_rate, momentum: 0.9, weight_decay: 0.0, average_decay: None }
    }

    fn curve(schedule: &Schedule, peak: f64, horizon: Horizon) -> Vec<Rates> {
        let steps = horizon.epochs * horizon.steps / horizon.span;
        (0..steps).map(|step| rates(schedule, &optimizer(peak), horizon, step)).collect()
    }

    /// Compares with what a PyTorch 2 scheduler of the same arguments set before each step.
    fn assert_rates(met: &[Rates], wanted: &[f64]) {
        assert_eq!(met.len(), wanted.len());
        for (step, (met, wanted)) in met.iter().zip(wanted).enumerate() {
            let error = (met.learning_rate - wanted).abs();
            assert!(error < 1e-12, "step {step}: {} instead of {wanted}", met.learning_rate);
        }
    }

    #[test]
    fn step_is_multi_step_lr() {
        // MultiStepLR(milestones=[3, 5], gamma=0.1), stepped behind each epoch; two steps an epoch.
        let schedule = Schedule::Step { drops: vec![3.0, 5.0], factor: 0.1, warmup_epochs: 0.0 };
        let met = curve(&schedule, 0.1, Horizon { epochs: 7, steps: 2, span: 1 });
        let epochs = [0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001];
        assert_rates(&met, &epochs.map(|rate| [rate, rate]).concat());
        assert!(met.iter().all(|rates| rates.momentum == 0.9));
    }

    #[test]
    fn cosine_is_cosine_annealing_lr() {
        // CosineAnnealingLR(T_max=10, eta_min=0.001) from 0.1.
        let wanted = [
            0.1,
            0.09757729755661011,
            0.0905463412215599,
            0.07959536998847742,
            0.0657963412215599,
            0.0505,
            0.03520365877844011,
            0.02140463001152259,
            0.010453658778440109,
            0.0034227024433899004,
        ];
        let schedule = Schedule::Cosine { floor: 0.01, update: Update::Step, warmup_epochs: 0.0 };
        assert_rates(&curve(&schedule, 0.1, EPOCHS_ONLY), &wanted);
        let schedule = Schedule::Cosine { floor: 0.01, update: Update::Epoch, warmup_epochs: 0.0 };
        let met = curve(&schedule, 0.1, Horizon { epochs: 10, steps: 3, span: 1 });
        assert_rates(&met, &wanted.map(|rate| [rate; 3]).concat());
    }

    #[test]
    fn one_cycle_is_one_cycle_lr() {
        // OneCycleLR(max_lr=0.1, total_steps=10) with its defaults, which cycle the momentum too.
        let schedule = Schedule::OneCycle {
            rise: 0.3,
            initial_divisor: 25.0,
            final_divisor: 1e4,
            update: Update::Epoch,
            momentum_range: Some([0.85, 0.95]),
        };
        let wanted = [
            (0.004, 0.95),
            (0.052, 0.9),
            (0.1, 0.85),
            (0.09504846320134738, 0.854951556604879),
            (0.0811745653949763, 0.8688255099070633),
            (0.06112620219362893, 0.8888739533021842),
            (0.03887419780637107, 0.9111260466978157),
            (0.0188258346050237, 0.9311744900929366),
            (0.004951936798652629, 0.945048443395121),
            (4e-07, 0.95),
        ];
        let met = curve(&schedule, 0.1, EPOCHS_ONLY);
        assert_rates(&met, &wanted.map(|(rate, _)| rate));
        for (met, (_, momentum)) in met.iter().zip(wanted) {
            assert!((met.momentum - momentum).abs() < 1e-12, "{} instead of {momentum}", met.momentum);
        }
        // total_steps=100, at some of its steps.
        let met = curve(&schedule, 0.1, Horizon { epochs: 100, steps: 1, span: 1 });
        let wanted = [
            (0, 0.004),
            (1, 0.004281378056590748),
            (15, 0.05459866761210004),
            (29, 0.1),
            (30, 0.09994965352845243),
            (60, 0.05892800902855288),
            (99, 4e-07),
        ];
        for (step, rate) in wanted {
            assert_rates(&met[step..=step], &[rate]);
        }
    }

    #[test]
    fn cyclic_is_cyclic_lr() {
        // CyclicLR(base_lr=0, max_lr=0.2, step_size_up=6, step_size_down=6).
        let met = curve(&Schedule::Cyclic { peak_at: 0.5 }, 0.2, Horizon { epochs: 3, steps: 4, span: 1 });
        let thirtieth = |n: i32| 0.2 * f64::from(n) / 6.0;
        assert_rates(&met, &[0, 1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1].map(thirtieth));
        // Peak at either end: no division by zero.
        for peak_at in [0.0, 1.0] {
            let met = curve(&Schedule::Cyclic { peak_at }, 0.2, EPOCHS_ONLY);
            assert!(met.iter().all(|rates| (0.0..=0.2).contains(&rates.learning_rate)), "{met:?}");
        }
    }

    #[test]
    fn warm_up_rises_evenly_to_the_peak() {
        let horizon = Horizon { epochs: 6, steps: 4, span: 1 };
        for schedule in [
            Schedule::Constant { warmup_epochs: 2.0 },
            Schedule::Step { drops: vec![5.0], factor: 0.1, warmup_epochs: 2.0 },
        ] {
            let met = curve(&schedule, 0.8, horizon);
            assert_rates(&met[..8], &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8].map(|rate: f64| rate));
            assert_rates(&met[8..20], &[0.8; 12]);
        }
        let schedule = Schedule::Cosine { floor: 0.0, update: Update::Step, warmup_epochs: 2.0 };
        let met = curve(&schedule, 0.8, horizon);
        assert_rates(&met[7..9], &[0.8, 0.8]);
        assert_rates(&met[16..17], &[0.4]);
        assert_rates(&curve(&Schedule::Constant { warmup_epochs: 0.0 }, 0.8, horizon)[..1], &[0.8]);
    }

    /// A warm start of 2 epochs that stand for 6 of 12: its steps meet the values that the schedule has at their place.
    #[test]
    fn a_warm_start_meets_the_schedule_at_its_place() {
        let fast = Horizon { epochs: 12, steps: 2 * 5, span: 6 };
        let slow = Horizon { epochs: 12, steps: 5, span: 1 };
        let step = Schedule::Step { drops: vec![3.0, 9.0], factor: 0.1, warmup_epochs: 0.0 };
        let cosine = |update| Schedule::Cosine { floor: 0.0, update, warmup_epochs: 0.0 };
        let schedules =
            [step, Schedule::Cyclic { peak_at: 0.4 }, cosine(Update::Step), cosine(Update::Epoch)];
        for schedule in &schedules {
            for step in 0..fast.steps {
                let met = rates(schedule, &optimizer(0.1), fast, step);
                let wanted = rates(schedule, &optimizer(0.1), slow, 3 * step);
                let error = (met.learning_rate - wanted.learning_rate).abs();
                assert!(error < 1e-12, "{schedule:?}, step {step}: {met:?} instead of {wanted:?}");
            }
        }
        // The warm-up of 3 epochs takes 5 of these steps.
        let warm = Schedule::Constant { warmup_epochs: 3.0 };
        let met: Vec<_> = (0..6).map(|step| rates(&warm, &optimizer(0.5), fast, step)).collect();
        assert_rates(&met, &[0.1, 0.2, 0.3, 0.4, 0.5, 0.5]);
    }
}
