//! The table of kernels: what each KERNEL of `kernels/` declared about itself, read from the host library.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

use crate::engine::{Error, Result};

/// `secateur::host::KernelEntry` of `kernels/host/kernel_entry.h`.
#[repr(C)]
pub(super) struct Entry {
    name: *const c_char,
    threads: u32,
    cluster_blocks: u32,
    shared_bytes: u32,
    params_bytes: u32,
    id: u32,
    invoke: Option<unsafe extern "C" fn(*const c_void, *mut c_void)>,
    next: *const Entry,
}

unsafe extern "C" {
    fn secateur_host_kernels() -> *const Entry;
}

/// A kernel, by the symbol that it has on both sides.
#[derive(Clone, Copy)]
pub struct Kernel {
    name: &'static str,
    entry: &'static Entry,
}

// SAFETY: entries are constants of the program, written before main and never again.
unsafe impl Sync for Kernel {}
// SAFETY: as above.
unsafe impl Send for Kernel {}

impl Kernel {
    /// The kernel with this symbol.
    pub fn named(name: &str) -> Result<Self> {
        kernels().get(name).copied().ok_or_else(|| {
            Error::Invalid(format!("no kernel '{name}' in this build ({} are there)", kernels().len()))
        })
    }
    pub fn name(&self) -> &'static str {
        self.name
    }
    /// Threads a block.
    pub fn threads(&self) -> u32 {
        self.entry.threads
    }
    /// Blocks that run together, neighbours along x: the grid's x must be a multiple. 1 for a kernel without clusters.
    pub fn cluster_blocks(&self) -> u32 {
        self.entry.cluster_blocks
    }
    /// Dynamic shared memory of a block.
    pub fn shared_bytes(&self) -> u32 {
        self.entry.shared_bytes
    }
    /// Size of the parameter struct.
    pub fn params_bytes(&self) -> usize {
        self.entry.params_bytes as usize
    }
    /// What a kernel calls itself where a wait of its does not end.
    pub(super) fn id(&self) -> u32 {
        self.entry.id
    }
    pub(super) fn entry(&self) -> &'static Entry {
        self.entry
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(
            f,
            "{} ({} threads, {} bytes shared, {} bytes of parameters)",
            self.name,
            self.threads(),
            self.shared_bytes(),
            self.params_bytes()
        )
    }
}

/// All kernels of this build, by symbol.
pub fn kernels() -> &'static HashMap<&'static str, Kernel> {
    static TABLE: OnceLock<HashMap<&'static str, Kernel>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = HashMap::new();
        // SAFETY: the list was built before main by constructors of the host library and is never changed; names are
        // string literals.
        let mut next = unsafe { secateur_host_kernels().as_ref() };
        while let Some(entry) = next {
            // SAFETY: as above.
            let name = unsafe { CStr::from_ptr(entry.name) }.to_str().unwrap_or("(name is not UTF-8)");
            let twice = table.insert(name, Kernel { name, entry });
            debug_assert!(twice.is_none(), "two kernels are called {name}");
            // SAFETY: as above.
            next = unsafe { entry.next.as_ref() };
        }
        table
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::sgd::SgdParams;

    #[test]
    fn the_table_survives_linking() {
        let kernel = Kernel::named("sgd_step").unwrap();
        let declared = (kernel.threads(), kernel.shared_bytes(), kernel.params_bytes());
        assert_eq!(declared, (256, 0, size_of::<SgdParams>()));
        let error = Kernel::named("no_such_kernel").unwrap_err().to_string();
        assert!(error.contains("no_such_kernel"), "{error}");
    }

    #[test]
    fn no_two_kernels_have_one_id() {
        let ids: std::collections::HashSet<u32> = kernels().values().map(Kernel::id).collect();
        assert_eq!(ids.len(), kernels().len());
        assert!(!ids.contains(&0), "0 is none");
        // FNV-1a of the name, 32 bits.
        let fnv = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(16_777_619);
        assert_eq!(Kernel::named("sgd_step").unwrap().id(), b"sgd_step".iter().fold(2_166_136_261, fnv));
    }
}
