//! Compiles `kernels/` twice: for the emulator with the C++ compiler, always, and for GPUs with nvcc where there is one. Tests and
//! benches alone link `kernels/extra/`. Lists `recipes/` for the binary.
//!
//! Each unit is compiled by itself, in parallel, and again only when something it includes has changed.

#[path = "build/device.rs"]
mod device;
#[path = "build/host.rs"]
mod host;
#[path = "build/ptxas.rs"]
mod ptxas;
#[path = "build/recipes.rs"]
mod recipes;
#[path = "build/targets.rs"]
mod targets;
#[path = "build/units.rs"]
mod units;

use std::path::PathBuf;

fn main() {
    if let Err(message) = build() {
        // This fails the build, and cargo shows the lines without all else that a failed script has printed.
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build() -> Result<(), String> {
    for path in ["build.rs", "build", "kernels", "recipes"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let root = PathBuf::from(env("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env("OUT_DIR")?);
    recipes::build(&root.join("recipes"), &out)?;
    let folder = root.join("kernels");
    let extra = folder.join("extra");
    let (kernels, extra) = (units::find(&folder, Some(&extra))?, units::find(&extra, None)?);
    host::link(&root, &out, &kernels)?;
    host::link_to_tests(&root, &out, &extra)?;
    device::build(&root, &out, &kernels, &extra)
}

fn env(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|_| format!("{name} is not set: run this through cargo"))
}
