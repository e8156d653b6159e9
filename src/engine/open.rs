//! From `--device` to an engine.

use std::rc::Rc;
use std::str::FromStr;

use super::{DeviceOptions, Engine, Error, Recording, Result};
use crate::cpu::{self, Format};
use crate::cuda;
use crate::cuda::driver::Driver;
use crate::cuda::driver::device::DeviceDriver;
use crate::cuda::driver::dry::DryDriver;
use crate::cuda::driver::host::{HostDriver, HostOptions};
use crate::model::ResNet;

/// What `--device` means: `auto`, `cpu`, `cpu:bf16`, `cuda`, `cuda:N`, `emulated`, `emulated:sm_90a`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU if there is one that this build has code for, else the CPU: in bf16 where it multiplies bf16 itself.
    #[default]
    Auto,
    /// The CPU in f32.
    Cpu,
    /// The CPU with the numerics of the GPU.
    CpuBf16,
    /// Our kernels on GPU number N.
    Cuda(usize),
    /// Our kernels on the emulator: those that every GPU from sm_80 on runs.
    Emulated,
    /// The same as an H100 or H200 would run them: wgmma and TMA where there are kernels for them.
    EmulatedHopper,
}

impl DeviceChoice {
    /// Whether it means the CPU engine, which launches no kernels.
    pub fn is_cpu(self) -> bool {
        matches!(self, Self::Cpu | Self::CpuBf16)
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "device '{text}': expected auto, cpu, cpu:bf16, cuda, cuda:N, emulated or emulated:sm_90a"
            )
        };
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cpu:bf16" => Ok(Self::CpuBf16),
            "emulated" => Ok(Self::Emulated),
            "emulated:sm_90a" => Ok(Self::EmulatedHopper),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:").ok_or_else(expected)?;
                number.parse().map(Self::Cuda).map_err(|_| expected())
            }
        }
    }
}

/// Opens a device for `network`, ready for batches of up to `max_batch` images. Weights are undefined until loaded.
pub fn open(choice: DeviceChoice, network: ResNet, max_batch: usize) -> Result<Engine> {
    open_with(choice, network, max_batch, DeviceOptions::from_environment()?)
}

/// [`open`] with these options, of which the CPU has none.
pub fn open_with(
    choice: DeviceChoice,
    network: ResNet,
    max_batch: usize,
    options: DeviceOptions,
) -> Result<Engine> {
    expect_batch(max_batch)?;
    match choice {
        DeviceChoice::Cpu => cpu::open(network, max_batch, Format::F32),
        DeviceChoice::CpuBf16 => cpu::open(network, max_batch, Format::Bf16),
        DeviceChoice::Cuda(ordinal) => cuda::open_device(ordinal, network, max_batch, options),
        DeviceChoice::Emulated => cuda::open(emulator(false, options), network, max_batch),
        DeviceChoice::EmulatedHopper => cuda::open(emulator(true, options), network, max_batch),
        DeviceChoice::Auto => match cuda::open_device(0, network, max_batch, options) {
            Err(Error::Unavailable(_)) => cpu::open(network, max_batch, cpu::native_format()?),
            opened => opened,
        },
    }
}

/// [`open`], with a record of every launch of a kernel. Where there is no GPU, `auto` means the emulated device.
///
/// # Errors
/// [`Error::Unavailable`] for the CPU, which has no kernels.
pub fn open_recorded(choice: DeviceChoice, network: ResNet, max_batch: usize) -> Result<(Engine, Recording)> {
    open_recorded_with(choice, network, max_batch, DeviceOptions::from_environment()?)
}

/// [`open_recorded`] with these options.
pub fn open_recorded_with(
    choice: DeviceChoice,
    network: ResNet,
    max_batch: usize,
    options: DeviceOptions,
) -> Result<(Engine, Recording)> {
    expect_batch(max_batch)?;
    let driver = match choice {
        DeviceChoice::Cpu | DeviceChoice::CpuBf16 => {
            return Err(Error::Unavailable(
                "--device cpu: the CPU engine launches no kernels to record; use cuda or emulated".into(),
            ));
        }
        DeviceChoice::Cuda(ordinal) => DeviceDriver::with(ordinal, options)?,
        DeviceChoice::Emulated => emulator(false, options),
        DeviceChoice::EmulatedHopper => emulator(true, options),
        DeviceChoice::Auto => match DeviceDriver::with(0, options) {
            Err(Error::Unavailable(_)) => emulator(false, options),
            opened => opened?,
        },
    };
    cuda::open_recorded(driver, network, max_batch)
}

/// An engine that runs nothing, with a record of what it would launch; whatever is read from it is zero.
pub fn open_dry(network: ResNet, max_batch: usize) -> Result<(Engine, Recording)> {
    cuda::open_recorded(DryDriver::with(DeviceOptions::from_environment()?), network, max_batch)
}

fn emulator(hopper: bool, device: DeviceOptions) -> Rc<dyn Driver> {
    HostDriver::with(HostOptions { hopper, device, ..HostOptions::default() })
}

fn expect_batch(max_batch: usize) -> Result<()> {
    if max_batch > 0 {
        return Ok(());
    }
    Err(Error::Invalid("batches of 0 images, expected 1 at least".into()))
}
