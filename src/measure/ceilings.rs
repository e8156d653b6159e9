//! What the device reaches at most, measured in the same run as what is compared with it.

use std::time::Instant;

use super::probes::{self, Probe};
use crate::engine::{Engine, Result};

/// Runs of a probe; the fastest counts, since only disturbances come between it and the ceiling.
const RUNS: usize = 7;

/// Operations and bytes a second, where the device has such ceilings; and what reached them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ceilings {
    pub flops: Option<f64>,
    pub bytes: Option<f64>,
    pub how: Vec<String>,
}

/// What keeps some work from being faster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// The least time that the ceilings allow, over the time taken.
    pub share: f64,
    /// `compute` or `memory`: whichever ceiling is nearer.
    pub bound: &'static str,
}

impl Ceilings {
    /// Measures both ceilings of an engine.
    pub fn measure(engine: &mut Engine) -> Result<Self> {
        engine.synchronize()?;
        let mut ceilings = Self::default();
        if let Some(probe) = probes::products(engine)? {
            let rate = ceilings.rate(probe)?;
            ceilings.flops = Some(rate);
        }
        if let Some(probe) = probes::copy(engine)? {
            let rate = ceilings.rate(probe)?;
            ceilings.bytes = Some(rate);
        }
        Ok(ceilings)
    }

    fn rate(&mut self, mut probe: Probe) -> Result<f64> {
        // The first run loads code and touches memory.
        probe.run()?;
        let mut least = f64::INFINITY;
        for _ in 0..RUNS {
            let begin = Instant::now();
            probe.run()?;
            least = least.min(begin.elapsed().as_secs_f64());
        }
        self.how.push(probe.what);
        Ok(probe.amount as f64 / least)
    }

    /// How near work of `flops` and `bytes` that took `seconds` came to the nearer of the known ceilings.
    pub fn share(&self, flops: f64, bytes: f64, seconds: f64) -> Option<Share> {
        let compute = self.flops.map_or(0.0, |ceiling| flops / ceiling);
        let memory = self.bytes.map_or(0.0, |ceiling| bytes / ceiling);
        let (least, bound) = if compute >= memory { (compute, "compute") } else { (memory, "memory") };
        (least > 0.0).then(|| Share { share: least / seconds, bound })
    }
}
