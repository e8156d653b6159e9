//! For which GPUs code is made, and which compiler makes it.
//! Pure functions.

use std::path::{Path, PathBuf};

/// One kind of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// What `SECATEUR_CUDA_TARGETS` calls it.
    pub name: &'static str,
    /// What nvcc's `-arch` calls it.
    pub arch: &'static str,
    /// The first CUDA release that knows it.
    pub since: (u32, u32),
}

/// All targets, in the order in which they are listed.
pub const TARGETS: [Target; 6] = [
    Target { name: "sm_80", arch: "sm_80", since: (11, 0) },
    Target { name: "sm_86", arch: "sm_86", since: (11, 1) },
    Target { name: "sm_89", arch: "sm_89", since: (11, 8) },
    Target { name: "sm_90a", arch: "sm_90a", since: (12, 0) },
    Target { name: "sm_120", arch: "sm_120", since: (12, 8) },
    // Compiled by the driver, for every later GPU.
    Target { name: "ptx", arch: "compute_80", since: (11, 0) },
];

/// The oldest compiler that our kernels are written for: `__grid_constant__` and C++17.
pub const OLDEST_NVCC: (u32, u32) = (12, 0);

/// What `SECATEUR_CUDA_TARGETS` asks for: all where it is not set.
pub fn expected(variable: Option<&str>) -> Result<Vec<Target>, String> {
    let Some(list) = variable else { return Ok(TARGETS.to_vec()) };
    let names: Vec<&str> = list.split(',').map(str::trim).collect();
    if names == ["none"] {
        return Ok(Vec::new());
    }
    let mut chosen: Vec<Target> = Vec::new();
    for name in names {
        let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
            let known = TARGETS.map(|target| target.name).join(", ");
            return Err(format!(
                "SECATEUR_CUDA_TARGETS={list}: '{name}' is not a target; choose from {known}, separated by commas, or none"
            ));
        };
        if !chosen.contains(target) {
            chosen.push(*target);
        }
    }
    Ok(chosen)
}

/// The release in the output of `nvcc --version`: (13, 0).
pub fn release(version_text: &str) -> Option<(u32, u32)> {
    let (_, rest) = version_text.split_once("release ")?;
    let number = rest.split(',').next()?.trim();
    let (major, minor) = number.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Where nvcc may be, best first: `NVCC`, `CUDA_HOME`, `PATH`, and the folder that `scripts/install-nvcc.sh` fills.
pub fn nvcc_places(
    nvcc: Option<&str>,
    cuda_home: Option<&str>,
    path: Option<&str>,
    root: &Path,
) -> Vec<PathBuf> {
    let program = if cfg!(windows) { "nvcc.exe" } else { "nvcc" };
    let mut places = Vec::new();
    // A compiler that was named is the only one asked.
    if let Some(named) = nvcc.filter(|named| !named.is_empty()) {
        return vec![named.into()];
    }
    if let Some(home) = cuda_home.filter(|home| !home.is_empty()) {
        return vec![Path::new(home).join("bin").join(program)];
    }
    places.extend(path.into_iter().flat_map(std::env::split_paths).map(|folder| folder.join(program)));
    places.push(root.join(".cuda/packages/nvidia/cu13/bin").join(program));
    places
}

/// The targets that a source file allows: the line `// Targets: sm_90a` in its first lines, else all.
pub fn allowed(source: &str) -> Result<Vec<Target>, String> {
    let line = source.lines().take(20).find_map(|line| line.strip_prefix("// Targets:"));
    expected(line.map(|list| list.trim().trim_end_matches('.')))
}
