//! The host runner as a driver: blocks in parallel over the CPU's cores, every memory access checked.
//!
//! Checked by `tests/runner.rs`. The runner itself is C++, in `kernels/host/`.

use std::ffi::{c_char, c_int, c_void};
use std::rc::Rc;

use rayon::prelude::*;

use super::graph::Capture;
use super::kernel::Entry;
use super::{Address, Cost, Driver, Graph, Kernel};
use crate::engine::{DeviceInfo, Error, Phase, Result};

// kernels/host/library.h
unsafe extern "C" {
    fn secateur_host_alloc(name: *const c_char, name_bytes: usize, bytes: u64) -> u64;
    fn secateur_host_free(address: u64) -> c_int;
    fn secateur_host_memory(
        address: u64,
        bytes: u64,
        message: *mut c_char,
        message_bytes: usize,
    ) -> *mut c_void;
    fn secateur_host_run_block(
        kernel: *const Entry,
        params: *const c_void,
        grid: *const u32,
        block: *const u32,
        reversed: c_int,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
}

/// In which order the warps of a block run between two barriers. A correct kernel gives the same bits in both; one that
/// lacks a barrier is likely to differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WarpOrder {
    #[default]
    Forward,
    Reversed,
}

/// Runs kernels on the CPU.
#[derive(Default)]
pub struct HostDriver {
    order: WarpOrder,
    capture: Capture,
}

impl HostDriver {
    pub fn open() -> Rc<dyn Driver> {
        Rc::new(Self::default())
    }
    pub fn with_warp_order(order: WarpOrder) -> Rc<dyn Driver> {
        Rc::new(Self { order, ..Self::default() })
    }
}

/// Room for a message of the host library.
struct Message([u8; 1024]);

impl Message {
    fn new() -> Self {
        Self([0; 1024])
    }
    fn room(&mut self) -> (*mut c_char, usize) {
        (self.0.as_mut_ptr().cast(), self.0.len())
    }
    fn text(&self) -> String {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        String::from_utf8_lossy(&self.0[..end]).into_owned()
    }
}

/// The host memory of `bytes` bytes at `address`; valid while the allocation lives.
fn memory(call: &'static str, address: Address, bytes: usize) -> Result<*mut u8> {
    let mut message = Message::new();
    let (text, room) = message.room();
    // SAFETY: the message buffer is valid for `room` bytes.
    let memory = unsafe { secateur_host_memory(address.0, bytes as u64, text, room) };
    if memory.is_null() {
        return Err(Error::Driver { call, message: message.text() });
    }
    Ok(memory.cast())
}

fn run_block(
    kernel: &Kernel,
    grid: [u32; 3],
    index: u64,
    order: WarpOrder,
    params: &[u8],
) -> Result<(), String> {
    let (x, y) = (u64::from(grid[0]), u64::from(grid[1]));
    let block = [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32];
    let mut message = Message::new();
    let (text, room) = message.room();
    // SAFETY: `params` has the size that the kernel declared (checked by `launch`) and its alignment; grid and block are
    // three words; the kernel's own accesses are checked by the runner.
    let failed = unsafe {
        secateur_host_run_block(
            kernel.entry(),
            params.as_ptr().cast(),
            grid.as_ptr(),
            block.as_ptr(),
            (order == WarpOrder::Reversed).into(),
            text,
            room,
        )
    };
    if failed == 0 { Ok(()) } else { Err(message.text()) }
}

impl Driver for HostDriver {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            kind: "emulated",
            name: format!("{} CPU threads", rayon::current_num_threads()),
            driver: None,
            code: "host".into(),
            memory: None,
            cache: None,
        }
    }

    fn alloc(&self, name: &'static str, bytes: usize) -> Result<Address> {
        self.capture.forbid("alloc")?;
        // SAFETY: `name` is valid for its length.
        let address = unsafe { secateur_host_alloc(name.as_ptr().cast(), name.len(), bytes as u64) };
        if address == 0 {
            return Err(Error::OutOfMemory { what: name.into(), bytes });
        }
        Ok(Address(address))
    }

    fn free(&self, address: Address) {
        // SAFETY: the library checks that an allocation starts here; launches have ended, since they are synchronous.
        unsafe { secateur_host_free(address.0) };
    }

    fn write(&self, address: Address, bytes: &[u8]) -> Result<()> {
        self.capture.forbid("write")?;
        let to = memory("write", address, bytes.len())?;
        // SAFETY: `to` is valid for this many bytes, and no Rust slice ever lies in device memory.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn read(&self, address: Address, bytes: &mut [u8]) -> Result<()> {
        self.capture.forbid("read")?;
        let from = memory("read", address, bytes.len())?;
        // SAFETY: as in `write`.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn fill(&self, address: Address, byte: u8, count: usize) -> Result<()> {
        self.capture.forbid("fill")?;
        let to = memory("fill", address, count)?;
        // SAFETY: as in `write`.
        unsafe { to.write_bytes(byte, count) };
        Ok(())
    }

    fn copy(&self, from: Address, to: Address, count: usize) -> Result<()> {
        self.capture.forbid("copy")?;
        let (from, to) = (memory("copy", from, count)?, memory("copy", to, count)?);
        // SAFETY: both are valid for this many bytes; `copy` allows overlap.
        unsafe { to.copy_from(from, count) };
        Ok(())
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], params: &[u8], cost: Cost) -> Result<()> {
        if self.capture.keep(kernel, grid, params, cost) {
            return Ok(());
        }
        if params.len() != kernel.params_bytes() {
            return Err(Error::Kernel {
                kernel: kernel.name().into(),
                message: format!("{} bytes of parameters, expected {}", params.len(), kernel.params_bytes()),
            });
        }
        // Parameter structs hold 8-byte addresses; a byte slice promises no alignment.
        let mut aligned = vec![0u64; params.len().div_ceil(8)];
        let aligned: &mut [u8] = bytemuck::cast_slice_mut(&mut aligned);
        aligned[..params.len()].copy_from_slice(params);
        let aligned = &*aligned;
        let blocks = grid.iter().map(|n| u64::from(*n)).product::<u64>();
        let order = self.order;
        // The first failing block is reported, so that the same fault gives the same message.
        let failure = (0..blocks)
            .into_par_iter()
            .find_map_first(|index| run_block(kernel, grid, index, order, aligned).err());
        match failure {
            Some(message) => Err(Error::Kernel { kernel: kernel.name().into(), message }),
            None => Ok(()),
        }
    }

    fn synchronize(&self) -> Result<()> {
        self.capture.forbid("synchronize")
    }

    fn captures(&self) -> bool {
        true
    }
    fn begin_capture(&self) -> Result<()> {
        self.capture.begin()
    }
    fn end_capture(&self) -> Result<Graph> {
        Ok(Graph::new(self.capture.end()?, None))
    }
    fn replay(&self, graph: &Graph) -> Result<()> {
        self.capture.forbid("replay")?;
        let mut launches = graph.launches().iter();
        launches.try_for_each(|launch| self.launch(&launch.kernel, launch.grid, &launch.params, launch.cost))
    }
    fn phase(&self, phase: Phase) {
        self.capture.phase(phase);
    }
}
