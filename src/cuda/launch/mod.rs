//! Launches: for each kernel of `kernels/` its parameter struct, its grid, and nothing else.
//!
//! A parameter struct mirrors the C++ one of the same name, field by field, and is itself the request: fill it in and
//! call the function that is named after the kernel. Optional operands are `Address::NULL`. What a kernel computes
//! and the shapes of its operands stand at the head of its file. With each launch goes its [`Cost`]. Launches of operations are
//! in [`crate::ops`].

pub mod attack;
pub mod conv;
pub mod head;
pub mod norm;

pub use super::driver::Cost;

use super::driver::{Driver, Kernel, launch};
use crate::engine::{Error, Result};
use crate::philox::Key;

/// `Philox` of `kernels/portable/philox.h`: a [`Key`] as the kernels read it.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Philox {
    seed_low: u32,
    seed_high: u32,
    epoch: u32,
    purpose_and_step: u32,
}

impl From<Key> for Philox {
    fn from(key: Key) -> Self {
        Self {
            seed_low: key.seed as u32,
            seed_high: (key.seed >> 32) as u32,
            epoch: key.epoch,
            purpose_and_step: key.purpose_and_step(),
        }
    }
}

/// Bytes of an element.
pub const F32: usize = 4;
pub const U32: usize = 4;
pub const BF16: usize = 2;

/// Launches the kernel called `name`, which costs `cost`.
pub fn run<P: bytemuck::Pod>(
    driver: &dyn Driver,
    name: &str,
    grid: [u32; 3],
    params: &P,
    cost: Cost,
) -> Result<()> {
    launch(driver, &Kernel::named(name)?, grid, params, cost)
}

/// Launches the kernel called `name` with at least `threads` threads in all.
pub fn run_flat<P: bytemuck::Pod>(
    driver: &dyn Driver,
    name: &str,
    threads: u32,
    params: &P,
    cost: Cost,
) -> Result<()> {
    let kernel = Kernel::named(name)?;
    launch(driver, &kernel, [threads.div_ceil(kernel.threads()), 1, 1], params, cost)
}

/// Refuses a shape that a kernel is not made for.
pub fn require(holds: bool, kernel: &str, what: &str, actual: u32) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::Kernel { kernel: kernel.into(), message: format!("{what}, actual {actual}") })
}
