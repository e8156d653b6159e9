//! What a kernel says of a wait at a barrier that does not end: the host's part of `kernels/portable/bounded_wait.h`.
//!
//! Its trap makes the context useless, and no device memory can be read any more. So a kernel writes to page-locked memory of the
//! host, which outlives the context.

use std::ptr;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::sys::{self, CUmodule, CUresult};
use cudarc::driver::{DriverError, result};

use super::kernels;
use crate::engine::Error;

/// The symbol of a module whose kernels wait.
const SYMBOL: &std::ffi::CStr = c"secateur_wait_report";

/// `WaitRecord` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(16))]
struct WaitRecord {
    barrier: [u8; 16],
    block: [u32; 3],
    thread: u32,
    /// 0 until a thread gives up.
    kernel: u32,
    unused: [u32; 3],
}

impl WaitRecord {
    /// The error, in the words of the emulator.
    fn error(&self) -> Option<Error> {
        if self.kernel == 0 {
            return None;
        }
        let kernel = kernels().values().find(|kernel| kernel.id() == self.kernel);
        let name = self.barrier.split(|byte| *byte == 0).next().unwrap_or_default();
        let [x, y, z] = self.block;
        Some(Error::Kernel {
            kernel: kernel.map_or("(unknown)".into(), |kernel| kernel.name().into()),
            message: format!(
                "block ({x}, {y}, {z}), thread {}: barrier {}: waited for more than 1 s",
                self.thread,
                String::from_utf8_lossy(name)
            ),
        })
    }
}

/// Memory for one record.
pub struct WaitReport {
    record: *mut WaitRecord,
}

impl WaitReport {
    /// In the context that is current in this thread.
    pub fn new() -> Result<Self, DriverError> {
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: the memory is written before it is read.
        let record: *mut WaitRecord = unsafe { result::malloc_host(size_of::<WaitRecord>(), flags) }?.cast();
        // SAFETY: it was allocated with this size, aligned to a page.
        unsafe { record.write(WaitRecord::zeroed()) };
        Ok(Self { record })
    }

    /// Tells a module that was just loaded where to write; nothing where its kernels wait for no barrier.
    pub fn install(&self, module: CUmodule) -> Result<(), DriverError> {
        // SAFETY: the module is loaded.
        let (symbol, bytes) = match unsafe { result::module::get_global(module, SYMBOL.into()) } {
            Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)) => return Ok(()),
            found => found?,
        };
        let mut address = 0;
        // SAFETY: the memory is page-locked and mapped.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, self.record.cast(), 0) }.result()?;
        // `WaitReport` of the kernels: the address, and no claim.
        let report = [address, 0];
        debug_assert_eq!(bytes, size_of_val(&report));
        // SAFETY: the symbol has this size, and no kernel of the module runs yet.
        unsafe { result::memcpy_htod_sync(symbol, &report) }
    }

    /// Who gave up, where somebody has.
    pub fn error(&self) -> Option<Error> {
        // SAFETY: the memory lives as long as `self`; a GPU writes the kernel last, after a fence.
        unsafe { ptr::read_volatile(self.record) }.error()
    }
}

impl Drop for WaitReport {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`; the driver that owns this has waited for its kernels, or they have ended in a trap.
        let _ = unsafe { result::free_host(self.record.cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kernel;
    use super::*;

    /// `tests/emulator/hopper_faults.rs` expects the same of the emulator.
    #[test]
    fn a_gpu_uses_the_words_of_the_emulator() {
        let mut record = WaitRecord::zeroed();
        assert!(record.error().is_none());
        record.barrier[..4].copy_from_slice(b"done");
        (record.block, record.thread) = ([2, 1, 0], 7);
        record.kernel = Kernel::named("conv_forward_relu_wgmma_128x256").unwrap().id();
        assert_eq!(
            record.error().unwrap().to_string(),
            "kernel conv_forward_relu_wgmma_128x256: block (2, 1, 0), thread 7: barrier done: waited for more than 1 s"
        );
    }
}
