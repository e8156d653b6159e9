//! The CPU engine: rayon over tasks, convolutions over vectors. In f32 it is the oracle for every kernel; in bf16 it has the numerics
//! of the GPU: operands and activations are bf16, sums, statistics and weights f32, and the stem reads an image as two bf16.
//!
//! Work is cut by batch and shape, never by the number of threads, and every reduction has one order: same seed, same build, same
//! CPU = same bits.

#[cfg(target_arch = "x86_64")]
mod amx;
mod arena;
mod columns;
mod conv;
#[cfg(test)]
mod conv_oracle;
mod conv_weight;
pub mod doubles;
mod engine;
mod epilogue;
mod eval;
mod head;
mod isa;
mod maps;
mod memory;
mod norm;
mod numbers;
mod sign_step;
mod tiles;
mod train;
mod vector;
mod vectorised;
mod wide;

use crate::engine::{Device, Engine, Result};
use crate::model::ResNet;

pub use arena::Model;
pub use conv::flops_so_far;
pub use engine::Cpu;
pub use numbers::{Format, Numbers};

/// Opens the CPU, with activations and operands in this format.
///
/// # Errors
/// [`Error::Invalid`](crate::engine::Error) for a width that is not a multiple of 16, or without classes; [`Error::Setting`](crate::engine::Error)
/// where `SECATEUR_CPU` names instructions that this CPU lacks.
pub fn open(network: ResNet, max_batch: usize, format: Format) -> Result<Engine> {
    let cpu = Cpu::new(network, format)?;
    Ok(Engine::new(Device::Cpu(Box::new(cpu)), network, max_batch))
}

/// bf16 where the CPU multiplies it itself, else f32.
///
/// # Errors
/// [`Error::Setting`](crate::engine::Error) where `SECATEUR_CPU` names instructions that this CPU lacks.
pub fn native_format() -> Result<Format> {
    Ok(if isa::Isa::chosen()?.native_bf16 { Format::Bf16 } else { Format::F32 })
}

/// Numbers of this format, and the instructions that multiply them here.
///
/// # Errors
/// [`Error::Setting`](crate::engine::Error) where `SECATEUR_CPU` names instructions that this CPU lacks.
pub fn numbers(format: Format) -> Result<Numbers> {
    Ok(Numbers { format, isa: isa::Isa::chosen()? })
}
