//! What a device did, launch by launch, and which part of a training step asked for it.
//!
//! The loop says where a part of a step begins ([`super::Engine::phase`]); an engine from [`super::open_recorded`] keeps every launch of
//! a kernel with its time and cost.

pub use crate::cuda::driver::Mark;
pub use crate::cuda::driver::record::Recording;
use crate::cuda::driver::{Kernel, Occupancy, occupancy, static_table};

/// A part of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Outside of any that was named.
    #[default]
    Other,
    /// A training step, of which the next four are parts.
    Step,
    Gather,
    /// What an attack does before and between its steps.
    Attack,
    /// One step of an attack, counted from 1, of every micro-batch.
    AttackStep(u32),
    /// Forward and backward passes for the parameter gradients.
    Train,
    Optimizer,
    Select,
    Evaluate,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Other => f.write_str("other"),
            Self::Step => f.write_str("step"),
            Self::Gather => f.write_str("gather"),
            Self::Attack => f.write_str("attack"),
            Self::AttackStep(step) => write!(f, "attack {step}"),
            Self::Train => f.write_str("train"),
            Self::Optimizer => f.write_str("optimizer"),
            Self::Select => f.write_str("select"),
            Self::Evaluate => f.write_str("evaluate"),
        }
    }
}

impl Phase {
    /// How deep it is nested: where one begins, those of its depth and deeper have ended.
    pub fn depth(self) -> u32 {
        match self {
            Self::Other | Self::Step | Self::Select | Self::Evaluate => 0,
            Self::Gather | Self::Attack | Self::Train | Self::Optimizer => 1,
            Self::AttackStep(_) => 2,
        }
    }
}

/// One launch of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Launch {
    /// Its symbol.
    pub kernel: &'static str,
    pub grid: [u32; 3],
    pub phase: Phase,
    /// The layer it is of, by its number in the layer table.
    pub layer: Option<usize>,
    /// Seconds from the start of the record.
    pub start: f64,
    pub seconds: f64,
    /// Floating-point operations that the result needs.
    pub flops: u64,
    /// Bytes of every operand and result, each once.
    pub bytes: u64,
}

/// The launches of a stretch of work, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    pub launches: Vec<Launch>,
    /// From the first to after the last, gaps included.
    pub seconds: f64,
}

/// What a kernel takes of a GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelUsage {
    /// A thread's.
    pub registers: u32,
    /// Bytes stored and loaded.
    pub spills: u32,
    pub occupancy: Option<Occupancy>,
}

/// What a kernel takes on a target ("sm_90a"), where this build has code for it.
pub fn kernel_usage(kernel: &str, target: &str) -> Option<KernelUsage> {
    let usage = static_table().iter().find(|usage| usage.kernel == kernel && usage.target == target)?;
    let kernel = Kernel::named(kernel).ok()?;
    Some(KernelUsage {
        registers: usage.registers,
        spills: usage.spill_stores + usage.spill_loads,
        occupancy: occupancy(target, usage.registers, kernel.threads(), kernel.shared_bytes() + usage.shared),
    })
}

/// The target whose registers stand for a device that runs `code`: its own, else the newest generation that this build has
/// code for; `None` in a build without GPU code.
pub fn register_target(code: &str) -> Option<&'static str> {
    let targets = || static_table().iter().map(|usage| usage.target);
    targets()
        .find(|target| *target == code)
        .or_else(|| targets().find(|target| *target == "sm_90a"))
        .or_else(|| targets().next())
}
