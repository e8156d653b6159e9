//! What a kernel has to do at least: the one declaration that bench, profile and report divide by.
//!
//! Each function of `launch/` declares the cost of what it launches and hands it to the driver with the launch, so that
//! no launch goes without.

use std::ops::AddAssign;

/// Arithmetic and memory traffic of a launch.
///
/// Exact for convolutions and the linear layer. Elsewhere the operations are those of the formula, an exponential, logarithm,
/// root or quotient counted as one, comparisons and integers as none. Traffic that depends on the values (which candidates
/// are kept) is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations that the result needs: a multiply-add counts as two, padding as none.
    pub flops: u64,
    /// Bytes of every operand and result, each once; one that is read and written, twice.
    pub bytes: u64,
}

impl Cost {
    pub fn new(flops: usize, bytes: usize) -> Self {
        Self { flops: flops as u64, bytes: bytes as u64 }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}
