//! The emulator as a driver: blocks in parallel over the CPU's cores, every memory access checked.
//!
//! The emulator itself is C++, in `kernels/host/`.

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void};
use std::rc::Rc;

use rayon::prelude::*;

use super::graph::Capture;
use super::kernel::Entry;
use super::nvtx::PhaseRanges;
use super::{Address, Cost, DeviceOptions, Driver, Graph, Kernel, MapSpec, TensorMap, WgmmaSwitch, aligned};
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
    fn secateur_host_run_cluster(
        kernel: *const Entry,
        params: *const c_void,
        grid: *const u32,
        block: *const u32,
        order: u32,
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

/// When asynchronous copies (TMA) happen. A correct kernel gives the same bits in both; wgmma happens at its wait in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AsyncOrder {
    /// As late as can be: loads when no thread can go on, stores at the wait that covers them. Who does not wait for a load
    /// reads poison; who writes to a store's source too early spoils what it stores.
    #[default]
    Late,
    /// At once; and whoever ends a phase of an mbarrier lets the threads that waited for it go first. Who releases a buffer
    /// too early finds it overwritten.
    Early,
}

/// How the emulator takes its freedoms, and what it claims to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostOptions {
    pub warp_order: WarpOrder,
    pub async_order: AsyncOrder,
    /// Whether [`Driver::has_wgmma`] says yes, so that the launches choose the kernels for Hopper.
    pub hopper: bool,
    pub device: DeviceOptions,
}

/// Runs kernels on the CPU.
#[derive(Default)]
pub struct HostDriver {
    options: HostOptions,
    capture: Capture,
    ranges: RefCell<PhaseRanges>,
}

impl HostDriver {
    pub fn open() -> Rc<dyn Driver> {
        Rc::new(Self::default())
    }
    pub fn with_warp_order(warp_order: WarpOrder) -> Rc<dyn Driver> {
        Self::with(HostOptions { warp_order, ..HostOptions::default() })
    }
    /// An emulator that stands for a Hopper.
    pub fn hopper() -> Rc<dyn Driver> {
        Self::with(HostOptions { hopper: true, ..HostOptions::default() })
    }
    pub fn with(options: HostOptions) -> Rc<dyn Driver> {
        Rc::new(Self { options, ..Self::default() })
    }
}

/// Room for a message of the host library.
struct Message([u8; 1024]);

impl Message {
    fn new() -> Self {
        Self([0; 1024])
    }
    fn capacity(&mut self) -> (*mut c_char, usize) {
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
    let (text, capacity) = message.capacity();
    // SAFETY: the message buffer is valid for `capacity` bytes.
    let memory = unsafe { secateur_host_memory(address.0, bytes as u64, text, capacity) };
    if memory.is_null() {
        return Err(Error::Driver { call, message: message.text() });
    }
    Ok(memory.cast())
}

/// Runs cluster number `index` of the grid, mostly a single block.
fn run_cluster(
    kernel: &Kernel,
    grid: [u32; 3],
    index: u64,
    options: HostOptions,
    params: &[u8],
) -> Result<(), String> {
    let (x, y) = (u64::from(grid[0] / kernel.cluster_blocks()), u64::from(grid[1]));
    let block =
        [(index % x) as u32 * kernel.cluster_blocks(), (index / x % y) as u32, (index / x / y) as u32];
    // secateur_host_reversed and secateur_host_early
    let order = u32::from(options.warp_order == WarpOrder::Reversed)
        + 2 * u32::from(options.async_order == AsyncOrder::Early);
    let mut message = Message::new();
    let (text, capacity) = message.capacity();
    // SAFETY: `params` has the size that the kernel declared (checked by `launch`) and its alignment; grid and block are
    // three words; the kernel's own accesses are checked by the emulator.
    let failed = unsafe {
        secateur_host_run_cluster(
            kernel.entry(),
            params.as_ptr().cast(),
            grid.as_ptr(),
            block.as_ptr(),
            order,
            text,
            capacity,
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
            wgmma_off: match self.options.hopper {
                true => self.options.device.wgmma_off.names(),
                false => Vec::new(),
            },
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
        let options = self.options;
        let params = aligned(params);
        let params: &[u8] = bytemuck::cast_slice(&params);
        let clusters =
            grid.iter().map(|n| u64::from(*n)).product::<u64>() / u64::from(kernel.cluster_blocks());
        // The first failing cluster is reported, so that the same fault gives the same message.
        let failure = (0..clusters)
            .into_par_iter()
            .find_map_first(|index| run_cluster(kernel, grid, index, options, params).err());
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
        graph.launches().iter().try_for_each(|launch| launch.call.make(self))
    }
    fn phase(&self, phase: Phase) {
        self.capture.phase(phase);
        self.ranges.borrow_mut().begin(phase);
    }
    fn layer(&self, layer: Option<usize>) {
        self.capture.layer(layer);
    }

    fn tensor_map(&self, spec: &MapSpec) -> Result<TensorMap> {
        spec.check()?;
        memory("tensor_map", spec.address(), spec.extent() as usize)?;
        Ok(spec.host_words())
    }

    fn has_wgmma(&self) -> bool {
        self.options.hopper && !self.options.device.wgmma_off.has(WgmmaSwitch::All)
    }
    fn options(&self) -> DeviceOptions {
        self.options.device
    }
}
