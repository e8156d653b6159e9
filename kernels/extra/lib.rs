//! Kernels that tests and benches launch and the program does not hold: faults that the emulator must find, the platform's own
//! functions, and slower variants of the product's convolutions.
//!
//! `use extra_kernels as _;` links them, and they enter themselves in the table of kernels. A GPU gets their code from [`IMAGES`].

/// One kernel file compiled for one target.
pub struct Image {
    /// `kernels/extra/tests/hopper.cu`
    pub file: &'static str,
    /// `sm_90a`
    pub target: &'static str,
    /// Symbols of the kernels in it.
    pub kernels: &'static [&'static str],
    /// A cubin, or PTX text.
    pub code: &'static [u8],
}

mod generated {
    #![allow(dead_code)] // what ptxas reports is checked by the build, and read by the program alone

    use super::Image;

    pub struct Usage {
        kernel: &'static str,
        target: &'static str,
        registers: u32,
        shared: u32,
        stack: u32,
        spill_stores: u32,
        spill_loads: u32,
    }

    include!(concat!(env!("OUT_DIR"), "/device_code.rs"));
}

pub use generated::IMAGES;
