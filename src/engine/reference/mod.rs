//! The reference engine: f32 on the CPU, rayon over tasks, a library for matrix products. The oracle for every kernel.
//!
//! `engine.rs` holds the trait's calls; the operations are one a file. Work is cut by batch and shape, never by the number
//! of threads, and every reduction has one order: same seed, same build, same CPU = same bits. Checked by
//! `tests/reference_pytorch.rs` and `tests/reference_engine.rs`.

mod apgd;
mod arena;
mod attack_loop;
mod boundary;
mod conv;
mod conv_weight;
mod engine;
mod eval;
mod fp8;
mod gather;
mod head;
mod last_layer;
mod loss;
mod margin;
mod margin_losses;
mod memory;
mod norm;
mod optimizer;
mod paired_passes;
mod patches;
mod perturb;
mod probes;
mod product;
mod ranking;
mod rows;
mod softmax_losses;
mod square;
mod train;

use super::{Engine, Error, Result};
use crate::model::ResNet18;

/// Opens the CPU.
///
/// # Errors
/// [`Error::Invalid`] for a width that is not a multiple of 16, or where a count is zero.
pub fn open(network: ResNet18, max_batch: usize) -> Result<Box<dyn Engine>> {
    Ok(Box::new(engine::Reference::new(network, max_batch)?))
}

/// A refusal of a call, in words.
fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::Invalid(text.into()))
}
