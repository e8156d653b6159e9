//! Work of a known size that a device does as fast as this program can: the ceilings that others are measured against.
//!
//! Called by `measure/ceilings.rs` and `measure/workload.rs`; implemented by both engines; checked by `tests/bench.rs`.

use super::{Error, Launch, Result};

/// Some work, to be run and timed again and again.
pub struct Probe {
    /// What a run of it does, in words.
    pub what: String,
    /// Floating-point operations or bytes of a run.
    pub amount: u64,
    run: Box<dyn FnMut() -> Result<()>>,
}

impl Probe {
    pub(super) fn new(what: String, amount: u64, run: impl FnMut() -> Result<()> + 'static) -> Self {
        Self { what, amount, run: Box::new(run) }
    }

    /// Does the work, and waits for it.
    pub fn run(&mut self) -> Result<()> {
        (self.run)()
    }
}

/// One layer on one rung of the ladder of convolution kernels.
pub struct LadderStep {
    /// The layer and the pass: `layer1.0.conv1 forward`.
    pub layer: String,
    pub rung: &'static str,
    /// Launches it `launches` times, back to back; its amount is the floating-point operations of all.
    pub probe: Probe,
    pub launches: u32,
    /// Seconds that an H200 should take, and what bounds them: `tensor`, `cache` or `shared`; none where nobody predicted it.
    pub prediction: Option<(f64, &'static str)>,
}

/// The probes of an engine; `None` where a ceiling would mean nothing, as on the host runner.
pub trait Probes {
    /// Matrix products: the amount is floating-point operations.
    fn product_probe(&self) -> Result<Option<Probe>>;
    /// A copy of memory: the amount is bytes, read and written.
    fn copy_probe(&self) -> Result<Option<Probe>>;
    /// Overwrites every cache, so that what comes next reads from memory: the amount is bytes written.
    fn flush_probe(&self) -> Result<Probe>;
    /// Every layer of the network on every kind of convolution kernel, `batch` images; memory is taken when a step first runs.
    fn ladder(&self, _batch: usize) -> Result<Vec<LadderStep>> {
        Err(Error::Unavailable(
            "--device cpu: the CPU engine launches no kernels; the ladder is for an H100 or H200 and for emulated:sm_90a".into(),
        ))
    }
    /// Seconds that an H200 should take for these launches, where the device is one of its kind, or stands for one; `None` where one
    /// of them has no model.
    fn predicted_seconds(&self, _launches: &[Launch]) -> Option<f64> {
        None
    }
    /// Floating-point operations of all convolutions that this process computed, where the engine counts them itself.
    fn flops_so_far(&self) -> Option<u64>;
}

/// How often a buffer that flushes a cache holds it: caches do not replace their oldest lines first.
pub(super) const FLUSH_FACTOR: usize = 2;

/// Bytes of a last-level cache where the system does not tell.
const CACHE_BYTES: usize = 64 << 20;

/// Bytes of the largest cache of this CPU, as Linux tells; 64 MiB elsewhere.
pub(super) fn last_level_cache() -> usize {
    let size = |index: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        parsed_size(std::fs::read_to_string(path).ok()?.trim())
    };
    (0..8).filter_map(size).max().unwrap_or(CACHE_BYTES)
}

/// `32768K` or `32M` in bytes.
fn parsed_size(text: &str) -> Option<usize> {
    let (number, unit) = match text.strip_suffix('K') {
        Some(number) => (number, 10),
        None => (text.strip_suffix('M')?, 20),
    };
    number.parse::<usize>().ok()?.checked_mul(1 << unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_caches_are_read() {
        assert_eq!(parsed_size("32768K"), Some(32 << 20));
        assert_eq!(parsed_size("2M"), Some(2 << 20));
        assert_eq!((parsed_size(""), parsed_size("12"), parsed_size("xK")), (None, None, None));
        assert!(last_level_cache() > 0);
    }
}
