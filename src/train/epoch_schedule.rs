//! Two clocks of a run: the epochs that are trained, and the epochs of the schedule that they stand for.
//!
//! The learning rate and the phases of the attack follow the schedule of `epochs` epochs. Training on a subset, an epoch
//! stands for one of the schedule and costs `fraction` of a whole one. The warm start trains on all samples first: of the
//! schedule's first `kappa * epochs` epochs (to the nearest) it makes `fraction` times as many, rounded up, so that a run
//! costs `fraction * epochs` whole epochs whatever its kappa (GRAD-MATCH's rule). The last `full_share` of the schedule is on
//! all samples again, epoch by epoch, and costs as much as it is long. Without pruning both clocks are one.

use crate::prune::SelectionConfig;

/// What is trained when. Epochs count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochSchedule {
    /// Epochs of the schedule.
    schedule: usize,
    /// This many trained epochs at the start are on all samples ...
    warm: usize,
    /// ... and stand for this many of the schedule.
    covered: usize,
    selects: bool,
    /// Trained epochs from one selection to the next; 0 for one selection.
    every: usize,
    /// Trained epochs from this one on are on all samples again.
    tail: usize,
}

/// What an epoch trains on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// All training samples.
    Whole,
    /// A subset, chosen anew at its start where `select`.
    Subset { select: bool },
}

/// Where an epoch begins on the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulePosition {
    /// This many trained epochs ...
    pub trained: usize,
    /// ... stand for this many of the schedule ...
    pub covered: usize,
    /// ... and this many like it lie before this one.
    pub before: usize,
}

impl EpochSchedule {
    /// Of a schedule of `schedule` epochs.
    pub fn new(schedule: usize, selection: &SelectionConfig) -> Self {
        let covered = (selection.warm_start * schedule as f64).round() as usize;
        // A product such as 0.29 * 100 may lie a rounding above its whole number.
        let warm = (selection.fraction * covered as f64 - 1e-9).ceil() as usize;
        // ... and so may 0.875 * 16 lie below its own.
        let tail = ((1.0 - selection.full_share) * schedule as f64 + 1e-9).floor() as usize;
        let mut epoch_schedule = Self {
            schedule,
            warm: warm.max(usize::from(covered > 0)),
            covered,
            selects: selection.method.selects(),
            every: selection.every,
            tail: 0,
        };
        if selection.method.row().starts_whole {
            (epoch_schedule.warm, epoch_schedule.covered) = (1, 1);
        }
        epoch_schedule.tail = epoch_schedule.first_at(tail);
        epoch_schedule
    }

    /// Epochs that are trained.
    pub fn epochs(&self) -> usize {
        self.warm + self.schedule - self.covered
    }

    /// What epoch `epoch` trains on.
    pub fn stage(&self, epoch: u32) -> Stage {
        let epoch = epoch as usize;
        if !self.selects || epoch < self.warm || epoch >= self.tail {
            return Stage::Whole;
        }
        let since = epoch - self.warm;
        Stage::Subset { select: since == 0 || (self.every > 0 && since.is_multiple_of(self.every)) }
    }

    /// The first epoch that trains on a subset, if any does.
    pub fn first_selection(&self) -> Option<usize> {
        (self.selects && self.warm < self.epochs().min(self.tail)).then_some(self.warm)
    }

    /// Where epoch `epoch` lies on the schedule.
    pub fn position(&self, epoch: u32) -> SchedulePosition {
        let epoch = epoch as usize;
        match epoch < self.warm {
            true => SchedulePosition { trained: self.warm, covered: self.covered, before: epoch },
            false => SchedulePosition { trained: 1, covered: 1, before: self.covered + (epoch - self.warm) },
        }
    }

    /// The epoch of the schedule in which epoch `epoch` begins.
    pub fn schedule_epoch(&self, epoch: u32) -> usize {
        let SchedulePosition { trained, covered, before } = self.position(epoch);
        before * covered / trained
    }

    /// The first trained epoch that begins at epoch `at` of the schedule or after it.
    pub fn first_at(&self, at: usize) -> usize {
        match at < self.covered {
            true => (at * self.warm).div_ceil(self.covered),
            false => self.warm + (at - self.covered),
        }
    }

    /// Whether something due every N epochs of the schedule (0: only after the last) is due after `done` trained
    /// epochs.
    pub fn due(&self, every: usize, done: u32) -> bool {
        // How often it was due by then.
        let times = |done: u32| {
            let SchedulePosition { trained, covered, before } = self.position(done);
            before * covered / (trained * every)
        };
        done as usize == self.epochs() || (every > 0 && done > 0 && times(done) > times(done - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    fn epoch_schedule(epochs: usize, selection: &str) -> EpochSchedule {
        let text = format!(
            "epochs = {epochs}\nbatch = 50\ndata.set = 'generated'\ndata.validation = 100\n\
             optimizer.learning_rate = 0.1\nschedule.kind = 'constant'\n[selection]\n{selection}"
        );
        Recipe::parse("test", &text, &[]).unwrap_or_else(|error| panic!("{error}")).epoch_schedule()
    }

    /// Schedule epochs at the start of each trained epoch, and at the end.
    fn starts(epoch_schedule: &EpochSchedule) -> Vec<f64> {
        let at = |epoch| {
            let SchedulePosition { trained, covered, before } = epoch_schedule.position(epoch);
            (before * covered) as f64 / trained as f64
        };
        (0..=epoch_schedule.epochs() as u32).map(at).collect()
    }

    #[test]
    fn without_pruning_both_clocks_are_one() {
        let full = epoch_schedule(7, "");
        assert_eq!(full.epochs(), 7);
        assert_eq!(starts(&full), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(full.first_selection(), None);
        for epoch in 0..7 {
            assert_eq!(full.stage(epoch), Stage::Whole);
            assert_eq!(
                full.position(epoch),
                SchedulePosition { trained: 1, covered: 1, before: epoch as usize }
            );
            assert_eq!(full.first_at(epoch as usize), epoch as usize);
            for every in 0..5 {
                let done = epoch as usize + 1;
                let expected = done == 7 || (every > 0 && done.is_multiple_of(every));
                assert_eq!(full.due(every, epoch + 1), expected, "every {every}, done {done}");
            }
        }
    }

    #[test]
    fn a_run_costs_its_fraction_whatever_the_warm_start() {
        for fraction in [0.1, 0.29, 0.3, 0.5, 1.0] {
            for kappa in [0.0, 0.25, 0.5, 0.9, 1.0] {
                let selection =
                    format!("method = 'random-online'\nfraction = {fraction}\nwarm_start = {kappa}");
                let epoch_schedule = epoch_schedule(100, &selection);
                let whole = (0..epoch_schedule.epochs() as u32)
                    .filter(|&epoch| epoch_schedule.stage(epoch) == Stage::Whole);
                let whole = whole.count() as f64;
                let cost = whole + fraction * (epoch_schedule.epochs() as f64 - whole);
                assert!(
                    (100.0 * fraction..100.0 * fraction + 1.0).contains(&(cost + 1e-9)),
                    "{selection}: {cost}"
                );
                let starts = starts(&epoch_schedule);
                assert!(starts.is_sorted_by(|a, b| a < b) && starts[0] == 0.0, "{selection}: {starts:?}");
                assert_eq!(*starts.last().unwrap(), 100.0, "{selection}");
            }
        }
    }

    #[test]
    fn a_warm_start_goes_fast_and_a_subset_epoch_by_epoch() {
        // kappa 0.5 of 12 epochs: 6 of the schedule in ceil(0.3 * 6) = 2; then 6 on subsets, selected every 4.
        let epoch_schedule =
            epoch_schedule(12, "method = 'random-online'\nfraction = 0.3\nwarm_start = 0.5\nevery = 4");
        assert_eq!(starts(&epoch_schedule), [0.0, 3.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]);
        let stages: Vec<Stage> = (0..8).map(|epoch| epoch_schedule.stage(epoch)).collect();
        let (new, old) = (Stage::Subset { select: true }, Stage::Subset { select: false });
        assert_eq!(stages, [Stage::Whole, Stage::Whole, new, old, old, old, new, old]);
        assert_eq!(epoch_schedule.first_selection(), Some(2));
        // Phases of the attack begin with the first epoch at their place or after it.
        assert_eq!([0, 1, 3, 4, 6, 7, 12].map(|at| epoch_schedule.first_at(at)), [0, 1, 1, 2, 2, 3, 8]);
        // Due at 5 and 10 of the schedule: after the second epoch (at 6) and the sixth (at 10); and at the end.
        let due: Vec<u32> = (1..=8).filter(|&done| epoch_schedule.due(5, done)).collect();
        assert_eq!(due, [2, 6, 8]);
    }

    #[test]
    fn short_is_all_samples_for_a_share_of_the_epochs() {
        let short = epoch_schedule(100, "method = 'short'\nfraction = 0.29");
        assert_eq!(short.epochs(), 29);
        assert_eq!(short.first_selection(), None);
        assert!((0..29).all(|epoch| short.stage(epoch) == Stage::Whole));
        assert_eq!(starts(&short)[29], 100.0);
        assert_eq!(epoch_schedule(10, "method = 'short'\nfraction = 0.01").epochs(), 1);
    }

    #[test]
    fn info_batch_prunes_between_its_first_epoch_and_its_last_ones() {
        let info = epoch_schedule(16, "method = 'info-batch'");
        assert_eq!(info.epochs(), 16);
        let pruned: Vec<u32> = (0..16).filter(|&epoch| info.stage(epoch) != Stage::Whole).collect();
        assert_eq!(pruned, (1..14).collect::<Vec<_>>());
        assert!(pruned.iter().all(|&epoch| info.stage(epoch) == Stage::Subset { select: true }));
        assert_eq!(starts(&info)[16], 16.0);
        // 0.875 of 12 epochs are 10.5: rounded down.
        let uneven = epoch_schedule(12, "method = 'info-batch'");
        assert_eq!((uneven.stage(9), uneven.stage(10)), (Stage::Subset { select: true }, Stage::Whole));
        let never = epoch_schedule(16, "method = 'info-batch'\nfull_share = 1");
        assert_eq!(never.first_selection(), None);
    }

    #[test]
    fn the_last_share_is_on_all_samples() {
        // kappa 0.5 of 16: 8 of the schedule in 2 epochs; 6 on subsets; the last 2 whole.
        let selection = "method = 'random-online'\nfraction = 0.25\nwarm_start = 0.5\nfull_share = 0.125";
        let epoch_schedule = epoch_schedule(16, selection);
        assert_eq!(epoch_schedule.epochs(), 10);
        let whole: Vec<u32> = (0..10).filter(|&epoch| epoch_schedule.stage(epoch) == Stage::Whole).collect();
        assert_eq!(whole, [0, 1, 8, 9]);
        assert_eq!(starts(&epoch_schedule)[8..], [14.0, 15.0, 16.0]);
    }

    #[test]
    fn one_selection_serves_to_the_end() {
        let once = epoch_schedule(5, "method = 'random'\nfraction = 0.5");
        let selected: Vec<u32> =
            (0..5).filter(|&epoch| once.stage(epoch) == Stage::Subset { select: true }).collect();
        assert_eq!(selected, [0]);
    }
}
