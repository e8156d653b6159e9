//! `scripts/qualify-gpu.sh` with stand-ins for the GPU, the program and the peer: what runs, what is timed, what the exit code
//! and the summary say. And the program of `scripts/probe-hopper.sh` compiles where nvcc is.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

const NVIDIA_SMI: &str = r#"case "$*" in
*compute_cap*) echo 9.0 ;;
*driver_version*) printf 'name, driver_version, memory.total [MiB], clocks.max.sm [MHz]\nNVIDIA Stand-in 1, 555.1, 81559 MiB, 1980 MHz\n' ;;
*) echo 'NVIDIA Stand-in 1' ;;
esac"#;

/// Runs what follows the options, as the real one does; finds something where the file `finding` names the tool and SECATEUR_WGMMA.
const SANITIZER: &str = r#"echo "sanitizer $2 $SECATEUR_WGMMA" >> "$CALLS"
tool=$2 code=$4; shift 4; "$@" || exit
if grep -qsx "$tool ${SECATEUR_WGMMA:-on}" finding; then
    printf '========= COMPUTE-SANITIZER\n========= Race at 0x50\n=========\n========= RACECHECK SUMMARY: 1 hazard\n'
    exit "$code"
fi"#;

/// Takes 0.5 s for 500 images of every step and 0.4 s for an attack.
const SECATEUR: &str = r#"echo "secateur $* $SECATEUR_WGMMA" >> "$CALLS"
[ "$1" = train ] && exit 0
kind=$2; shift 2
[ -e broken ] && grep -qx "$kind" broken && exit 3
while [ $# -gt 0 ]; do
    case $1 in --json) json=$2 ;; --batch) batch=$2 ;; esac
    shift
done
row() { printf '{"name": "%s cifar10-%s", "median": %s, "images": 500, "unmet": %s}' "$kind" "$1" "$2" "$3"; }
case $kind in
step) rows="$(row pgd-at 0.5 null), $(row trades 0.5 '"time is up: 3 samples, wanted 5"')" ;;
attack) rows=$(row pgd-at 0.4 null) ;;
ladder) rows='{"name": "layer2.0.conv2 forward, mma", "median": 2e-3, "flops": 8e11},
    {"name": "layer2.0.conv2 forward, planes, persistent", "median": 1e-3, "flops": 8e11}' ;;
*) rows= ;;
esac
kernel='{"name": "conv_forward", "calls": 7, "seconds": 1e-3, "flops": 2e11, "bytes": 1e9, "share": 0.75}'
printf '{"width": 64, "batch": %s, "ceiling_flops": 5e14, "ceiling_bytes": 2e12, "ceilings": ["a", "b"], "rows": [%s], "kernels": [%s]}\n' \
    "$batch" "$rows" "$kernel" > "$json""#;

/// 125 and 250 images/s by two modes at batch 512, ceilings of 100 TFLOP/s and 1 TB/s; one row that has no measurement.
const PEER: &str = r#"import json, os, sys
open(os.environ["CALLS"], "a").write("peer\n")
row = lambda method, mode, rate, failed={}: {"method": method, "batch": 512, "requested": "compile", "mode": mode,
    "failed": failed, "images_per_second": rate, "flops_per_second": rate * 23 * 1110845440}
rows = [row("pgd-at", "graphs", 125.0), row("pgd-at", "compile", 250.0), row("mart", None, 0, {"compile": "out of luck"})]
json.dump({"torch": "9.9", "cudnn": 1, "rows": rows, "left_out": ["trades batch 512 graphs"],
    "ceilings": {"flops": 1e14, "bytes": 1e12, "how": ["product", "copy"]}}, open(sys.argv[sys.argv.index("--json") + 1], "w"))
"#;

const PASSING: &str = "echo 'test result: ok. 3 passed; 0 failed'";

/// Two tests, of which the second fails; for run by itself too.
const FAILING: &str = r#"case $1 in
--list) printf 'right: test\nwrong: test\n' ;;
--exact) [ "$2" = right ] ;;
*) echo 'test right ... ok'; printf "thread 'wrong' panicked at a.rs:1:\nwrong pixel\n"; exit 101 ;;
esac"#;

/// A checkout with stand-ins; `tests` are bodies of test executables.
struct Machine {
    folder: TempDir,
}

/// What a run left.
struct Done {
    code: i32,
    stdout: String,
    calls: Vec<String>,
    readme: String,
    stages: Vec<(String, String)>,
}

impl Machine {
    fn new(tests: &[(&str, &str)]) -> Self {
        let machine = Self { folder: TempDir::new().unwrap() };
        for file in ["scripts/qualify-gpu.sh", "scripts/gpu-summary.py", "benches/peers/work.py"] {
            let to = machine.path(file);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(Path::new(ROOT).join(file), to).unwrap();
        }
        machine.script("bin/nvidia-smi", NVIDIA_SMI);
        machine.script("bin/compute-sanitizer", SANITIZER);
        machine.script("bin/nvcc", "exit 1");
        machine.script("scripts/probe-hopper.sh", r#"echo '{"rows": [{"question": "a. taps", "predicted": 9, "measured": 3, "unit": "taps", "verdict": "NOT AS PREDICTED"}]}' > "$1""#);
        machine.script(".carry/secateur", SECATEUR);
        fs::write(machine.path("benches/peers/gpu_step.py"), PEER).unwrap();
        for (name, body) in tests {
            machine.script(&format!(".carry/tests/{name}"), body);
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/usr/bin/env bash\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn qualify(&self, seconds: u32) -> Done {
        self.run(seconds, &[])
    }

    fn run(&self, seconds: u32, variables: &[(&str, &str)]) -> Done {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let output = Command::new(self.path("scripts/qualify-gpu.sh"))
            .arg("out")
            .env("PATH", path)
            .env("CALLS", self.path("calls"))
            .env("QUALIFY_SECONDS", seconds.to_string())
            .env_remove("SECATEUR_WGMMA")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let read = |name: &str| fs::read_to_string(self.path(name)).unwrap_or_default();
        let stages = read("out/stages.tsv");
        let stages = stages.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        Done {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            calls: read("calls").lines().map(String::from).collect(),
            readme: read("out/README.md"),
            stages: stages.map(|cells| (cells[0].to_string(), cells[1].to_string())).collect(),
        }
    }
}

impl Done {
    fn stage(&self, name: &str) -> &str {
        self.stages.iter().find(|stage| stage.0 == name).map_or("absent", |stage| &stage.1)
    }

    fn timed(&self) -> usize {
        self.calls.iter().filter(|call| call.contains(" bench ") || *call == "peer").count()
    }

    fn called(&self, what: &str) -> bool {
        self.calls.iter().any(|call| call.contains(what))
    }

    fn says(&self, line: &str) {
        assert!(self.readme.contains(line), "no '{line}' in\n{}\n{}", self.readme, self.stdout);
    }
}

#[test]
fn everything_well_is_timed_and_summed_up() {
    let machine = Machine::new(&[("conv_a", PASSING), ("kernel_b", PASSING)]);
    let done = machine.qualify(500);
    assert_eq!(done.code, 0, "{}\n{:?}", done.stdout, done.stages);
    assert!(done.stages.iter().all(|stage| stage.1 == "ok"), "{:?}", done.stages);
    for batch in [128, 512, 1024] {
        for graphs in ["on", "off"] {
            let call = format!("bench step --batch {batch} --graphs {graphs} ");
            assert_eq!(
                done.calls.iter().filter(|c| c.contains(&call)).count(),
                1,
                "{call}: {:?}",
                done.calls
            );
        }
    }
    for batch in [128, 512] {
        for launch in ["on", "off"] {
            let call = format!("bench attack --batch {batch} --dependent-launch {launch} ");
            assert!(done.calls.iter().any(|c| c.contains(&call)), "{call}: {:?}", done.calls);
        }
    }
    assert!(done.called("bench attack --batch 512 --first-stage 512 "), "{:?}", done.calls);
    // Kernels, the ladder, six steps, five attacks, the peer.
    assert_eq!(done.timed(), 14, "{:?}", done.calls);
    // initcheck would not know what a bulk copy wrote.
    for call in
        ["sanitizer memcheck ", "sanitizer racecheck ", "sanitizer racecheck off", "sanitizer initcheck off"]
    {
        assert!(done.calls.contains(&call.to_string()), "{:?}", done.calls);
    }
    assert_eq!(done.calls.iter().filter(|call| call.starts_with("secateur train")).count(), 4);

    done.says("# NVIDIA Stand-in 1, ");
    done.says("Driver 555.1, 81559 MiB, SM clock at most 1980 MHz.");
    done.says("Every stage succeeded.");
    done.says("2 test executables passed on the device, 0 did not.");
    done.says("Ceilings: 100 TFLOP/s, 1000 GB/s (PyTorch's product and copy).");
    // 1000 images/s x 23 x 1.1108 GFLOP = 25.5 TFLOP/s; the peer's faster mode has 250 images/s.
    done.says("| pgd-at, batch 512 | 1000 | 25.5 | 25.5 % | 50.00 | 1000 | 250 (compile) | 6.4 % | 4.00 x |");
    done.says("| trades, batch 1024 | 1000 | 30.0 | 30.0 % | 50.00 | 1000 | - | - | - |");
    // 1250 images/s x 20 x 1.1108 GFLOP.
    done.says("| pgd-at, batch 512 | 1250 | 27.8 | 27.8 % | 1250 | 1250 |");
    done.says("| `conv_forward` | 7 | 1000.0 | 75.0 % | 200.0 | 200.0 % | 1000 | 100.0 % |");
    done.says("| 512 images, TFLOP/s | mma | planes, persistent |");
    done.says("| layer2.0.conv2 forward | 400 | 800 |");
    done.says("| a. taps | 9 | 3 | taps | NOT AS PREDICTED |");
    done.says("mart, batch 512, compile asked for as compile: out of luck");
    done.says("not measured for lack of time: trades batch 512 graphs");
    done.says("step-512-graphs-on, step cifar10-trades: time is up: 3 samples, wanted 5");

    // A second run does not mix its results with these.
    let again = machine.qualify(500);
    assert_eq!(again.code, 2, "{}", again.stdout);
    assert!(again.stdout.contains("out holds the results of an earlier run"), "{}", again.stdout);
}

#[test]
fn nothing_is_a_result_where_a_test_fails() {
    let empty = "echo 'test result: ok. 0 passed; 0 failed'";
    let machine = Machine::new(&[("conv_a", FAILING), ("conv_b", empty), ("kernel_c", PASSING)]);
    let done = machine.qualify(500);
    assert_eq!(done.code, 1, "{}", done.stdout);
    assert_eq!((done.stage("tests"), done.stage("tests-without-wgmma")), ("failed", "failed"));
    // The peer needs none of our kernels; ours are timed twice, for whoever repairs them.
    assert_eq!(done.timed(), 3, "{:?}", done.calls);
    assert!(done.called("bench step --batch 512") && done.called("peer"), "{:?}", done.calls);
    assert_eq!((done.stage("memcheck"), done.stage("probes")), ("ok", "ok"));
    assert!(done.stdout.contains("Nothing is timed before it is right"), "{}", done.stdout);
    done.says("tests (failed), tests-without-wgmma (failed), alone (failed)");
    done.says("1 test executables passed on the device, 2 did not.");
    done.says("* FAILED conv_a, see out/logs/tests-conv_a.log\n  * `thread 'wrong' panicked at a.rs:1: wrong pixel`");
    done.says("* FAILED conv_b: it ran no test");
    // Only what did not pass runs again by itself.
    done.says("0 of the tests that failed passed in a process by themselves, 1 did not.");
    done.says("* FAILED conv_a wrong, see out/logs/alone-conv_a-wrong.log");
    done.says("Tests failed or a checker found something, so this is no result");
    done.says("* step cifar10-pgd-at, batch 512: 1000 images/s");
    assert!(!done.readme.contains("| pgd-at, batch 512 | 1000 |"), "{}", done.readme);
}

#[test]
fn kernels_without_wgmma_are_timed_where_only_those_with_it_fail() {
    let wgmma = r#"[ "$SECATEUR_WGMMA" = off ] || exit 101; echo 'test result: ok. 3 passed; 0 failed'"#;
    let machine = Machine::new(&[("conv_a", wgmma), ("kernel_b", PASSING)]);
    let done = machine.qualify(500);
    assert_eq!((done.code, done.timed()), (1, 13), "{}\n{:?}", done.stdout, done.calls);
    assert_eq!((done.stage("tests"), done.stage("tests-without-wgmma")), ("failed", "ok"));
    let ours = done.calls.iter().filter(|call| call.contains(" bench "));
    assert!(ours.clone().all(|call| call.ends_with(" off")), "{:?}", done.calls);
    done.says("**Our figures are without the kernels for Hopper alone: with them, tests failed.**");
    done.says("2 passed with SECATEUR_WGMMA=off, which leaves out the kernels for Hopper alone, 0 did not.");
    done.says("| pgd-at, batch 512 | 1000 | 25.5 | 25.5 % | 50.00 | 1000 | 250 (compile) | 6.4 % | 4.00 x |");
}

#[test]
fn a_test_beside_the_training_step_keeps_nothing_from_being_timed() {
    let machine = Machine::new(&[("kernel_select", FAILING), ("conv_a", PASSING)]);
    let done = machine.qualify(500);
    assert_eq!((done.code, done.timed()), (1, 14), "{}\n{:?}", done.stdout, done.calls);
    assert_eq!((done.stage("tests"), done.stage("tests-without-wgmma")), ("failed", "absent"));
    assert_eq!(done.stage("alone"), "failed");
    done.says("| pgd-at, batch 512 | 1000 |");
}

#[test]
fn what_racecheck_may_not_follow_is_reported_and_keeps_nothing_from_being_timed() {
    let machine = Machine::new(&[("conv_a", PASSING)]);
    fs::write(machine.path("finding"), "racecheck on").unwrap();
    let done = machine.qualify(500);
    assert_eq!((done.code, done.timed()), (1, 14), "{}", done.stdout);
    assert_eq!((done.stage("racecheck-wgmma"), done.stage("racecheck")), ("findings", "ok"));
    done.says("* racecheck-wgmma: `Race at 0x50; RACECHECK SUMMARY: 1 hazard`");
}

#[test]
fn nothing_is_a_result_where_a_checker_finds_something() {
    for finding in ["memcheck on", "racecheck off", "initcheck off"] {
        let machine = Machine::new(&[("conv_a", PASSING)]);
        fs::write(machine.path("finding"), finding).unwrap();
        let done = machine.qualify(500);
        // Two benches for whoever repairs it, and the peer.
        assert_eq!((done.code, done.timed()), (1, 3), "{finding}: {}", done.stdout);
        assert_eq!(done.stage(finding.split(' ').next().unwrap()), "findings");
        done.says("Tests failed or a checker found something, so this is no result");
    }
}

#[test]
fn parts_run_by_themselves() {
    let machine = Machine::new(&[("conv_a", PASSING)]);
    let done = machine.run(500, &[("QUALIFY_PARTS", "tests")]);
    assert_eq!((done.code, done.timed(), done.stages.len()), (0, 0, 1), "{}", done.stdout);
    fs::rename(machine.path("out"), machine.path("first")).unwrap();
    let done = machine.run(500, &[("QUALIFY_PARTS", "benches")]);
    assert_eq!((done.code, done.timed(), done.stage("tests")), (0, 14, "absent"), "{}", done.stdout);
}

#[test]
fn a_bench_that_fails_leaves_the_others() {
    let machine = Machine::new(&[("conv_a", PASSING)]);
    fs::write(machine.path("broken"), "kernels\nattack\n").unwrap();
    let done = machine.qualify(500);
    assert_eq!((done.code, done.timed()), (1, 14), "{}", done.stdout);
    assert_eq!((done.stage("kernels-512"), done.stage("step-1024-graphs-off")), ("failed", "ok"));
    done.says("kernels-512.json was not written");
    done.says("| pgd-at, batch 512 | 1000 | 25.5 | 25.5 % | 50.00 | 1000 | 250 (compile) | 6.4 % | 4.00 x |");
}

#[test]
fn a_test_that_hangs_ends_with_the_time() {
    let machine = Machine::new(&[("conv_a", "exec sleep 600"), ("kernel_b", PASSING)]);
    let done = machine.qualify(6);
    assert_eq!((done.code, done.timed()), (1, 0), "{}", done.stdout);
    assert_eq!((done.stage("tests"), done.stage("memcheck")), ("time up", "no time"), "{}", done.stdout);
    done.says("1 test executables passed on the device, 1 did not.");
    done.says("* not finished: conv_a");
    done.says("tests (time up)");
}

#[test]
fn an_executable_that_hangs_leaves_the_others_their_time() {
    let hangs = r#"[ "$1" = --list ] || exec sleep 600"#;
    let machine = Machine::new(&[("conv_a", hangs), ("kernel_b", PASSING)]);
    let done = machine.run(500, &[("QUALIFY_TEST_SECONDS", "1"), ("QUALIFY_PARTS", "tests")]);
    assert_eq!((done.code, done.stage("tests")), (1, "failed"), "{}", done.stdout);
    done.says("* FAILED conv_a: it hung or took more than 1 s, see out/logs/tests-conv_a.log");
    done.says("1 test executables passed on the device, 1 did not.");
}

#[test]
fn what_is_missing_is_named() {
    let machine = Machine::new(&[("conv_a", PASSING)]);
    fs::remove_file(machine.path(".carry/secateur")).unwrap();
    let done = machine.qualify(500);
    assert_eq!(done.code, 2);
    assert!(done.stdout.contains("run scripts/pack-gpu.sh where Rust is"), "{}", done.stdout);
}

/// nvcc as build.rs looks for it, without CUDA_HOME.
fn nvcc() -> Option<PathBuf> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    std::env::var_os("NVCC")
        .map(PathBuf::from)
        .into_iter()
        .chain(std::env::split_paths(&on_path).map(|folder| folder.join("nvcc")))
        .chain([Path::new(ROOT).join(".cuda/packages/nvidia/cu13/bin/nvcc")])
        .find(|path| path.is_file())
}

#[test]
fn the_probe_compiles_without_a_warning() {
    let Some(nvcc) = nvcc() else {
        println!("no nvcc here: scripts/probes/hopper.cu is not compiled");
        return;
    };
    let output = Command::new(Path::new(ROOT).join("scripts/probe-hopper.sh"))
        .arg("--compile-only")
        .env("NVCC", nvcc)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
}
