//! What `build.rs` decides: targets, compilers, when a file is compiled again, and what ptxas output means. The output under
//! `tests/ptxas` is nvcc 13.0's.

#[path = "../../build/ptxas.rs"]
mod ptxas;
#[path = "../../build/recipes.rs"]
mod recipes;
#[path = "../../build/targets.rs"]
mod targets;
#[allow(dead_code)] // finding the sources is for the build alone
#[path = "../../build/units.rs"]
mod units;

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
        targets::expected(list).unwrap().iter().map(|target| target.name).collect()
    };
    assert_eq!(names(None), ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_120", "ptx"]);
    assert_eq!(names(Some("none")), Vec::<&str>::new());
    assert_eq!(names(Some("sm_90a, ptx,sm_90a")), ["sm_90a", "ptx"]);
    for wrong in ["sm_91", "", "sm_80,none", "sm_80;ptx"] {
        let message = targets::expected(Some(wrong)).unwrap_err();
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

#[test]
#[cfg(unix)]
fn a_unit_is_compiled_again_for_arguments_and_sources_but_not_for_the_environment() {
    use std::fs::{self, File};
    use std::process::Command;
    use std::time::{Duration, SystemTime};
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    fs::write(file("source"), "").unwrap();
    // It counts its calls, and lists what it has read where its last argument says.
    let compiler = "cd \"$1\"; echo >> calls; echo > object; for last; do :; done; echo \"object: $1/source\" > \"$last\"";
    let calls_with = |variable: Option<&str>, flag: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", compiler, "compiler"]).arg(folder.path()).arg(flag);
        command.envs(variable.map(|value| ("SHELL_OF", value)));
        units::compile(vec![units::Unit { command, output: file("object"), name: "source".into() }]).unwrap();
        fs::read_to_string(file("calls")).unwrap().lines().count()
    };
    assert_eq!(calls_with(None, "-O2"), 1);
    assert_eq!(calls_with(None, "-O2"), 1);
    assert_eq!(calls_with(Some("another"), "-O2"), 1);
    assert_eq!(calls_with(None, "-O3"), 2);
    let later = SystemTime::now() + Duration::from_secs(60);
    File::options().write(true).open(file("source")).unwrap().set_modified(later).unwrap();
    assert_eq!(calls_with(None, "-O3"), 3);
}

#[test]
fn a_file_of_recipes_is_split_at_its_headers() {
    let file = "# A family.\n\n# First.\n# Source: here.\n[a]\nepochs = 1\n# Of a key.\ndata.set = \"cifar10\"\n\n# Second.\n[b]\nextends = \"a\"\n";
    let split = recipes::split(file).unwrap();
    let text = |name: &str| &split.iter().find(|(known, _)| known == name).unwrap().1;
    assert_eq!(split.len(), 2);
    assert_eq!(
        text("a").trim_end(),
        "# First.\n# Source: here.\nname = \"a\"\nepochs = 1\n# Of a key.\ndata.set = \"cifar10\""
    );
    assert_eq!(text("b"), "# Second.\nname = \"b\"\nextends = \"a\"\n");
    let error = recipes::split("epochs = 1\n[a]\n").unwrap_err();
    assert_eq!(error, "line 1: epochs = 1, expected [NAME] before the first key");
}

#[test]
fn two_recipes_of_one_name_fail_the_build() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["x.toml", "y.toml"] {
        std::fs::write(folder.path().join(file), "[a]\nepochs = 1\n").unwrap();
    }
    let error = recipes::build(folder.path(), folder.path()).unwrap_err();
    assert!(error.ends_with("two recipes are named a"), "{error}");
}
