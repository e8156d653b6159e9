//! Work of a known size that a device does as fast as this program can: the ceilings that others are measured against.
//!
//! Called by `measure/ceilings.rs`; implemented by both engines; checked by `tests/bench.rs`.

use super::Result;

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

/// The probes of an engine; `None` where a ceiling would mean nothing, as on the host runner.
pub trait Probes {
    /// Matrix products: the amount is floating-point operations.
    fn product_probe(&self) -> Result<Option<Probe>>;
    /// A copy of memory: the amount is bytes, read and written.
    fn copy_probe(&self) -> Result<Option<Probe>>;
    /// Floating-point operations of all convolutions that this process computed, where the engine counts them itself.
    fn flops_so_far(&self) -> Option<u64>;
}
