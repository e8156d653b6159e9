//! The GPUs of this machine: whether one can be used, what it is, and its context.
//!
//! What decides without a GPU (which code, which errors) is in `code` and tested there. Drivers of one GPU share its context, which
//! stays open: to make one takes a third of a second.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::CUdevice_attribute;
use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::code::{self, RELEASE};
use super::failure::{failed, unavailable};
use super::loader::{self, Loader};
use super::wait_report::WaitReport;
use super::{DeviceOptions, WgmmaSwitch};
use crate::engine::{DeviceInfo, Error, Result};

/// A GPU that can be used.
pub struct Gpu {
    pub context: Arc<CudaContext>,
    pub info: DeviceInfo,
    pub loader: Loader,
    pub options: DeviceOptions,
    /// Whether kernels for sm_90a alone are used, but for those that are switched off.
    pub wgmma: bool,
    /// CUDA release of the driver: 1000 * major + 10 * minor.
    pub version: u32,
}

impl Gpu {
    /// GPU number `ordinal`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for everything that keeps it from being used; it says what to do.
    pub fn open(ordinal: usize, options: DeviceOptions) -> Result<Self> {
        // SAFETY: looks for the library by the names that the system knows it by.
        let library = unsafe { sys::is_culib_present() };
        let (true, Some(release)) = (library, RELEASE) else {
            return Err(Error::Unavailable(code::missing(library, RELEASE.is_some())));
        };
        let mut version = 0;
        // SAFETY: the library is there; this call needs no initialisation.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(failed("cuDriverGetVersion"))?;
        result::init().map_err(unavailable)?;
        let count = result::device::get_count().map_err(unavailable)?;
        if ordinal >= count as usize {
            return Err(Error::Unavailable(format!(
                "--device cuda:{ordinal}: this machine has {count} GPU{}; they are numbered from 0",
                if count == 1 { "" } else { "s" }
            )));
        }
        let context = context(ordinal).map_err(unavailable)?;
        let name = context.name().map_err(failed("cuDeviceGetName"))?;
        let (major, minor) = context.compute_capability().map_err(failed("cuDeviceGetAttribute"))?;
        let capability = (major as u32, minor as u32);
        let target = code::choose(&loader::targets(), capability)
            .ok_or_else(|| Error::Unavailable(code::no_target(&name, capability, &loader::targets())))?;
        if let Some(message) = code::driver_too_old(version as u32, release, target) {
            return Err(Error::Unavailable(message));
        }
        let hopper = target == "sm_90a";
        let wgmma = hopper && !options.wgmma_off.has(WgmmaSwitch::All);
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared_limit = context.attribute(attribute).map_err(failed("cuDeviceGetAttribute"))?;
        let cache = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
        let info = DeviceInfo {
            kind: "cuda",
            name,
            driver: Some(format!("CUDA {}.{}", version / 1000, version % 1000 / 10)),
            code: target.into(),
            memory: context.total_mem().ok().map(|bytes| bytes as u64),
            cache: cache.ok().and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0),
            wgmma_off: if hopper { options.wgmma_off.names() } else { Vec::new() },
        };
        // Another thread may have opened it.
        context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let waits = WaitReport::new().map_err(failed("cuMemHostAlloc"))?;
        let carve_out = wgmma && options.carve_out;
        let loader = Loader::new(info.name.clone(), capability, shared_limit as u32, carve_out, waits);
        Ok(Self { context, info, loader, options, wgmma, version: version as u32 })
    }
}

/// The context of GPU number `ordinal`, made at the first call and never closed: a test or a bench opens many drivers.
fn context(ordinal: usize) -> Result<Arc<CudaContext>, DriverError> {
    static OPEN: Mutex<BTreeMap<usize, Arc<CudaContext>>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(context) = open.get(&ordinal) {
        return Ok(context.clone());
    }
    let context = CudaContext::new(ordinal)?;
    // SAFETY: all work of a driver goes through one stream, so nothing has to be tracked between streams.
    unsafe { context.disable_event_tracking() };
    open.insert(ordinal, context.clone());
    Ok(context)
}
