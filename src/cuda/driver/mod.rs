//! Drivers: memory and launches, on a GPU ([`device`]) or on the emulator ([`host`]). The only unsafe code of the crate.
//! A third, [`record`], wraps another and keeps what each launch took; a fourth, [`dry`], runs nothing, to be recorded.
//! Launches that come again and again may be recorded once and replayed ([`Graph`]).
//!
//! The same kernels, grids and parameter structs go through both. A launch names a kernel by its symbol; block size, shared
//! memory and parameter size come from the one table of [`kernel`].

mod buffer;
mod cache;
mod call;
mod code;
mod cost;
pub mod device;
pub mod dry;
mod encode;
mod failure;
mod gpu;
mod graph;
pub mod host;
mod kernel;
mod loader;
pub mod nccl;
pub mod nvtx;
mod occupancy;
mod options;
pub mod record;
mod tensor_map;
mod wait_report;

pub use buffer::Buffer;
pub use cache::{FLUSH_FACTOR, last_level_cache};
pub use call::Call;
pub use code::{Image, Usage, add_code, static_table};
pub use cost::Cost;
pub use graph::{Captured, Graph};
pub use kernel::{Kernel, kernels};
pub use occupancy::{Occupancy, occupancy};
pub use options::{DeviceOptions, WgmmaOff, WgmmaSwitch};
pub use tensor_map::{Im2colMap, MapSpec, Swizzle, TensorMap, TiledMap};

use std::ops::Add;
use std::time::Instant;

use cudarc::driver::CudaEvent;

use crate::collective::Collective;
use crate::engine::{DeviceInfo, Error, Phase, Result};
use nccl::DeviceGroup;

/// A place in device memory: eight bytes in parameter structs, `Global<T>` in kernels. On the emulator it is a handle,
/// not a host address; only the driver that made it can follow it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Address(pub u64);

impl Address {
    /// What an absent optional operand is: `present()` is false in the kernel.
    pub const NULL: Self = Self(0);

    /// The place `count` elements of T further on.
    pub fn offset<T>(self, count: usize) -> Self {
        self + count * size_of::<T>()
    }
}

/// Bytes further on.
impl Add<usize> for Address {
    type Output = Self;
    fn add(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// Device memory and launches. Work is done in the order of the calls; it may still be under way when a call returns, until
/// `read` or `synchronize`, and an error of a launch may be reported by a later call.
pub trait Driver {
    fn info(&self) -> DeviceInfo;
    /// Uninitialised memory (0xFF bytes on the host), aligned to 256 bytes. Use [`Buffer`], which frees it.
    fn alloc(&self, name: &'static str, bytes: usize) -> Result<Address>;
    fn free(&self, address: Address);
    fn write(&self, address: Address, bytes: &[u8]) -> Result<()>;
    fn read(&self, address: Address, bytes: &mut [u8]) -> Result<()>;
    /// Sets `count` bytes.
    fn fill(&self, address: Address, byte: u8, count: usize) -> Result<()>;
    /// Copies `count` bytes between places that do not overlap.
    fn copy(&self, from: Address, to: Address, count: usize) -> Result<()>;
    /// Runs a kernel on `grid` blocks; `params` is its parameter struct, `cost` what it has to do, for drivers that keep
    /// account. [`launch`] is the typed form.
    fn launch(&self, kernel: &Kernel, grid: [u32; 3], params: &[u8], cost: Cost) -> Result<()>;
    fn synchronize(&self) -> Result<()>;
    /// A tensor map for kernels of this driver. A spec that a GPU would not take, or a tensor that is not all inside one
    /// allocation, is an error.
    fn tensor_map(&self, spec: &MapSpec) -> Result<TensorMap>;
    /// Whether kernels that say `// Targets: sm_90a` run here: TMA, wgmma and their like.
    fn has_wgmma(&self) -> bool;
    /// What it was opened with.
    fn options(&self) -> DeviceOptions {
        DeviceOptions::default()
    }

    /// Whether launches can be recorded and replayed.
    fn captures(&self) -> bool {
        false
    }
    /// From here to [`Driver::end_capture`] launches are recorded and not done, and nothing else may be asked for but phases.
    /// Every kernel must have been launched before, so that its code is loaded.
    fn begin_capture(&self) -> Result<()> {
        Err(Error::Invalid("this driver records no launches".into()))
    }
    /// What was launched since [`Driver::begin_capture`]. Ends the capture even where it is an error.
    fn end_capture(&self) -> Result<Graph> {
        Err(Error::Invalid("this driver records no launches".into()))
    }
    /// Does the launches of a graph that this driver recorded. The memory that they name must still be there.
    fn replay(&self, _graph: &Graph) -> Result<()> {
        Err(Error::Invalid("this driver replays no launches".into()))
    }

    /// A moment between what was asked for before and after. Where work is done when its call returns, that is the clock's.
    fn mark(&self) -> Result<Mark> {
        Ok(Mark::now())
    }
    /// Seconds from one moment to a later one; waits for it.
    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64> {
        from.clock_seconds(to)
    }
    /// Bytes of the largest cache between the kernels and their memory.
    fn cache_bytes(&self) -> usize {
        self.info().cache.map_or_else(last_level_cache, |bytes| bytes as usize)
    }
    /// Reduces its memory with that of the other ranks' devices; `None` where that has to pass through the host.
    fn join(&self, _group: &dyn Collective) -> Result<Option<Box<dyn DeviceGroup>>> {
        Ok(None)
    }
    /// Work of this kind begins, for drivers that keep account and for tools that watch.
    fn phase(&self, _phase: Phase) {}
    /// What follows is of this layer (its number in the layer table) or of none, for drivers that keep account.
    fn layer(&self, _layer: Option<usize>) {}
    /// Tells profilers that watch this process where the part begins and ends that they are to look at.
    fn profiler(&self, _on: bool) -> Result<()> {
        Ok(())
    }
}

/// Parameter structs hold addresses and tensor maps, which want 64 bytes of alignment; a byte slice promises none.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct ParamLine([u8; 64]);

/// The parameters where a kernel may read them.
fn aligned(params: &[u8]) -> Vec<ParamLine> {
    let mut lines = vec![ParamLine([0; 64]); params.len().div_ceil(64)];
    bytemuck::cast_slice_mut(&mut lines)[..params.len()].copy_from_slice(params);
    lines
}

/// A moment in the work of a device.
pub enum Mark {
    Clock(Instant),
    /// An event of a GPU's stream.
    Event(CudaEvent),
}

impl Mark {
    /// This moment by the system's clock.
    pub fn now() -> Self {
        Self::Clock(Instant::now())
    }

    /// Seconds from here to a later moment of the same clock.
    pub fn clock_seconds(&self, to: &Self) -> Result<f64> {
        match (self, to) {
            (Self::Clock(from), Self::Clock(to)) => Ok(to.duration_since(*from).as_secs_f64()),
            _ => Err(Error::Invalid("seconds between moments of different clocks".into())),
        }
    }
}

/// Runs a kernel on `grid` blocks of its own size. An empty grid does nothing.
pub fn launch<P: bytemuck::Pod>(
    driver: &dyn Driver,
    kernel: &Kernel,
    grid: [u32; 3],
    params: &P,
    cost: Cost,
) -> Result<()> {
    let refused = |message| Err(Error::Kernel { kernel: kernel.name().into(), message });
    let (actual, expected) = (size_of::<P>(), kernel.params_bytes());
    if actual != expected {
        return refused(format!(
            "parameter struct of {actual} bytes, the kernel has one of {expected}: the Rust and C++ structs differ"
        ));
    }
    if grid[1] > 65535 || grid[2] > 65535 || grid[0] > i32::MAX as u32 {
        return refused(format!("grid {grid:?}, the limits are {}, 65535 and 65535", i32::MAX));
    }
    if grid.contains(&0) {
        return Ok(());
    }
    let blocks = kernel.cluster_blocks();
    if !grid[0].is_multiple_of(blocks) {
        return refused(format!("grid {grid:?}, expected x a multiple of the {blocks} blocks of a cluster"));
    }
    let _range = nvtx::Range::new(kernel.name());
    driver.launch(kernel, grid, bytemuck::bytes_of(params), cost)
}
