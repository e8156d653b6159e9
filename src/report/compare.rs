//! Runs against each other: which control a run is measured by, its speed-up, and the front of the best trades.
//!
//! A run is compared with full training (all samples, the whole attack) of the same objective, on the same images,
//! width, batch, schedule and device, and with nothing else.

use super::read::{Clock, RunRecord};

/// Keys of the recipe that a run and its control share.
const SHARED: [&str; 10] = [
    "objective.method",
    "data.set",
    "data.train_limit",
    "data.validation",
    "data.extra",
    "model.width",
    "batch",
    "epochs",
    "objective.replays",
    "attack.steps",
];

/// What a run gains over full training.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeedUp {
    /// Positions of the full runs.
    pub against: Vec<usize>,
    /// Their mean seconds of attack, train and selection over those of the run.
    pub factor: f64,
}

/// All samples and every attack step.
fn is_full(run: &RunRecord) -> bool {
    let is = |key, plain| run.recipe(key).is_none_or(|value| value == plain);
    is("selection.method", "full") && is("accelerate.method", "none")
}

fn device(run: &RunRecord) -> Option<(&serde_json::Value, &serde_json::Value, u64)> {
    let session = run.sessions.first()?;
    // Runs of older builds had one engine.
    Some((&session["device"], &session["threads"], session["ranks"].as_u64().unwrap_or(1)))
}

/// The speed-up of each run, or why there is none.
pub fn speed_ups(runs: &[RunRecord]) -> Vec<Result<SpeedUp, &'static str>> {
    let clock = Clock::of(runs);
    let ended = |run: &RunRecord| run.result.is_some() && run.training_seconds(clock) > 0.0;
    let of = |run: &RunRecord| {
        if !ended(run) {
            return Err("not finished");
        }
        let shares = |other: &RunRecord| {
            // Runs of older builds have none.
            let same = |key: &&str| {
                let [own, there] = [run, other].map(|run| run.recipe(key).filter(|value| *value != "[]"));
                own == there
            };
            SHARED.iter().all(same) && device(other) == device(run)
        };
        let full = |&place: &usize| ended(&runs[place]) && is_full(&runs[place]) && shares(&runs[place]);
        let against: Vec<usize> = (0..runs.len()).filter(full).collect();
        if against.is_empty() {
            return Err("no full run of this objective on the same images, schedule and device");
        }
        let seconds = against.iter().map(|&place| runs[place].training_seconds(clock)).sum::<f64>();
        let factor = seconds / against.len() as f64 / run.training_seconds(clock);
        Ok(SpeedUp { against, factor })
    };
    runs.iter().map(of).collect()
}

/// The points that no other beats in both: no more seconds and a higher accuracy. Ascending in seconds.
pub fn front(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut sorted = points.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let mut front: Vec<(f64, f64)> = Vec::new();
    for point in sorted {
        if front.last().is_none_or(|last| point.1 > last.1) {
            front.push(point);
        }
    }
    front
}

/// The protocol, other than `clean`, that most runs were tested under; the last of a recipe's list among equals.
pub fn robust_protocol(runs: &[RunRecord]) -> Option<String> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for run in runs {
        for (weights, protocol, ..) in run.test_accuracies() {
            if weights != "last" || protocol == "clean" {
                continue;
            }
            match counts.iter_mut().find(|(known, _)| known == protocol) {
                Some((_, count)) => *count += 1,
                None => counts.push((protocol.into(), 1)),
            }
        }
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(protocol, _)| protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_holds_what_nothing_beats() {
        let points = [(10.0, 0.4), (5.0, 0.3), (7.0, 0.2), (12.0, 0.4), (5.0, 0.35), (20.0, 0.5)];
        assert_eq!(front(&points), [(5.0, 0.35), (10.0, 0.4), (20.0, 0.5)]);
        assert!(front(&[]).is_empty());
    }
}
