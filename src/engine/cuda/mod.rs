//! The cuda engine: our kernels in bf16 with f32 accumulation, on a GPU or on the host runner.

pub mod driver;
pub mod launch;
pub mod layout;

use super::{Engine, Error, Result};
use crate::model::ResNet18;

/// Opens GPU number `ordinal`.
pub fn open_device(_ordinal: usize, _network: ResNet18, _max_batch: usize) -> Result<Box<dyn Engine>> {
    Err(Error::Unavailable("the cuda engine is being built".into()))
}

/// Opens the host runner: the same kernels, launches and grids on the CPU.
pub fn open_emulated(_network: ResNet18, _max_batch: usize) -> Result<Box<dyn Engine>> {
    Err(Error::Unavailable("the cuda engine is being built".into()))
}
