//! The GPU code that `build.rs` embedded, and which of it a GPU gets.

use std::sync::OnceLock;

/// One kernel file compiled for one target.
pub struct Image {
    /// Its source, `kernels/conv/forward.cu`.
    pub file: &'static str,
    /// `sm_90a`, or `ptx`.
    pub target: &'static str,
    /// Symbols of the kernels in it.
    pub kernels: &'static [&'static str],
    /// A cubin, or PTX text.
    pub code: &'static [u8],
}

/// What one kernel takes on one target, as ptxas reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub kernel: &'static str,
    pub target: &'static str,
    /// Registers a thread.
    pub registers: u32,
    /// Static shared memory, bytes a block. The rest is dynamic: `Kernel::shared_bytes`.
    pub shared: u32,
    /// Bytes of local memory a thread.
    pub stack: u32,
    pub spill_stores: u32,
    pub spill_loads: u32,
}

include!(concat!(env!("OUT_DIR"), "/usages.rs"));
pub static IMAGES: &[Image] = include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Code of kernels that the program does not hold.
static ADDED: OnceLock<&[Image]> = OnceLock::new();

/// Has GPUs find these kernels too, for tests and benches with kernels of their own. The first call counts.
pub fn add_code(images: &'static [Image]) {
    ADDED.get_or_init(|| images);
}

/// All that there is code for.
pub fn images() -> impl Iterator<Item = &'static Image> {
    IMAGES.iter().chain(ADDED.get().copied().into_iter().flatten())
}

/// What every kernel takes on every target that this build has code for; empty in a build without GPU code.
pub fn static_table() -> &'static [Usage] {
    USAGES
}

/// The target among `available` that runs best on a GPU of this compute capability: code made for it, else code for an
/// earlier GPU of its generation, else PTX. `None` where nothing runs.
pub fn choose<'a>(available: &[&'a str], (major, minor): (u32, u32)) -> Option<&'a str> {
    let specific = available.iter().find(|target| parse(target) == Some((major, minor, true)));
    let compatible = || {
        available
            .iter()
            .filter_map(|target| match parse(target) {
                Some((m, n, false)) if m == major && n <= minor => Some((n, target)),
                _ => None,
            })
            .max_by_key(|(n, _)| *n)
            .map(|(_, target)| target)
    };
    // Our PTX is for compute capability 8.0 and later.
    let ptx = || available.iter().find(|target| **target == "ptx" && major >= 8);
    specific.or_else(compatible).or_else(ptx).copied()
}

/// `sm_90a` is (9, 0, true): of its own generation's special code.
fn parse(target: &str) -> Option<(u32, u32, bool)> {
    let number = target.strip_prefix("sm_")?;
    let (number, specific) = match number.strip_suffix('a') {
        Some(number) => (number, true),
        None => (number, false),
    };
    let number: u32 = number.parse().ok()?;
    Some((number / 10, number % 10, specific))
}

/// Whether kernels compiled for this target wait for the launches before them, so that they may start early: PTX of ours is
/// for a GPU that has no such wait. The mirror of what `kernels/portable/launch_order.h` asks of `__CUDA_ARCH__`.
pub fn waits(target: &str) -> bool {
    parse(target).is_some_and(|(major, ..)| major >= 9)
}

/// Why the driver cannot run code of CUDA `release`; `None` where it can. `driver` is its CUDA version, 1000 * major +
/// 10 * minor. Cubins run on every driver of their major release, PTX on drivers of their release and later.
pub fn driver_too_old(driver: u32, release: (u32, u32), target: &str) -> Option<String> {
    let needed = if target == "ptx" { release } else { (release.0, 0) };
    (driver < 1000 * needed.0 + 10 * needed.1).then(|| {
        format!(
            "the GPU's driver is for CUDA {}.{}, this build needs {}.{}: update the driver, or build with an older nvcc \
             (NVCC=/path/to/nvcc cargo build --release)",
            driver / 1000,
            driver % 1000 / 10,
            needed.0,
            needed.1
        )
    })
}

/// Why no GPU can be used: no driver library, no GPU code in this build, or neither.
pub fn missing(library: bool, code: bool) -> String {
    let build = "this build has no GPU code: run scripts/install-nvcc.sh, or set NVCC or CUDA_HOME, and build again \
                 (SECATEUR_CUDA_TARGETS must not be none)";
    let driver = "no NVIDIA driver on this machine (libcuda is not found): install it, or use --device cpu or \
                  --device emulated";
    match (code, library) {
        (false, true) => build.into(),
        (true, false) => driver.into(),
        _ => format!("{build}; and {driver}"),
    }
}

/// Why this GPU gets none of the code that there is.
pub fn no_target(name: &str, (major, minor): (u32, u32), available: &[&str]) -> String {
    if major < 8 {
        return format!("{name} has compute capability {major}.{minor}, our kernels need 8.0 or later");
    }
    format!(
        "no code for {name} (compute capability {major}.{minor}) among {}: build again without \
         SECATEUR_CUDA_TARGETS, or with ptx in it",
        available.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_120", "ptx"];

    #[test]
    fn each_gpu_gets_the_best_code() {
        for (capability, expected) in [
            ((8, 0), Some("sm_80")),
            ((8, 6), Some("sm_86")),
            ((8, 7), Some("sm_86")),
            ((8, 9), Some("sm_89")),
            ((9, 0), Some("sm_90a")),
            ((10, 0), Some("ptx")),
            ((12, 0), Some("sm_120")),
            ((12, 1), Some("sm_120")),
            ((7, 5), None),
        ] {
            assert_eq!(choose(&ALL, capability), expected, "{capability:?}");
        }
        // sm_90a code runs on nothing else; without it a Hopper takes PTX.
        assert_eq!(choose(&["sm_90a"], (9, 1)), None);
        assert_eq!(choose(&["sm_80", "ptx"], (9, 0)), Some("ptx"));
        assert_eq!(choose(&["sm_86"], (8, 0)), None);
        assert_eq!(choose(&[], (9, 0)), None);
    }

    #[test]
    fn code_for_later_gpus_waits() {
        let waiting: Vec<&str> = ALL.into_iter().filter(|target| waits(target)).collect();
        assert_eq!(waiting, ["sm_90a", "sm_120"]);
    }

    #[test]
    fn drivers_of_the_same_major_release_run_cubins() {
        assert_eq!(driver_too_old(13_000, (13, 0), "sm_90a"), None);
        assert_eq!(driver_too_old(13_000, (13, 1), "sm_90a"), None);
        assert!(driver_too_old(13_000, (13, 1), "ptx").is_some());
        let message = driver_too_old(12_040, (13, 0), "sm_90a").unwrap();
        assert!(message.contains("CUDA 12.4") && message.contains("13.0"), "{message}");
    }

    #[test]
    fn errors_say_what_to_do() {
        assert!(missing(true, false).contains("install-nvcc.sh"));
        assert!(missing(false, true).contains("libcuda") && !missing(false, true).contains("nvcc"));
        assert!(
            missing(false, false).contains("install-nvcc.sh") && missing(false, false).contains("libcuda")
        );
        assert!(no_target("Tesla T4", (7, 5), &ALL).contains("need 8.0"));
        let message = no_target("A100", (8, 0), &["sm_90a"]);
        assert!(message.contains("A100") && message.contains("with ptx"), "{message}");
    }

    #[test]
    fn a_build_with_code_has_every_product_kernel_for_every_target() {
        for image in IMAGES {
            assert!(!image.code.is_empty(), "{} for {}", image.file, image.target);
        }
        assert_eq!(RELEASE.is_some(), !IMAGES.is_empty());
        for usage in static_table() {
            assert_eq!((usage.stack, usage.spill_stores, usage.spill_loads), (0, 0, 0), "{usage:?}");
            assert!(
                super::super::Kernel::named(usage.kernel).is_ok(),
                "{} is not in the host table",
                usage.kernel
            );
        }
    }
}
