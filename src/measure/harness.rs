//! When to stop sampling: enough samples and little enough noise, or no time left.

use std::time::Instant;

use super::statistics::summary;

/// What ends the sampling of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Samples at least.
    pub samples: usize,
    /// Relative standard error of the median at most.
    pub error: f64,
    /// Seconds of sampling at most.
    pub seconds: f64,
}

/// What the rule says of the samples so far.
#[derive(Clone, Debug, PartialEq)]
pub enum SamplingState {
    GoOn,
    Done,
    /// The time is up; the text names what is still missing.
    TimeUp(String),
}

impl Rule {
    /// What `values` still lack.
    pub fn unmet(&self, values: &[f64]) -> Option<String> {
        if values.len() < self.samples {
            return Some(format!("{} samples, expected {}", values.len(), self.samples));
        }
        let error = summary(values).map_or(f64::INFINITY, |summary| summary.error);
        (error > self.error).then(|| {
            format!("relative standard error {:.2} %, expected {:.2} %", 100.0 * error, 100.0 * self.error)
        })
    }

    /// After sampling `values` for `elapsed` seconds.
    pub fn state(&self, values: &[f64], elapsed: f64) -> SamplingState {
        match self.unmet(values) {
            None => SamplingState::Done,
            Some(unmet) if elapsed >= self.seconds => {
                SamplingState::TimeUp(format!("time is up after {elapsed:.0} s: {unmet}"))
            }
            Some(_) => SamplingState::GoOn,
        }
    }
}

/// Samples of one row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    pub values: Vec<f64>,
    /// What the rule still asked for when the time was up.
    pub unmet: Option<String>,
}

/// Samples `work`, which returns its own seconds, until the rule holds or `stop` returns true; `None` where it did.
pub fn sample<E>(
    rule: &Rule,
    stop: &dyn Fn() -> bool,
    work: &mut dyn FnMut() -> Result<f64, E>,
) -> Result<Option<Samples>, E> {
    let begin = Instant::now();
    let mut values = Vec::new();
    loop {
        values.push(work()?);
        if stop() {
            return Ok(None);
        }
        match rule.state(&values, begin.elapsed().as_secs_f64()) {
            SamplingState::GoOn => {}
            SamplingState::Done => return Ok(Some(Samples { values, unmet: None })),
            SamplingState::TimeUp(unmet) => return Ok(Some(Samples { values, unmet: Some(unmet) })),
        }
    }
}
