//! The code of kernels on a GPU: files of cubins or PTX, loaded when a kernel of theirs is first asked for.
//!
//! Which file is `code`'s choice.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;

use cudarc::driver::result;
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUmodule};

use super::Kernel;
use super::code::{self, IMAGES, Image};
use super::failure::described;
use super::wait_report::WaitReport;
use crate::engine::{Error, Result};

/// Dynamic shared memory that a kernel has without asking for more.
const SHARED_BYTES: u32 = 48 * 1024;

/// Percent of the memory that a multiprocessor divides between shared memory and cache.
const WHOLE_CARVE_OUT: i32 = 100;

/// A kernel on this GPU.
#[derive(Clone, Copy)]
pub struct Function {
    pub handle: CUfunction,
    /// Its code waits for the launches before it.
    pub waits: bool,
}

/// What is loaded in the context of a GPU that is current in this thread.
pub struct Loader {
    gpu: String,
    capability: (u32, u32),
    /// Largest dynamic shared memory of a block, after opting in.
    shared_limit: u32,
    /// Whether kernels ask for all the shared memory that there can be: [`super::DeviceOptions::carve_out`].
    carve_out: bool,
    /// Where kernels say which wait did not end.
    pub waits: WaitReport,
    /// Kernels used so far.
    functions: RefCell<HashMap<&'static str, Function>>,
    /// Files loaded so far, by address of their code.
    modules: RefCell<HashMap<*const u8, CUmodule>>,
}

impl Loader {
    pub fn new(
        gpu: String,
        capability: (u32, u32),
        shared_limit: u32,
        carve_out: bool,
        waits: WaitReport,
    ) -> Self {
        let (functions, modules) = (RefCell::default(), RefCell::default());
        Self { gpu, capability, shared_limit, carve_out, waits, functions, modules }
    }

    /// The kernel on this GPU; loads its file at the first use.
    pub fn function(&self, kernel: &Kernel) -> Result<Function> {
        if let Some(function) = self.functions.borrow().get(kernel.name()) {
            return Ok(*function);
        }
        let fault = |message: String| Error::Kernel { kernel: kernel.name().into(), message };
        let images: Vec<&Image> =
            code::images().filter(|image| image.kernels.contains(&kernel.name())).collect();
        let targets: Vec<&str> = images.iter().map(|image| image.target).collect();
        let target = code::choose(&targets, self.capability)
            .ok_or_else(|| fault(code::no_target(&self.gpu, self.capability, &targets)))?;
        let image = images
            .into_iter()
            .find(|image| image.target == target)
            .ok_or_else(|| fault(format!("no code for {target}")))?;
        if kernel.shared_bytes() > self.shared_limit {
            return Err(fault(format!(
                "needs {} bytes of shared memory a block, {} has {}",
                kernel.shared_bytes(),
                self.gpu,
                self.shared_limit
            )));
        }
        let module = self.module(image)?;
        let name = CString::new(kernel.name()).map_err(|e| fault(e.to_string()))?;
        // SAFETY: the module is loaded and stays so as long as this driver lives.
        let function = unsafe { result::module::get_function(module, name) }.map_err(|error| {
            fault(format!("cuModuleGetFunction in {}: {}", image.file, described(&error)))
        })?;
        use CUfunction_attribute::{
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as BYTES,
            CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as CARVE_OUT,
        };
        let bytes = kernel.shared_bytes() as i32;
        let bytes =
            (kernel.shared_bytes() > SHARED_BYTES).then_some((BYTES, bytes, "bytes of shared memory"));
        let share = self.carve_out.then_some((CARVE_OUT, WHOLE_CARVE_OUT, "percent of shared memory"));
        for (attribute, value, what) in bytes.into_iter().chain(share) {
            // SAFETY: the function was just found.
            unsafe { result::function::set_function_attribute(function, attribute, value) }.map_err(
                |error| fault(format!("cuFuncSetAttribute, {value} {what}: {}", described(&error))),
            )?;
        }
        let function = Function { handle: function, waits: code::waits(target) };
        self.functions.borrow_mut().insert(kernel.name(), function);
        Ok(function)
    }

    fn module(&self, image: &Image) -> Result<CUmodule> {
        if let Some(module) = self.modules.borrow().get(&image.code.as_ptr()) {
            return Ok(*module);
        }
        // A zero ends PTX text, and the words align a cubin.
        let mut code = vec![0u64; image.code.len() / 8 + 1];
        bytemuck::cast_slice_mut(&mut code)[..image.code.len()].copy_from_slice(image.code);
        // SAFETY: a whole cubin or PTX text as nvcc wrote it, ended by a zero byte.
        let module =
            unsafe { result::module::load_data(code.as_ptr().cast()) }.map_err(|error| Error::Driver {
                call: "cuModuleLoadData",
                message: format!("{} for {}: {}", image.file, image.target, described(&error)),
            })?;
        self.modules.borrow_mut().insert(image.code.as_ptr(), module);
        self.waits.install(module).map_err(|error| Error::Driver {
            call: "cuModuleGetGlobal",
            message: format!("{} for {}: {}", image.file, image.target, described(&error)),
        })?;
        Ok(module)
    }

    /// Once all their work has ended.
    pub fn unload(&self) {
        for module in self.modules.borrow().values() {
            // SAFETY: loaded here, and its kernels have ended.
            let _ = unsafe { result::module::unload(*module) };
        }
    }
}

/// All targets for which the build has code.
pub fn targets() -> Vec<&'static str> {
    let mut targets: Vec<&'static str> = IMAGES.iter().map(|image| image.target).collect();
    targets.sort_unstable();
    targets.dedup();
    targets
}
