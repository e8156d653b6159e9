//! The host code: kernels and the emulator, compiled by the C++ compiler.

use std::path::{Path, PathBuf};

use super::units::{self, Sources, Unit};

/// Links all of them to whatever links this crate.
pub fn link(root: &Path, out: &Path, sources: &Sources) -> Result<(), String> {
    // Nothing refers to a kernel by its symbol: they enter themselves in the table, so all of them must be linked.
    compiler(root)
        .objects(compile(root, out, sources)?)
        .link_lib_modifier("+whole-archive")
        .try_compile("secateur_kernels")
        .map_err(|e| format!("the host library cannot be archived: {e}"))
}

/// Links all of them to the tests in tests/ and to the benches. Objects and no library: of these a linker leaves nothing out.
pub fn link_to_tests(root: &Path, out: &Path, sources: &Sources) -> Result<(), String> {
    for object in compile(root, out, sources)? {
        for of in ["tests", "benches"] {
            println!("cargo::rustc-link-arg-{of}={}", object.display());
        }
    }
    Ok(())
}

fn compile(root: &Path, out: &Path, sources: &Sources) -> Result<Vec<PathBuf>, String> {
    let objects = out.join("host");
    std::fs::create_dir_all(&objects).map_err(|e| format!("{}: {e}", objects.display()))?;
    let tool = compiler(root).try_get_compiler().map_err(|e| format!("a C++17 compiler is needed: {e}"))?;
    let units = sources.host.iter().chain(&sources.kernels).map(|source| {
        let name = source.strip_prefix(root).unwrap_or(source).display().to_string();
        let output = objects.join(name.replace(['/', '\\'], "-") + ".o");
        let mut command = tool.to_command();
        command.args(["-x", "c++", "-c"]).arg(source).arg("-o").arg(&output);
        Unit { command, output, name }
    });
    let compiled = units::compile(units.collect())?;
    for unit in &compiled {
        for line in unit.log.lines() {
            println!("cargo:warning={line}");
        }
    }
    Ok(compiled.into_iter().map(|unit| unit.output).collect())
}

fn compiler(root: &Path) -> cc::Build {
    let mut compiler = cc::Build::new();
    compiler
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .include(root.join("kernels"))
        .warnings(true)
        .extra_warnings(true)
        .flag_if_supported("-Wno-unknown-pragmas")
        // Vectors never cross a call in the emulator; GCC warns of a change in how they would.
        .flag_if_supported("-Wno-psabi")
        // The same bits on every CPU: no fused multiply-add where the source has none.
        .flag_if_supported("-ffp-contract=off")
        // Kernels look at shared memory in words of several sizes, as CUDA allows.
        .flag_if_supported("-fno-strict-aliasing")
        .flag_if_supported("-fno-math-errno")
        .flag_if_supported("-ftls-model=initial-exec");
    compiler
}
