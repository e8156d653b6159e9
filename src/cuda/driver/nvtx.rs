//! NVTX ranges: named stretches of a thread's time that Nsight Systems and Nsight Compute show next to the kernels.
//!
//! NVTX has no library to link with. A tool names its own in NVTX_INJECTION64_PATH; the program loads it, calls its
//! `InitializeInjectionNvtx2` with a function that returns tables of slots, and the tool writes its callbacks into
//! those it listens to. The layout of the tables is that of NVTX 3 (nvtxDetail/nvtxTypes.h of github.com/NVIDIA/NVTX);
//! of all its calls this program makes two, nvtxRangePushA and nvtxRangePop. Where the variable is not set, or the tool
//! cannot be loaded, ranges do nothing, as everywhere with NVTX.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::Library;

use crate::engine::Phase;

/// Where a tool puts a callback.
type Slot = AtomicPtr<c_void>;

/// Modules by number, and the numbers that the callbacks of each go up to (exclusive; 0 is none): core, CUDA, OpenCL, CUDA
/// runtime, core with domains, synchronisation. Tools expect all of them.
const CALLBACKS: [usize; 7] = [0, 16, 9, 15, 7, 16, 7];
const MOST_CALLBACKS: usize = 16;
const CORE: usize = 1;
const RANGE_PUSH_A: usize = 9;
const RANGE_POP: usize = 11;

static SLOTS: [[Slot; MOST_CALLBACKS]; CALLBACKS.len()] =
    [const { [const { Slot::new(null_mut()) }; MOST_CALLBACKS] }; CALLBACKS.len()];

/// Pointers to the slots of a module, by number; null where there is no callback, and after the last.
struct Table([*const Slot; MOST_CALLBACKS + 1]);

// SAFETY: pointers to a static of atomics, never changed.
unsafe impl Sync for Table {}

static TABLES: [Table; CALLBACKS.len()] = {
    let mut tables = [const { Table([null(); MOST_CALLBACKS + 1]) }; CALLBACKS.len()];
    let mut module = 0;
    while module < CALLBACKS.len() {
        let mut number = 1;
        while number < CALLBACKS[module] {
            tables[module].0[number] = &SLOTS[module][number];
            number += 1;
        }
        module += 1;
    }
    tables
};

/// `NvtxExportTableCallbacks`.
#[repr(C)]
struct ExportCallbacks {
    struct_size: usize,
    module_table: unsafe extern "C" fn(c_uint, *mut *const *const Slot, *mut c_uint) -> c_int,
}

/// `NvtxExportTableVersionInfo`.
#[repr(C)]
struct ExportVersion {
    struct_size: usize,
    version: u32,
    reserved: u32,
    set_tool_version: extern "C" fn(u32),
}

static EXPORT_CALLBACKS: ExportCallbacks =
    ExportCallbacks { struct_size: size_of::<ExportCallbacks>(), module_table };
static EXPORT_VERSION: ExportVersion = ExportVersion {
    struct_size: size_of::<ExportVersion>(),
    version: 3,
    reserved: 0,
    set_tool_version: ignore_tool_version,
};

/// The table with this number; null for those that there are not.
extern "C" fn export_table(number: u32) -> *const c_void {
    match number {
        1 => (&raw const EXPORT_CALLBACKS).cast(),
        3 => (&raw const EXPORT_VERSION).cast(),
        _ => null(),
    }
}

/// Returns 1 and the slots of a module, or 0 for a module that there is not.
///
/// # Safety
/// `table` and `size` are null or may be written to.
unsafe extern "C" fn module_table(
    module: c_uint,
    table: *mut *const *const Slot,
    size: *mut c_uint,
) -> c_int {
    let Some(found @ 1..) = CALLBACKS.get(module as usize).copied() else { return 0 };
    if !table.is_null() {
        // SAFETY: as the caller promises.
        unsafe { *table = TABLES[module as usize].0.as_ptr() };
    }
    if !size.is_null() {
        // SAFETY: as the caller promises.
        unsafe { *size = found as c_uint };
    }
    1
}

extern "C" fn ignore_tool_version(_version: u32) {}

/// Loads the tool that the environment names, once; whether there is one.
fn attached() -> bool {
    static ATTACHED: OnceLock<bool> = OnceLock::new();
    *ATTACHED.get_or_init(|| {
        let variable =
            if size_of::<usize>() == 4 { "NVTX_INJECTION32_PATH" } else { "NVTX_INJECTION64_PATH" };
        std::env::var_os(variable).is_some_and(|path| attach(&path))
    })
}

fn attach(path: &std::ffi::OsStr) -> bool {
    type Initialize = unsafe extern "C" fn(extern "C" fn(u32) -> *const c_void) -> c_int;
    // SAFETY: the user, or the profiler that they started, names this library to have it loaded here.
    let Ok(library) = (unsafe { Library::new(path) }) else { return false };
    // SAFETY: by NVTX's protocol the symbol has this type.
    let Ok(initialize) = (unsafe { library.get::<Initialize>(b"InitializeInjectionNvtx2\0") }) else {
        return false;
    };
    // SAFETY: as above; `export_table` and what it returns live as long as the program.
    let done = unsafe { initialize(export_table) } != 0;
    if done {
        // Its callbacks are in the slots from here on: it may never be unloaded.
        std::mem::forget(library);
    }
    done
}

/// A range of the calling thread, from here to where this is dropped. Ranges nest: the youngest is dropped first.
pub struct Range {
    open: bool,
    /// Of this thread.
    _thread: PhantomData<*const ()>,
}

impl Range {
    pub fn new(name: &str) -> Self {
        let open = attached() && push(name);
        Self { open, _thread: PhantomData }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if self.open {
            pop();
        }
    }
}

fn push(name: &str) -> bool {
    type Push = unsafe extern "C" fn(*const c_char) -> c_int;
    let slot = SLOTS[CORE][RANGE_PUSH_A].load(Ordering::Acquire);
    let (false, Ok(name)) = (slot.is_null(), CString::new(name)) else { return false };
    // SAFETY: a tool put its nvtxRangePushA here, which has this type.
    let push = unsafe { std::mem::transmute::<*mut c_void, Push>(slot) };
    // SAFETY: the text ends with a zero and lives through the call.
    unsafe { push(name.as_ptr()) };
    true
}

fn pop() {
    type Pop = unsafe extern "C" fn() -> c_int;
    let slot = SLOTS[CORE][RANGE_POP].load(Ordering::Acquire);
    if !slot.is_null() {
        // SAFETY: a tool put its nvtxRangePop here, which has this type.
        let pop = unsafe { std::mem::transmute::<*mut c_void, Pop>(slot) };
        // SAFETY: it takes nothing.
        unsafe { pop() };
    }
}

/// The phases under way as ranges: a step, in it an attack, in that one of its steps ([`Phase::depth`]).
#[derive(Default)]
pub struct PhaseRanges {
    open: Vec<(u32, Range)>,
}

impl PhaseRanges {
    /// `phase` begins: it ends those of its depth and deeper.
    pub fn begin(&mut self, phase: Phase) {
        if !attached() {
            return;
        }
        while self.open.last().is_some_and(|(depth, _)| *depth >= phase.depth()) {
            self.open.pop();
        }
        if phase != Phase::Other {
            self.open.push((phase.depth(), Range::new(&phase.to_string())));
        }
    }
}
