//! What a kernel has to do at least: the one declaration that bench, profile and report divide by.

/// Arithmetic and memory traffic of a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations that the result needs: a multiply-add counts as two, padding as none.
    pub flops: u64,
    /// Bytes of every operand and result, each once.
    pub bytes: u64,
}
