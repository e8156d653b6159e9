//! What `build.rs` decides: targets, compilers, and what ptxas output means. The output under `tests/ptxas` is nvcc 13.0's.

#[path = "../../build/ptxas.rs"]
mod ptxas;
#[path = "../../build/targets.rs"]
mod targets;

use std::path::Path;

const SPILLS: &str = include_str!("../ptxas/spills.txt");
const SERIALISED: &str = include_str!("../ptxas/serialised-wgmma.txt");

#[test]
fn the_usage_of_each_kernel_is_read() {
    let usages = ptxas::usages(SPILLS).unwrap();
    let named = |name: &str| usages.iter().find(|usage| usage.kernel == name).unwrap();
    assert_eq!(usages.len(), 3);
    assert_eq!(
        *named("fine"),
        ptxas::Usage {
            kernel: "fine".into(),
            target: "sm_90a".into(),
            registers: 14,
            shared: 128,
            ..Default::default()
        }
    );
    assert_eq!(named("stack_frame").stack, 64);
    let spills = named("spills");
    assert_eq!((spills.registers, spills.spill_stores, spills.spill_loads), (64, 1116, 1152));
}

#[test]
fn spills_stack_frames_and_serialised_wgmma_are_faults() {
    let faults = ptxas::faults(SPILLS).unwrap();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(
        faults.iter().any(|f| f.contains("kernel spills on sm_90a spills registers (1116 bytes")),
        "{faults:?}"
    );
    assert!(
        faults.iter().any(|f| f.contains("kernel stack_frame on sm_90a has a stack frame of 64")),
        "{faults:?}"
    );
    let faults = ptxas::faults(SERIALISED).unwrap();
    assert_eq!(faults.len(), 6, "five injected waits and one serialised pipeline: {faults:?}");
    assert!(faults.iter().all(|f| f.contains("'serial'")), "{faults:?}");
    let fine = SPILLS.lines().take(5).collect::<Vec<_>>().join("\n");
    assert!(fine.contains("function 'fine'"));
    assert_eq!(ptxas::faults(&fine).unwrap(), Vec::<String>::new());
}

#[test]
fn output_that_is_not_understood_is_an_error() {
    let cut = SPILLS.lines().take_while(|l| !l.contains("Used")).collect::<Vec<_>>().join("\n");
    assert!(ptxas::usages(&cut).unwrap_err().contains("fine"));
    let garbled = SPILLS.replace(" 64 registers", " many registers");
    assert!(ptxas::usages(&garbled).unwrap_err().contains("registers"));
}

#[test]
fn kernels_are_found_in_ptx() {
    let ptx = ".version 9.0\n.visible .entry conv_forward(\n\t.param .u64 p\n)\n{\n}\n.entry scale(.param .u64 p)\n";
    assert_eq!(ptxas::entries(ptx), ["conv_forward", "scale"]);
}

#[test]
fn targets_are_chosen_by_name() {
    let names = |list: Option<&str>| -> Vec<&str> {
        targets::wanted(list).unwrap().iter().map(|target| target.name).collect()
    };
    assert_eq!(names(None), ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_120", "ptx"]);
    assert_eq!(names(Some("none")), Vec::<&str>::new());
    assert_eq!(names(Some("sm_90a, ptx,sm_90a")), ["sm_90a", "ptx"]);
    for wrong in ["sm_91", "", "sm_80,none", "sm_80;ptx"] {
        let message = targets::wanted(Some(wrong)).unwrap_err();
        assert!(message.contains("SECATEUR_CUDA_TARGETS") && message.contains("sm_120"), "{message}");
    }
    let source = "// Convolutions for Hopper.\n// Targets: sm_90a\n\n#include <x>";
    assert_eq!(targets::allowed(source).unwrap().iter().map(|t| t.name).collect::<Vec<_>>(), ["sm_90a"]);
    assert_eq!(targets::allowed("#include <x>").unwrap(), targets::TARGETS);
    assert!(targets::allowed("// Targets: sm_9").is_err());
}

#[test]
fn compilers_are_sought_in_order() {
    let root = Path::new("root");
    let first = |nvcc, home, path| {
        targets::nvcc_places(nvcc, home, path, root).first().unwrap().display().to_string()
    };
    assert_eq!(first(Some("/x/nvcc"), Some("/home"), Some("/bin")), "/x/nvcc");
    assert_eq!(first(None, Some("/home"), Some("/bin")), "/home/bin/nvcc");
    assert_eq!(first(None, None, Some("/bin:/usr/bin")), "/bin/nvcc");
    assert_eq!(first(Some(""), None, None), "root/.cuda/packages/nvidia/cu13/bin/nvcc");
    let version = "Cuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0";
    assert_eq!(targets::release(version), Some((13, 0)));
    assert_eq!(targets::release("gcc 12"), None);
    assert!(targets::OLDEST_NVCC < (13, 0), "install-nvcc.sh installs 13.0");
}
