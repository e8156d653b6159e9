//! How a device goes about its work, where that is a choice: each is made unless told otherwise, and only speed depends on it.
//!
//! A part of [`super::Engine`]. Called by `secateur bench`, to compare; checked by `tests/graphs.rs`.

/// Choices of the cuda engine; the reference engine has none.
pub trait Execution {
    /// Whether an attack or a pass that comes again may be replayed as one recorded piece of work, where the device can (CUDA
    /// graphs). The results are the same.
    fn replay_graphs(&mut self, _on: bool) {}
    /// Whether a launch may start before the one before it has ended, where the device can (programmatic dependent launch). The
    /// results are the same.
    fn start_launches_early(&mut self, _on: bool) {}
}
