//! The cuda engine: our kernels in bf16 with f32 accumulation, on a GPU or on the host runner.
//!
//! | file | what lives there |
//! |---|---|
//! | `driver/` | memory and launches, on a GPU or on the host runner; the only unsafe code |
//! | `launch/` | for each kernel its parameter struct and its grid |
//! | `layout` | where every tensor lies in the flat arenas |
//! | `parameters` | the arenas: weights, gradients, optimizer state, folded copies |
//! | `eval`, `train` | the two passes over the network, forward and back |
//! | `scratch` | gradients on their way back |
//! | `operands` | from tensors to addresses |
//! | `engine` | the [`Engine`] trait on top of these |
//! | `paired_passes` | both train passes of a step as one |
//! | `attack_loop` | the steps of an attack as one piece of work |
//! | `graphs`, `execution` | attacks and passes recorded and replayed, and whether that is done |
//! | `softmax_losses` | its part for the losses of training and of most attacks |
//! | `square` | its part for random searches |
//! | `apgd`, `margin` | the traits that attacks of an evaluation add to it |
//! | `ladder` | every layer on every kind of convolution kernel, for measurements |
//! | `last_layer` | its part for selections |
//! | `predict` | how long launches should take on an H200 |
//! | `probes` | its part for measurements |

mod apgd;
mod attack_loop;
mod boundary;
pub mod driver;
mod engine;
mod eval;
mod execution;
mod graphs;
mod ladder;
mod last_layer;
pub mod launch;
pub mod layout;
mod margin;
mod operands;
mod paired_passes;
mod parameters;
mod predict;
mod probes;
mod scratch;
mod softmax_losses;
mod square;
mod train;

use std::rc::Rc;

use super::{Engine, Recording, Result};
use crate::model::ResNet;
use driver::record::Recorder;
use driver::{DeviceOptions, Driver};

/// Opens GPU number `ordinal`.
pub fn open_device(ordinal: usize, network: ResNet, max_batch: usize) -> Result<Box<dyn Engine>> {
    let driver = driver::device::DeviceDriver::open(ordinal)?;
    Ok(Box::new(engine::Cuda::new(driver, network, max_batch)?))
}

/// Opens a host runner: the same kernels, launches and grids on the CPU.
pub fn open_emulated(host: Rc<dyn Driver>, network: ResNet, max_batch: usize) -> Result<Box<dyn Engine>> {
    Ok(Box::new(engine::Cuda::new(host, network, max_batch)?))
}

/// [`open_device`], with a record of its launches.
pub fn record_device(
    ordinal: usize,
    network: ResNet,
    max_batch: usize,
    options: DeviceOptions,
) -> Result<(Box<dyn Engine>, Recording)> {
    recorded(driver::device::DeviceDriver::with(ordinal, options)?, network, max_batch)
}

/// [`open_emulated`], with a record of its launches.
pub fn record_emulated(
    host: Rc<dyn Driver>,
    network: ResNet,
    max_batch: usize,
) -> Result<(Box<dyn Engine>, Recording)> {
    recorded(host, network, max_batch)
}

/// What the launches on a GPU would be, of which none is made.
pub fn record_dry(
    network: ResNet,
    max_batch: usize,
    options: DeviceOptions,
) -> Result<(Box<dyn Engine>, Recording)> {
    recorded(driver::dry::DryDriver::with(options), network, max_batch)
}

fn recorded(
    driver: Rc<dyn Driver>,
    network: ResNet,
    max_batch: usize,
) -> Result<(Box<dyn Engine>, Recording)> {
    let (driver, recording) = Recorder::wrap(driver);
    Ok((Box::new(engine::Cuda::new(driver, network, max_batch)?), recording))
}
