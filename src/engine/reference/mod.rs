//! The reference engine: f32 on the CPU, rayon over images, a library GEMM. The oracle for every kernel.

use super::{Engine, Error, Result};
use crate::model::ResNet18;

/// Opens the CPU.
pub fn open(_network: ResNet18, _max_batch: usize) -> Result<Box<dyn Engine>> {
    Err(Error::Unavailable("the reference engine is being built".into()))
}
