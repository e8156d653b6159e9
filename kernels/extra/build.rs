//! Compiles the kernels of this folder as the program's are compiled: for the emulator, and for GPUs where there is nvcc.

#[path = "../../build/device.rs"]
mod device;
#[path = "../../build/host.rs"]
mod host;
#[path = "../../build/ptxas.rs"]
mod ptxas;
#[path = "../../build/targets.rs"]
mod targets;
#[path = "../../build/units.rs"]
mod units;

use std::path::{Path, PathBuf};

fn main() {
    if let Err(message) = build() {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build() -> Result<(), String> {
    for path in ["build.rs", "../../build", "../../kernels"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let folder = PathBuf::from(env("CARGO_MANIFEST_DIR")?);
    let root = folder.ancestors().nth(2).map(Path::to_path_buf).ok_or("kernels/extra is not in a folder of its own")?;
    let out = PathBuf::from(env("OUT_DIR")?);
    let kernels = units::find(&folder, None)?;
    host::build(&root, &out, &kernels, "secateur_extra_kernels")?;
    device::build(&root, &out, &kernels, false)
}

fn env(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|_| format!("{name} is not set: run this through cargo"))
}
