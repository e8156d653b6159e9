//! An NVIDIA GPU as a driver, through the CUDA driver API (cudarc). Nothing here is linked: libcuda is loaded when a GPU is
//! asked for, and its absence is an ordinary error.
//!
//! One stream of our own orders all work. `gpu` says whether a GPU can be used, `loader` loads the code of its kernels.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig,
    CUresult, CUstreamCaptureMode,
};
use cudarc::driver::{CudaStream, DriverError, result, sys};

use super::encode::encode;
use super::failure::{described, failed, of_a_kernel};
use super::gpu::Gpu;
use super::graph::Capture;
use super::nccl::{DeviceGroup, Library, NcclGroup};
use super::nvtx::PhaseRanges;
use super::{Address, Cost, DeviceOptions, Driver, Graph, Kernel, MapSpec, Mark, TensorMap, aligned};
use crate::collective::Collective;
use crate::engine::{DeviceInfo, Error, Phase, Result};

/// A GPU and the stream of its work.
pub struct DeviceDriver {
    gpu: Gpu,
    stream: Arc<CudaStream>,
    /// Live allocations by address, so that copies are checked as on the host.
    allocations: RefCell<BTreeMap<u64, (usize, &'static str)>>,
    /// The newest launch, for errors that show up later.
    last: Cell<&'static str>,
    capture: Capture,
    /// The phases under way, for Nsight.
    ranges: RefCell<PhaseRanges>,
    /// Memory given back inside a capture, where cuMemFree would break it.
    unfreed: RefCell<Vec<Address>>,
}

/// The first CUDA release whose graphs keep what a launch may start before.
const EARLY_STARTS: u32 = 12_030;

impl DeviceDriver {
    /// Opens GPU number `ordinal`. Everything that keeps it from being used is an [`Error::Unavailable`] that says what to do.
    pub fn open(ordinal: usize) -> Result<Rc<dyn Driver>> {
        Self::with(ordinal, DeviceOptions::from_environment()?)
    }

    /// [`DeviceDriver::open`] with these options, whatever the environment says.
    pub fn with(ordinal: usize, options: DeviceOptions) -> Result<Rc<dyn Driver>> {
        let gpu = Gpu::open(ordinal, options)?;
        let stream = gpu.context.new_stream().map_err(failed("cuStreamCreate"))?;
        Ok(Rc::new(Self {
            gpu,
            stream,
            allocations: RefCell::default(),
            last: Cell::new(""),
            capture: Capture::default(),
            ranges: RefCell::default(),
            unfreed: RefCell::default(),
        }))
    }

    /// Makes this GPU the one that this thread's calls mean.
    fn bind(&self) -> Result<()> {
        self.gpu.context.bind_to_thread().map_err(self.late("cuCtxSetCurrent"))
    }

    /// A failed call that may report what an earlier launch did.
    fn late(&self, call: &'static str) -> impl Fn(DriverError) -> Error {
        let last = self.last.get();
        move |error| {
            let of_a_kernel = of_a_kernel(&error);
            if let (true, Some(error)) = (of_a_kernel, self.gpu.loader.waits.error()) {
                return error;
            }
            match failed(call)(error) {
                Error::Driver { message, .. } if of_a_kernel && !last.is_empty() => Error::Kernel {
                    kernel: last.into(),
                    message: format!(
                        "{message}, in this launch or one before it; CUDA_LAUNCH_BLOCKING=1 tells which, and --device \
                         emulated names the access"
                    ),
                },
                other => other,
            }
        }
    }

    /// Checks that a range lies in one allocation, as the emulator does.
    fn check(&self, call: &'static str, address: Address, bytes: usize) -> Result<()> {
        let allocations = self.allocations.borrow();
        let found = allocations.range(..=address.0).next_back();
        let Some((start, (size, name))) = found else {
            return Err(Error::Driver { call, message: format!("{:#x} is not device memory", address.0) });
        };
        let offset = (address.0 - start) as usize;
        if offset > *size || size - offset < bytes {
            let message = format!(
                "{bytes} bytes at byte offset {offset} of buffer '{name}' ({size} bytes): out of bounds"
            );
            return Err(Error::Driver { call, message });
        }
        Ok(())
    }
}

impl Driver for DeviceDriver {
    fn info(&self) -> DeviceInfo {
        self.gpu.info.clone()
    }

    fn alloc(&self, name: &'static str, bytes: usize) -> Result<Address> {
        self.capture.forbid("alloc")?;
        self.bind()?;
        // SAFETY: the memory is typed only by the kernels that use it. The driver gives none of zero bytes.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { what: name.into(), bytes },
            _ => self.late("cuMemAlloc")(error),
        })?;
        self.allocations.borrow_mut().insert(address, (bytes, name));
        Ok(Address(address))
    }

    fn free(&self, address: Address) {
        if self.capture.is_open() {
            self.unfreed.borrow_mut().push(address);
            return;
        }
        // Work that uses the memory may be under way. A failure here is that of an earlier launch, which the next call reports.
        let _ = self.stream.synchronize();
        if self.allocations.borrow_mut().remove(&address.0).is_some() && self.bind().is_ok() {
            // SAFETY: it was allocated here and not freed since, and all work has ended.
            let _ = unsafe { result::free_sync(address.0) };
        }
    }

    fn write(&self, address: Address, bytes: &[u8]) -> Result<()> {
        self.capture.forbid("write")?;
        self.check("write", address, bytes.len())?;
        self.bind()?;
        // SAFETY: the range was checked, and `bytes` is borrowed until the copy is over: CUDA does not promise to have taken bytes
        // of pageable memory when the call returns.
        unsafe { result::memcpy_htod_async(address.0, bytes, self.stream.cu_stream()) }
            .map_err(self.late("cuMemcpyHtoD"))?;
        self.synchronize()
    }

    fn read(&self, address: Address, bytes: &mut [u8]) -> Result<()> {
        self.capture.forbid("read")?;
        self.check("read", address, bytes.len())?;
        self.bind()?;
        // SAFETY: the range was checked, and `bytes` is borrowed until the copy is over.
        unsafe { result::memcpy_dtoh_async(bytes, address.0, self.stream.cu_stream()) }
            .map_err(self.late("cuMemcpyDtoH"))?;
        self.synchronize()
    }

    fn fill(&self, address: Address, byte: u8, count: usize) -> Result<()> {
        self.capture.forbid("fill")?;
        self.check("fill", address, count)?;
        self.bind()?;
        // SAFETY: the range was checked.
        unsafe { result::memset_d8_async(address.0, byte, count, self.stream.cu_stream()) }
            .map_err(self.late("cuMemset"))
    }

    fn copy(&self, from: Address, to: Address, count: usize) -> Result<()> {
        self.capture.forbid("copy")?;
        self.check("copy", from, count)?;
        self.check("copy", to, count)?;
        self.bind()?;
        // SAFETY: both ranges were checked.
        unsafe { result::memcpy_dtod_async(to.0, from.0, count, self.stream.cu_stream()) }
            .map_err(self.late("cuMemcpyDtoD"))
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], params: &[u8], cost: Cost) -> Result<()> {
        self.capture.keep(kernel, grid, params, cost);
        self.bind()?;
        let function = self.gpu.loader.function(kernel)?;
        let mut params = aligned(params);
        let mut early = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let may_start_early =
            self.gpu.options.dependent_launch && function.waits && self.gpu.version >= EARLY_STARTS;
        let config = CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: kernel.threads(),
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: kernel.shared_bytes(),
            hStream: self.stream.cu_stream(),
            attrs: &mut early,
            numAttrs: may_start_early.into(),
        };
        // SAFETY: the struct has the size that the kernel declared (checked by `launch`), block and shared memory are what it
        // was compiled for, and the driver copies parameters and attributes before it returns. A kernel that may start early
        // waits before it touches memory. The addresses in the parameters are the caller's word, as on every GPU; the host
        // emulator checks the same launches access by access.
        unsafe {
            let params: *mut c_void = params.as_mut_ptr().cast();
            sys::cuLaunchKernelEx(&config, function.handle, &mut [params] as *mut _, ptr::null_mut())
        }
        .result()
        .map_err(|error| match of_a_kernel(&error) {
            // Of a launch before this one.
            true => self.late("cuLaunchKernelEx")(error),
            false => Error::Kernel {
                kernel: kernel.name().into(),
                message: format!("cuLaunchKernelEx, grid {grid:?}: {}", described(&error)),
            },
        })?;
        self.last.set(kernel.name());
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        self.capture.forbid("synchronize")?;
        self.stream.synchronize().map_err(self.late("cuStreamSynchronize"))
    }

    fn tensor_map(&self, spec: &MapSpec) -> Result<TensorMap> {
        spec.check()?;
        self.check("tensor_map", spec.address(), spec.extent() as usize)?;
        if !self.has_wgmma() {
            return Err(Error::Unavailable(format!(
                "tensor maps need a Hopper and code for sm_90a, this is {}",
                self.gpu.info.name
            )));
        }
        self.bind()?;
        let mut words = encode(spec).map_err(|(call, error)| Error::Driver {
            call,
            message: format!("{} for {spec:?}", described(&error)),
        })?;
        // Drivers up to 13.1 set this bit wrongly for tensors under 128 KiB; NVIDIA's CUTLASS clears it likewise.
        if self.gpu.version <= 13_010 && spec.extent() < 128 * 1024 {
            words[1] &= !(1 << 21);
        }
        Ok(TensorMap::from_words(words))
    }

    fn has_wgmma(&self) -> bool {
        self.gpu.wgmma
    }

    fn options(&self) -> DeviceOptions {
        self.gpu.options
    }

    fn captures(&self) -> bool {
        true
    }

    fn begin_capture(&self) -> Result<()> {
        self.capture.begin()?;
        // Calls of other threads are no concern of this capture, nor it of theirs.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(|error| {
            let _ = self.capture.end();
            self.late("cuStreamBeginCapture")(error)
        })
    }

    fn end_capture(&self) -> Result<Graph> {
        let launches = self.capture.end()?;
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        for address in self.unfreed.take() {
            self.free(address);
        }
        match graph.map_err(self.late("cuStreamEndCapture, cuGraphInstantiate"))? {
            Some(graph) => Ok(Graph::new(launches, Some(graph))),
            None => Err(Error::Driver {
                call: "cuStreamEndCapture",
                message: format!("no graph of {} launches", launches.len()),
            }),
        }
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        self.capture.forbid("replay")?;
        let (Some(native), Some(last)) = (&graph.native, graph.launches().last()) else {
            return Err(Error::Invalid("replay: the graph was not recorded on a GPU".into()));
        };
        self.last.set(last.call.kernel.name());
        native.launch().map_err(self.late("cuGraphLaunch"))
    }

    fn join(&self, group: &dyn Collective) -> Result<Option<Box<dyn DeviceGroup>>> {
        self.bind()?;
        let stream = self.stream.clone();
        let synchronize = move || stream.synchronize().map_err(failed("cuStreamSynchronize"));
        let nccl = Library::load(self.stream.cu_stream(), synchronize)?;
        Ok(Some(Box::new(NcclGroup::new(nccl, group)?)))
    }

    fn phase(&self, phase: Phase) {
        self.capture.phase(phase);
        self.ranges.borrow_mut().begin(phase);
    }

    fn layer(&self, layer: Option<usize>) {
        self.capture.layer(layer);
    }

    fn mark(&self) -> Result<Mark> {
        self.capture.forbid("mark")?;
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        self.stream.record_event(flags).map(Mark::Event).map_err(self.late("cuEventRecord"))
    }

    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64> {
        let (Mark::Event(from), Mark::Event(to)) = (from, to) else {
            return Err(Error::Invalid("seconds between moments of different drivers".into()));
        };
        let milliseconds = from.elapsed_ms(to).map_err(self.late("cuEventElapsedTime"))?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    fn profiler(&self, on: bool) -> Result<()> {
        self.synchronize()?;
        self.bind()?;
        // SAFETY: the library is loaded, since this driver is open; both calls have no arguments.
        let (result, call) = unsafe {
            match on {
                true => (sys::cuProfilerStart(), "cuProfilerStart"),
                false => (sys::cuProfilerStop(), "cuProfilerStop"),
            }
        };
        result.result().map_err(self.late(call))
    }
}

impl Drop for DeviceDriver {
    fn drop(&mut self) {
        // Buffers hold the driver, so all are freed; modules go with the last user of the GPU's context otherwise.
        if self.synchronize().is_ok() {
            self.gpu.loader.unload();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_gpu_is_an_error_that_says_what_to_do() {
        // With a GPU and code for it, opening works and is tried; a second ordinal that no machine has never does.
        match DeviceDriver::open(0) {
            Ok(driver) => assert_eq!(driver.info().kind, "cuda"),
            Err(Error::Unavailable(message)) => assert!(message.len() > 20, "{message}"),
            Err(other) => panic!("{other}"),
        }
        assert!(matches!(DeviceDriver::open(4096), Err(Error::Unavailable(_))));
    }
}
