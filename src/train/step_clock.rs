//! How the time of an epoch divides between attacks and training: moments of some of its steps, taken on the device,
//! which nobody waits for.

use super::metrics::Seconds;
use crate::engine::{Engine, Mark, Result};

/// Steps of an epoch that are timed in detail.
const TIMED_STEPS: usize = 32;

/// What was done up to a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Nothing: a step begins.
    Begin,
    Attack,
    Train,
}

/// The moments of an epoch's timed steps, a sample of the whole.
pub struct StepClock {
    /// Steps that come round together: of a super-batch, the first alone attacks.
    cycle: usize,
    /// One in `interval` cycles is timed.
    interval: usize,
    timed: bool,
    moments: Vec<(Part, Mark)>,
}

impl StepClock {
    /// For an epoch of `steps` steps in cycles of `cycle`.
    pub fn new(steps: usize, cycle: usize) -> Self {
        Self { cycle, interval: (steps / TIMED_STEPS.max(cycle)).max(1), timed: false, moments: Vec::new() }
    }

    /// Step `number` begins.
    pub fn begin(&mut self, number: usize, engine: &Engine) -> Result<()> {
        self.timed = (number / self.cycle).is_multiple_of(self.interval);
        self.ended(Part::Begin, engine)
    }

    /// What was done since the moment before was this.
    pub fn ended(&mut self, part: Part, engine: &Engine) -> Result<()> {
        if self.timed {
            self.moments.push((part, engine.mark()?));
        }
        Ok(())
    }

    /// `seconds` of wall clock, divided as the timed steps were.
    pub fn divide(&self, seconds: f64, engine: &Engine) -> Result<Seconds> {
        let (mut attack, mut train) = (0.0, 0.0);
        for pair in self.moments.windows(2) {
            let lap = engine.seconds(&pair[0].1, &pair[1].1)?;
            match pair[1].0 {
                Part::Begin => {}
                Part::Attack => attack += lap,
                Part::Train => train += lap,
            }
        }
        let share = if attack > 0.0 { attack / (attack + train) } else { 0.0 };
        Ok(Seconds { attack: seconds * share, train: seconds * (1.0 - share), ..Seconds::default() })
    }
}
