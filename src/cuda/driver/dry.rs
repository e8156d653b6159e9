//! A driver that runs nothing: memory is addresses without bytes behind them, launches are ignored.
//!
//! Under a [`super::record::Recorder`] it tells what a training step would launch on a GPU, without one and without
//! the time that the emulator takes. Reads return zeros.

use std::cell::Cell;
use std::rc::Rc;

use super::{Address, Cost, DeviceOptions, Driver, Kernel, MapSpec, TensorMap, WgmmaSwitch};
use crate::engine::{DeviceInfo, Result};

/// Nothing is here; addresses count up from one that no pointer has.
pub struct DryDriver {
    options: DeviceOptions,
    next: Cell<u64>,
}

/// The cache of an H100.
const CACHE_BYTES: u64 = 50 << 20;

/// What allocations are aligned to.
const ALIGNMENT: u64 = 256;

impl DryDriver {
    pub fn open() -> Rc<dyn Driver> {
        Self::with(DeviceOptions::default())
    }
    pub fn with(options: DeviceOptions) -> Rc<dyn Driver> {
        Rc::new(Self { options, next: Cell::new(ALIGNMENT) })
    }
}

impl Driver for DryDriver {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            kind: "dry",
            name: "no device".into(),
            driver: None,
            code: "none".into(),
            memory: None,
            cache: Some(CACHE_BYTES),
            wgmma_off: self.options.wgmma_off.names(),
        }
    }
    fn alloc(&self, _name: &'static str, bytes: usize) -> Result<Address> {
        let address = self.next.get();
        self.next.set(address + (bytes as u64).next_multiple_of(ALIGNMENT).max(ALIGNMENT));
        Ok(Address(address))
    }
    fn free(&self, _address: Address) {}
    fn write(&self, _address: Address, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
    fn read(&self, _address: Address, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        Ok(())
    }
    fn fill(&self, _address: Address, _byte: u8, _count: usize) -> Result<()> {
        Ok(())
    }
    fn copy(&self, _from: Address, _to: Address, _count: usize) -> Result<()> {
        Ok(())
    }
    fn launch(&self, _kernel: &Kernel, _grid: [u32; 3], _params: &[u8], _cost: Cost) -> Result<()> {
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn tensor_map(&self, spec: &MapSpec) -> Result<TensorMap> {
        spec.check()?;
        Ok(spec.host_words())
    }
    /// The devices whose rates a prediction takes are Hoppers.
    fn has_wgmma(&self) -> bool {
        !self.options.wgmma_off.has(WgmmaSwitch::All)
    }
    fn options(&self) -> DeviceOptions {
        self.options
    }
}
