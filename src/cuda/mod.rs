//! The cuda engine: our kernels in bf16 with f32 accumulation, on a GPU or on the emulator.

pub mod driver;
mod engine;
pub(crate) mod eval;
mod graphs;
pub mod launch;
pub mod layout;
mod parameters;
mod scratch;
mod train;

use std::rc::Rc;

use crate::engine::{Device, Engine, Recording, Result};
use crate::model::ResNet;
use driver::record::Recorder;
use driver::{DeviceOptions, Driver};

pub use engine::Cuda;

/// Opens GPU number `ordinal`.
pub fn open_device(
    ordinal: usize,
    network: ResNet,
    max_batch: usize,
    options: DeviceOptions,
) -> Result<Engine> {
    open(driver::device::DeviceDriver::with(ordinal, options)?, network, max_batch)
}

/// Opens a driver.
pub fn open(driver: Rc<dyn Driver>, network: ResNet, max_batch: usize) -> Result<Engine> {
    let cuda = Cuda::new(driver, network, max_batch)?;
    Ok(Engine::new(Device::Cuda(Box::new(cuda)), network, max_batch))
}

/// [`open`], with a record of its launches.
pub fn open_recorded(
    driver: Rc<dyn Driver>,
    network: ResNet,
    max_batch: usize,
) -> Result<(Engine, Recording)> {
    let (driver, recording) = Recorder::wrap(driver);
    Ok((open(driver, network, max_batch)?, recording))
}
