//! The CPU engine: rayon over tasks, convolutions over vectors. In f32 it is the oracle for every kernel; in bf16 it has the numerics
//! of the GPU: operands and activations are bf16, sums, statistics and weights f32, and the stem reads an image as two bf16.
//!
//! `engine.rs` holds the trait's calls; the operations are one a file. Work is cut by batch and shape, never by the number
//! of threads, and every reduction has one order: same seed, same build, same CPU = same bits. Checked by
//! `tests/reference_pytorch.rs` and `tests/reference_engine.rs`.

mod apgd;
mod arena;
mod attack_loop;
mod boundary;
mod conv;
#[cfg(test)]
mod conv_oracle;
mod conv_weight;
mod engine;
mod eval;
mod gather;
mod head;
mod last_layer;
mod loss;
mod margin;
mod margin_losses;
mod memory;
mod norm;
mod numbers;
mod optimizer;
mod paired_passes;
mod perturb;
mod probes;
mod ranking;
mod rows;
mod softmax_losses;
mod square;
mod tiles;
mod train;
mod vector;

use super::{Engine, Error, Result};
use crate::model::ResNet;

pub use numbers::Format;

/// Opens the CPU, with activations and operands in this format.
///
/// # Errors
/// [`Error::Invalid`] for a width that is not a multiple of 16, or where a count is zero; [`Error::Setting`] where
/// `SECATEUR_CPU` names instructions that this CPU lacks.
pub fn open(network: ResNet, max_batch: usize, format: Format) -> Result<Box<dyn Engine>> {
    Ok(Box::new(engine::Reference::new(network, max_batch, format)?))
}

/// A refusal of a call, in words.
fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::Invalid(text.into()))
}
