//! [`Phases`] on the cuda engine: the driver keeps account and time.

use super::engine::Cuda;
use crate::engine::{Mark, Phase, Phases, Result};

impl Phases for Cuda {
    fn phase(&mut self, phase: Phase) {
        self.driver().phase(phase);
    }
    fn mark(&self) -> Result<Mark> {
        self.driver().mark()
    }
    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64> {
        self.driver().seconds(from, to)
    }
}
