//! How a device goes about its work, where that is a choice.
//!
//! A part of [`super::Engine`]. Called by training, by evaluations and, to compare, by `secateur bench`; checked by
//! `tests/graphs.rs` and `tests/first_stage.rs`.

use super::Result;

/// Choices of the cuda engine; the reference engine has none.
pub trait Execution {
    /// Whether an attack or a pass that comes again may be replayed as one recorded piece of work, where the device can (CUDA
    /// graphs). It may, unless told otherwise; the results are the same.
    fn replay_graphs(&mut self, _on: bool) {}
    /// Whether a launch may start before the one before it has ended, where the device can (programmatic dependent launch). It
    /// may, unless told otherwise; the results are the same.
    fn start_launches_early(&mut self, _on: bool) {}
    /// Whether a long sum may be cut into parts where a batch is too small to fill the device. What an image's logits and gradient
    /// are then depends on the size of its batch, by the rounding of f32; so none is, unless told otherwise: training says
    /// yes, evaluation no.
    fn split_sums(&mut self, _on: bool) {}
    /// How many images the first stage takes at a time in evaluation passes, in place of as many as the device's cache holds. The
    /// results are the same.
    ///
    /// # Errors
    /// [`super::Error::Invalid`] for none, where this is a choice.
    fn first_stage_images(&mut self, _images: usize) -> Result<()> {
        Ok(())
    }
}
