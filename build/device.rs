//! The GPU code: each kernel file compiled by nvcc for each target, checked, and listed in generated Rust tables.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::ptxas::{self, Usage};
use super::targets::{self, Target};
use super::units::{self, Sources, Unit};

/// nvcc and its release.
struct Nvcc {
    program: PathBuf,
    release: (u32, u32),
}

/// The kernels of the program, and those that tests and benches have besides.
pub fn build(root: &Path, out: &Path, kernels: &Sources, extra: &Sources) -> Result<(), String> {
    let compiler = compiler(root)?;
    let (images, usages) = compile(root, out, kernels, compiler.as_ref())?;
    let (extra_images, _) = compile(root, out, extra, compiler.as_ref())?;
    write_images(out, "images.rs", &images)?;
    write_images(out, "extra_images.rs", &extra_images)?;
    write_usages(out, compiler.map(|(nvcc, _)| nvcc.release), &usages)
}

/// nvcc and what it is to compile for; `None` where there is nothing to do it with, or nothing to do.
fn compiler(root: &Path) -> Result<Option<(Nvcc, Vec<Target>)>, String> {
    for variable in ["NVCC", "CUDA_HOME", "SECATEUR_CUDA_TARGETS", "SECATEUR_CUDA_LINE_INFO"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let variable = |name: &str| std::env::var(name).ok();
    let asked = variable("SECATEUR_CUDA_TARGETS").filter(|list| !list.is_empty());
    let mut expected = targets::expected(asked.as_deref())?;
    if expected.is_empty() {
        return Ok(None);
    }
    let places = targets::nvcc_places(
        variable("NVCC").as_deref(),
        variable("CUDA_HOME").as_deref(),
        variable("PATH").as_deref(),
        root,
    );
    let Some(nvcc) = find(&places)? else {
        // It may be installed later, in any folder of the path.
        println!("cargo:rerun-if-env-changed=PATH");
        let what_to_do = "run scripts/install-nvcc.sh, or set NVCC or CUDA_HOME, and build again";
        if let Some(list) = asked {
            return Err(format!(
                "SECATEUR_CUDA_TARGETS={list} asks for GPU code, and there is no nvcc: {what_to_do}"
            ));
        }
        println!(
            "cargo:warning=no nvcc: built without GPU code, --device cuda will not work; to have it, {what_to_do}"
        );
        return Ok(None);
    };
    if nvcc.release < targets::OLDEST_NVCC {
        return Err(too_old(&nvcc, "these kernels", targets::OLDEST_NVCC));
    }
    if let Some(target) = expected.iter().find(|target| target.since > nvcc.release) {
        if asked.is_some() {
            return Err(too_old(&nvcc, target.name, target.since));
        }
        expected.retain(|target| target.since <= nvcc.release);
    }
    Ok(Some((nvcc, expected)))
}

fn too_old(nvcc: &Nvcc, what: &str, since: (u32, u32)) -> String {
    format!(
        "{} is CUDA {}.{}, {what} needs {}.{} or later: scripts/install-nvcc.sh installs 13.0",
        nvcc.program.display(),
        nvcc.release.0,
        nvcc.release.1,
        since.0,
        since.1
    )
}

/// The first nvcc that is there. A named one that does not run is an error.
fn find(places: &[PathBuf]) -> Result<Option<Nvcc>, String> {
    for program in places {
        let named = places.len() == 1;
        let output = match Command::new(program).arg("--version").output() {
            Ok(output) => output,
            Err(e) if named => return Err(format!("{} (from NVCC or CUDA_HOME): {e}", program.display())),
            Err(_) => continue,
        };
        let text = String::from_utf8_lossy(&output.stdout);
        return match targets::release(&text) {
            Some(release) => Ok(Some(Nvcc { program: program.clone(), release })),
            None => Err(format!("{} --version does not name a CUDA release: {text}", program.display())),
        };
    }
    Ok(None)
}

/// A compiled file.
struct Image {
    file: String,
    target: &'static str,
    kernels: Vec<String>,
    path: PathBuf,
}

fn compile(
    root: &Path,
    out: &Path,
    sources: &Sources,
    compiler: Option<&(Nvcc, Vec<Target>)>,
) -> Result<(Vec<Image>, Vec<Usage>), String> {
    let Some((nvcc, expected)) = compiler else { return Ok((Vec::new(), Vec::new())) };
    // Line tables name the folder of the sources: a build that travels goes without (scripts/pack-gpu.sh).
    let line_info = std::env::var("SECATEUR_CUDA_LINE_INFO").map_or(true, |asked| asked != "off");
    let folder = out.join("device");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut units = Vec::new();
    let mut planned = Vec::new();
    for source in &sources.kernels {
        let file = source.strip_prefix(root).unwrap_or(source).display().to_string();
        let text = fs::read_to_string(source).map_err(|e| format!("{file}: {e}"))?;
        let allowed = targets::allowed(&text).map_err(|e| format!("{file}: {e}"))?;
        for target in expected.iter().filter(|target| allowed.contains(target)) {
            let is_ptx = target.name == "ptx";
            let extension = if is_ptx { "ptx" } else { "cubin" };
            let output =
                folder.join(format!("{}.{}.{extension}", file.replace(['/', '\\'], "-"), target.name));
            let mut command = Command::new(&nvcc.program);
            command
                .arg(if is_ptx { "-ptx" } else { "-cubin" })
                .arg(format!("-arch={}", target.arch))
                .args(["-std=c++17", "-O3", "-Xptxas", "-v"])
                .args(line_info.then_some("-lineinfo"))
                // The host compiler does not contract either: elementwise kernels give the same bits on both sides, and a
                // fused multiply-add is written fmaf.
                .arg("-fmad=false")
                .arg("-I")
                .arg(root.join("kernels"))
                .arg(source)
                .arg("-o")
                .arg(&output);
            units.push(Unit { command, output, name: format!("{file} for {}", target.name) });
            planned.push((file.clone(), target.name));
        }
    }
    let mut images = Vec::new();
    let mut usages = Vec::new();
    let mut faults = Vec::new();
    for (compiled, (file, target)) in units::compile(units)?.into_iter().zip(planned) {
        for line in compiled.log.lines().filter(|line| line.contains("warning")) {
            println!("cargo:warning={line}");
        }
        let here = |e: String| format!("{file} for {target}: {e}");
        let kernels = if target == "ptx" {
            let text = fs::read_to_string(&compiled.output).map_err(|e| here(e.to_string()))?;
            ptxas::entries(&text)
        } else {
            faults.extend(
                ptxas::faults(&compiled.log)
                    .map_err(here)?
                    .into_iter()
                    .map(|fault| format!("{file}: {fault}")),
            );
            let found = ptxas::usages(&compiled.log).map_err(here)?;
            let names = found.iter().map(|usage| usage.kernel.clone()).collect();
            usages.extend(found);
            names
        };
        images.push(Image { file, target, kernels, path: compiled.output });
    }
    if !faults.is_empty() {
        return Err(faults.join("\n"));
    }
    Ok((images, usages))
}

/// Writes a list of images: an expression, for `include!` where an `Image` is known.
fn write_images(out: &Path, name: &str, images: &[Image]) -> Result<(), String> {
    let mut text = String::from("&[\n");
    for Image { file, target, kernels, path } in images {
        let path = path.display().to_string();
        text += &format!(
            "    Image {{ file: {file:?}, target: {target:?}, kernels: &{kernels:?}, code: include_bytes!({path:?}) }},\n"
        );
    }
    text += "]\n";
    write(&out.join(name), &text)
}

/// Writes what src/cuda/driver/code.rs includes.
fn write_usages(out: &Path, release: Option<(u32, u32)>, usages: &[Usage]) -> Result<(), String> {
    let mut text = format!("pub static RELEASE: Option<(u32, u32)> = {release:?};\n");
    text += "pub static USAGES: &[Usage] = &[\n";
    for Usage { kernel, target, registers, shared, stack, spill_stores, spill_loads } in usages {
        text += &format!(
            "    Usage {{ kernel: {kernel:?}, target: {target:?}, registers: {registers}, shared: {shared}, stack: {stack}, \
             spill_stores: {spill_stores}, spill_loads: {spill_loads} }},\n"
        );
    }
    text += "];\n";
    write(&out.join("usages.rs"), &text)
}

/// Leaves a file alone that holds this already: what includes it need not be compiled again.
fn write(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
