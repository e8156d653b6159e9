//! What can go wrong on a device.

/// Result of an engine call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An engine's error: names the thing, the actual and the expected value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device cannot be used at all: no driver, no GPU, no code for it. The text says what to do.
    #[error("{0}")]
    Unavailable(String),
    #[error("out of device memory: {what} needs {bytes} bytes")]
    OutOfMemory { what: String, bytes: usize },
    #[error("{tensor}: {actual} elements, expected {expected}")]
    Length { tensor: &'static str, actual: usize, expected: usize },
    #[error("{tensor}: memory of another engine")]
    ForeignTensor { tensor: &'static str },
    /// A kernel failed: an out-of-bounds access, a barrier that cannot be met, a launch error.
    #[error("kernel {kernel}: {message}")]
    Kernel { kernel: String, message: String },
    /// A call of the device driver failed.
    #[error("{call}: {message}")]
    Driver { call: &'static str, message: String },
    /// A call that the engine's state or its limits do not allow.
    #[error("{0}")]
    Invalid(String),
    /// [`StopFlag`](super::StopFlag): nothing but the outputs of the call is lost.
    #[error("interrupted")]
    Stopped,
    #[error("{tensor}: NaN at position {position}")]
    NotANumber { tensor: &'static str, position: usize },
    /// A setting of the environment that means nothing.
    #[error("{0}")]
    Setting(String),
    /// Another rank of the group has ended, or the group does not come about.
    #[error(transparent)]
    Collective(#[from] crate::collective::CollectiveError),
    #[error(transparent)]
    Model(#[from] crate::model::WeightsError),
}
