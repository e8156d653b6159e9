//! Failed calls of the CUDA driver as errors of the engine.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use crate::engine::Error;

/// The driver's words and name for an error.
pub fn described(error: &DriverError) -> String {
    let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
    format!("{} ({:?})", text.unwrap_or_default(), error.0)
}

/// A failed driver call as an error.
pub fn failed(call: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| Error::Driver { call, message: described(&error) }
}

/// Whether it tells what a kernel did, and not what was asked of the driver.
pub fn of_a_kernel(error: &DriverError) -> bool {
    use CUresult::*;
    matches!(
        error.0,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_HARDWARE_STACK_ERROR
    )
}

/// An error before the GPU could be used at all.
pub fn unavailable(error: DriverError) -> Error {
    let message = failed("cuInit")(error);
    let advice = match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => "there is no NVIDIA GPU here (is CUDA_VISIBLE_DEVICES empty?)",
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => "the driver was updated and not loaded yet: reboot",
        CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => "another process has taken the GPU for itself",
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => "the GPU's memory is taken by other processes",
        _ => "nvidia-smi may tell more",
    };
    Error::Unavailable(format!("the GPU cannot be used: {message}: {advice}"))
}
