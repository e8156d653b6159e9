//! `scripts/qualify-gpu.py` with stand-ins for the GPU, its tools, the program, its tests and the peer: what runs under which
//! switches, what a hang, a failure, a missing tool and a kill leave behind, and what the summary says. And the program of
//! `scripts/probe-hopper.sh` compiles where nvcc is.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use secateur::measure::workload::{Bench, Work};
use secateur::recipe::Recipe;
use tempfile::TempDir;

use crate::common::program::PROGRAM;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

const NVIDIA_SMI: &str = r#"[ ! -e nogpu ] || exit 9
case "$1" in
dmon) echo '#Time        gpu    pwr  gtemp  mtemp   mclk   pclk'
    while :; do echo " $(date +%T)      0    612     50     60   3201   1755"; sleep 1; done ;;
*) echo 'NVIDIA Stand-in 1, 555.1, 81559 MiB, 1980 MHz' ;;
esac"#;

/// Runs what follows the options, as the real one does; `finding` holds the tool that finds something.
const SANITIZER: &str = r#"[ ! -e refused ] || { echo 'Error: Device not supported'; exit 1; }
tool=$2 code=$4; shift 4; "$@" || exit
if grep -qsx "$tool" finding; then
    printf '========= COMPUTE-SANITIZER\n========= Race at 0x50\n=========\n========= RACECHECK SUMMARY: 1 hazard\n'
    exit "$code"
fi
echo '========= ERROR SUMMARY: 0 errors'"#;

/// Writes its table to the log file, as the real one does.
const NCU: &str = r#"while [ "$1" != --log-file ]; do shift; done; file=$2
[ ! -e refused ] || { echo '==ERROR== Failed to initialize the profiler: LibraryNotLoaded' > "$file"; exit 1; }
while [ "$1" != .carry/secateur ]; do shift; done; "$@" || exit
printf '%s\n' '"ID","Kernel Name","gpu__time_duration.sum","sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed","smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio","smsp__average_warps_issue_stalled_wait_per_issue_active.ratio"' \
    '"","","us","%","",""' '"0","conv_forward_relu_wgmma_128x256","41.5","71.25","0.25","1.50"' > "$file""#;

/// Takes 0.5 s for 500 images of every step and 0.4 s for an attack; `broken` holds kinds that fail, `hang` the words of a command
/// line that never comes to its end once its first row is written.
const SECATEUR: &str = r#"echo "$* | $SECATEUR_WGMMA" >> calls
line=$*
[ "$1" != profile ] || { [ ! -e hang ] || ! grep -qFf hang <<< "$line" || exec sleep 100; exit 0; }
if [ "$1" = train ]; then
    while [ $# -gt 0 ]; do [ "$1" != --out ] || out=$2; shift; done
    mkdir -p "$out"
    for epoch in 1 2; do
        echo '{"epoch": '$epoch', "images_per_second": 9000, "validation_clean": 0.5, "validation_robust": 0.25, "seconds_attack": 1.5, "seconds_train": 0.5, "seconds_evaluate": 0.1}' >> "$out/metrics.jsonl"
        [ ! -e hang ] || ! grep -qFf hang <<< "$line" || exec sleep 100
    done
    echo '{"test": [{"weights": "best", "epoch": 2, "protocol": "pgd20", "accuracy": 0.25, "correct": 25, "total": 100, "seconds": 1.0}]}' > "$out/result.json"
    exit 0
fi
kind=$2
! grep -qsx "$kind" broken || exit 3
if [ -e old ]; then
    case $line in *--prefetch-maps*) echo "error: unexpected argument '--prefetch-maps' found"; exit 2 ;; esac
fi
while [ $# -gt 0 ]; do
    case $1 in --json) json=$2 ;; --batch) batch=$2 ;; esac
    shift
done
row() { printf '{%s "name": "%s cifar10-%s", "median": %s, "images": 500, "flops": 1e12, "unmet": %s}' "${4:-}" "$kind" "$1" "$2" "$3"; }
first=$(row pgd-at 0.5 null '"predicted": 0.4,') second=", $(row trades 0.5 '"time is up: 3 samples, expected 5"')"
case $kind in
attack) first=$(row pgd-at 0.4 null) second= ;;
ablation) first='{"name": "layer2.0.conv2 forward, mma", "median": 2e-3, "flops": 8e11}'
    second=', {"name": "layer2.0.conv2 forward, planes", "median": 1e-3, "flops": 8e11, "predicted": 8e-4}' ;;
kernels) first='{"name": "conv_forward 1x1x1", "cache": "warm", "calls": 7, "median": 1e-3, "flops": 2e11, "bytes": 1e9, "predicted": 9e-4}' second= ;;
esac
kernel='{"name": "conv_forward", "calls": 7, "seconds": 1e-3, "flops": 2e11, "bytes": 1e9, "share": 0.75}'
document() { # FINISHED ROWS KERNELS
    printf '{"width": 64, "batch": %s, "ceiling_flops": 5e14, "ceiling_bytes": 2e12, "ceilings": ["a", "b"], "finished": %s, "rows": [%s], "kernels": [%s]}\n' \
        "$batch" "$1" "$2" "$3" > "$json.writing"
    mv "$json.writing" "$json"
}
[ ! -e odd ] || first='{"name": "attack cifar10-pgd-at"}'
document false "$first" ""
[ ! -e hang ] || ! grep -qFf hang <<< "$line" || exec sleep 100
document true "$first$second" "$kernel""#;

/// 125 and 250 images/s by two modes at batch 512, ceilings of 100 TFLOP/s and 1 TB/s; one row that has no measurement.
const PEER: &str = r#"import json, os, sys, time
if os.path.exists("notorch"): raise ModuleNotFoundError("No module named 'torch'")
value = lambda name: sys.argv[sys.argv.index(name) + 1]
row = lambda method, mode, rate, failed={}: {"method": method, "batch": 512, "requested": "compile", "mode": mode,
    "failed": failed, "images_per_second": rate, "flops_per_second": rate * 23 * 1110845440}
rows = [row("pgd-at", "graphs", 125.0), row("pgd-at", "compile", 250.0)]
if "mart" in value("--method"): rows = [row("mart", None, 0, {"compile": "out of luck"})]
document = {"torch": "9.9", "cudnn": 1, "finished": False, "rows": rows[:1], "left_out": [],
    "ceilings": {"flops": 1e14, "bytes": 1e12, "how": ["product", "copy"]}}
json.dump(document, open(value("--json"), "w"))
if os.path.exists("hang") and open("hang").read().strip() in " ".join(sys.argv): time.sleep(100)
json.dump(document | {"finished": True, "rows": rows, "left_out": ["trades batch 512 graphs"]}, open(value("--json"), "w"))
"#;

const PROBE: &str = r#"[ ! -e hang ] || ! grep -qFx -- "$1" hang || exec sleep 100
echo '{"question": "question '$1'", "predicted": 9, "measured": 3, "unit": "taps", "verdict": "NOT AS PREDICTED"}'"#;

const PASSING: &str = "echo 'test result: ok. 3 passed; 0 failed'";

/// Of two tests the second fails unless `$1` is left out.
fn failing_with(kernel: &str) -> String {
    format!(
        r#"case ",$SECATEUR_WGMMA," in *,{kernel},*|*,off,*) {PASSING}; exit ;; esac
test=${{0##*/}}::wrong
printf "thread '$test' panicked at a.rs:1:\nwrong pixel\n\nfailures:\n    $test\n\ntest result: FAILED. 1 passed; 1 failed\n"; exit 101"#
    )
}

/// A test executable: the stand-in of the module that its first filter names.
const EXECUTABLE: &str = r#"filter=$1; [ "$1" != --exact ] || filter=$2
case $filter in *::*) exec ".carry/modules/${filter%%::*}" ;; *) echo "no module in '$*'"; exit 101 ;; esac"#;

/// The modules of a training step's tests, as scripts/qualify/switches.py names them, and one more.
const MODULES: [(&str, &[&str]); 2] = [
    ("engine", &["attack_loop", "engine_agreement", "first_stage", "graphs", "paired_passes"]),
    (
        "kernels",
        &[
            "conv_forward",
            "conv_image_gradient",
            "conv_input_gradient",
            "conv_weight_gradient",
            "kernel_attack",
            "kernel_data",
            "kernel_head",
            "kernel_head_ascent",
            "kernel_loss",
            "kernel_norm",
            "kernel_optimizer",
            "kernel_paired_loss",
            "kernel_select",
        ],
    ),
];

/// A checkout with stand-ins, in which every test passes.
struct Machine {
    folder: TempDir,
}

/// What a session left.
struct Done {
    code: Option<i32>,
    stdout: String,
    calls: Vec<String>,
    /// The summary in the archive.
    readme: String,
    /// Name, result and kernels of each job in the archive.
    jobs: Vec<[String; 3]>,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { folder: TempDir::new().unwrap() };
        let scripts = fs::read_dir(Path::new(ROOT).join("scripts/qualify")).unwrap();
        let scripts =
            scripts.map(|entry| entry.unwrap().path()).filter(|path| path.extension() == Some("py".as_ref()));
        let scripts: Vec<PathBuf> = scripts.map(|path| path.strip_prefix(ROOT).unwrap().into()).collect();
        for file in scripts
            .iter()
            .map(PathBuf::as_path)
            .chain(["scripts/qualify-gpu.py", "benches/peers/work.py"].map(Path::new))
        {
            let to = machine.path(file);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(Path::new(ROOT).join(file), to).unwrap();
        }
        // However slow this machine is, nothing runs out of its time but what hangs.
        let stages = "scripts/qualify/stages.py";
        let table = fs::read_to_string(machine.path(stages)).unwrap();
        let patient = table.replace("patience: float = 1.0", "patience: float = 20.0");
        assert_ne!(patient, table);
        machine.write(stages, &patient);
        machine.script("bin/nvidia-smi", NVIDIA_SMI);
        machine.script("bin/compute-sanitizer", SANITIZER);
        machine.script("bin/ncu", NCU);
        machine.script(".carry/secateur", SECATEUR);
        machine.script(".carry/ablation", r#"exec "$(dirname "$0")/secateur" bench ablation "$@""#);
        machine.script(".carry/probe-hopper", PROBE);
        fs::write(machine.path("benches/peers/gpu_step.py"), PEER).unwrap();
        let mut listed = String::new();
        for (executable, modules) in MODULES {
            machine.script(&format!(".carry/tests/{executable}"), EXECUTABLE);
            for module in modules {
                machine.script(&format!(".carry/modules/{module}"), PASSING);
                listed += &format!("{executable} {module}\n");
            }
        }
        machine.write(".carry/tests/modules.txt", &listed);
        machine
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/usr/bin/env bash\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("python3");
        command
            .current_dir(self.folder.path())
            .arg("scripts/qualify-gpu.py")
            .args(args)
            .env("PATH", format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap()))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env_remove("SECATEUR_WGMMA");
        command
    }

    /// The first call, with these stages alone where some are named.
    fn first(&self, args: &[&str]) -> Done {
        self.call("first", args)
    }

    fn call(&self, call: &str, args: &[&str]) -> Done {
        let output = self.command(&[call, "--archive", "back/archive.tar.gz"]).args(args).output().unwrap();
        let stdout = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        self.done(output.status.code(), stdout)
    }

    fn done(&self, code: Option<i32>, stdout: String) -> Done {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        let files = archive(&self.path("back/archive.tar.gz"));
        let text = |name: &str| files.iter().find(|file| file.0.ends_with(name)).map(|file| file.1.clone());
        let readme = text("/README.md").unwrap_or_default();
        if let Some(first) = files.first() {
            assert!(first.0.ends_with("/README.md"), "the summary is not the first file but {}", first.0);
            let beside = fs::read_to_string(self.path("back/archive.md")).unwrap();
            assert!(code.is_none() || beside == readme, "{beside}");
        }
        let document: serde_json::Value =
            text("/jobs.json").map_or_else(Default::default, |text| serde_json::from_str(&text).unwrap());
        let jobs = document["jobs"].as_array().cloned().unwrap_or_default();
        let cell = |job: &serde_json::Value, key: &str| job[key].as_str().unwrap().to_string();
        let jobs = jobs.iter().map(|job| ["job", "result", "kernels"].map(|key| cell(job, key))).collect();
        Done { code, stdout, calls: calls.lines().map(String::from).collect(), readme, jobs }
    }
}

/// Names and texts of the files of an archive, in order; none where there is no archive yet.
fn archive(path: &Path) -> Vec<(String, String)> {
    let Ok(file) = fs::File::open(path) else { return Vec::new() };
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    let mut files = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.push((
            entry.path().unwrap().display().to_string(),
            String::from_utf8_lossy(&bytes).into_owned(),
        ));
    }
    files
}

impl Done {
    fn result(&self, job: &str) -> &str {
        self.jobs.iter().find(|[name, ..]| name == job).map_or("absent", |[_, result, _]| result)
    }

    fn kernels(&self, job: &str) -> &str {
        self.jobs.iter().find(|[name, ..]| name == job).map_or("absent", |[.., kernels]| kernels)
    }

    fn called(&self, what: &str) -> bool {
        self.calls.iter().any(|call| call.contains(what))
    }

    fn says(&self, line: &str) {
        assert!(self.readme.contains(line), "no '{line}' in\n{}\n{}", self.readme, self.stdout);
    }
}

/// What a line of Python prints that knows the tables of scripts/qualify.
fn python(line: &str) -> String {
    let script =
        format!("import sys; sys.path.insert(0, 'scripts'); from qualify import stages, switches; {line}");
    let output = Command::new("python3").current_dir(ROOT).args(["-B", "-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// What the first call measures: attacks, steps, variants, kernels, the variants of the convolution and the peer twice.
const MEASURED: [&str; 18] = [
    "attack-512",
    "attack-128",
    "step-512",
    "step-128",
    "peer",
    "attack-512-first-stage-128",
    "attack-512-first-stage-256",
    "attack-512-first-stage-512",
    "attack-512-dependent-launch-off",
    "step-512-dependent-launch-off",
    "step-512-graphs-off",
    "attack-512-prefetch-off",
    "step-512-prefetch-off",
    "attack-512-carve-out-off",
    "step-512-carve-out-off",
    "kernels-512",
    "ablation-512",
    "peer-others",
];

#[test]
fn a_session_where_all_is_well_measures_everything_in_order() {
    let machine = Machine::new();
    let done = machine.first(&[]);
    assert_eq!(done.code, Some(0), "{}", done.stdout);
    let other: Vec<_> = done.jobs.iter().filter(|[_, result, _]| result != "ok").collect();
    assert!(other.is_empty(), "{other:?}");
    let position = |name: &str| {
        done.jobs.iter().position(|[job, ..]| job == name).unwrap_or_else(|| panic!("no {name}"))
    };
    let order: Vec<usize> =
        ["probe-a0", "probe-b0", "conv_forward"].iter().chain(&MEASURED).map(|name| position(name)).collect();
    assert!(order.is_sorted(), "{:?}", done.jobs);
    assert_eq!(done.jobs.iter().filter(|[name, ..]| name.starts_with("probe-")).count(), 23);
    assert!(
        position("counters-0") < position("kernel_select")
            && position("kernel_select") < position("racecheck")
    );
    for option in [
        "--first-stage 256",
        "--dependent-launch off",
        "--graphs off",
        "--prefetch-maps off",
        "--carve-out off",
    ] {
        assert!(done.called(&format!(" --batch 512 {option} --device cuda ")), "{option}: {:?}", done.calls);
    }

    done.says("# NVIDIA Stand-in 1, first call, ");
    done.says("Driver 555.1, 81559 MiB, SM clock at most 1980 MHz.");
    // 1000 images/s x 23 x 1.1108 GFLOP = 25.5 TFLOP/s; the peer's faster mode has 250 images/s.
    done.says("* **pgd-at, batch 512: 1000 images/s (kernels: all); PyTorch 250 (compile); 4.00 x**");
    done.says("Ceilings: 100 TFLOP/s, 1000 GB/s (PyTorch's product and copy).");
    done.says(
        "| pgd-at, batch 512 | 1000 | 25.5 | 25.5 % | 50.00 | 1250 | all | 250 (compile) | 6.4 % | 4.00 x |",
    );
    done.says("| trades, batch 128 | 1000 | 30.0 | 30.0 % | 50.00 | - | all | - | - | - |");
    done.says("step-512, step cifar10-trades: time is up: 3 samples, expected 5");
    // 1250 images/s x 20 x 1.1108 GFLOP.
    done.says("| pgd-at, batch 512 | 1250 | 27.8 | 27.8 % | - | all |");
    done.says("| attack pgd-at, batch 512, first stage 256 | 1250 | 1250 | 1.000 | - | all |");
    done.says("| step pgd-at, batch 512, graphs off | 1000 | 1000 | 1.000 | 1250 | all |");
    done.says("| `conv_forward` | 7 | 1000.0 | 900.0 | 75.0 % | 200.0 | 200.0 % | 1000 | 100.0 % | all |");
    done.says("| 512 images, TFLOP/s (predicted) | mma | planes |");
    done.says("| layer2.0.conv2 forward | 400 | 800 (1000) |");
    done.says("| `conv_forward_relu_wgmma_128x256` | 41.5 | 71.25 | - | - | wait 1.50, long_scoreboard 0.25 | all |");
    done.says("| question c9 | 9 | 3 | taps | NOT AS PREDICTED |");
    done.says("* of a training step: 17 of 17 passed");
    done.says("* of the rest: 1 of 1 passed");
    done.says("* racecheck: ok: `ERROR SUMMARY: 0 errors` (all kernels)");
    done.says("mart, batch 512, compile: out of luck");
    done.says("not measured for lack of time: trades batch 512 graphs");
    assert!(done.readme.contains("| 1755 | 1755 to 1755 | 612 | 612 to 612 |"), "{}", done.readme);

    // A second session does not mix its results with these.
    let again = machine.first(&[]);
    assert_eq!(again.code, Some(2), "{}", again.stdout);
    assert!(
        again.stdout.contains("runs/gpu/first holds the results of an earlier session"),
        "{}",
        again.stdout
    );
}

#[test]
fn figures_of_an_emulated_device_are_no_results_even_next_to_a_gpu() {
    let machine = Machine::new();
    let done = machine.first(&["--device", "emulated:sm_90a", "--only", "attack"]);
    assert_eq!((done.code, done.result("attack-8")), (Some(0), "ok"), "{}", done.stdout);
    done.says("# device emulated:sm_90a, first call, ");
    done.says("no number of this page is a result.");
}

#[test]
fn the_first_call_fits_into_its_time() {
    let seconds: f64 = python("print(stages.planned_seconds())").parse().unwrap();
    assert!((500.0..=595.0).contains(&seconds), "{seconds}");
}

#[test]
fn a_failing_kernel_alone_is_left_out() {
    let machine = Machine::new();
    machine.script(".carry/modules/conv_forward", &failing_with("128x256"));
    machine.script(".carry/modules/graphs", &failing_with("input-gradient"));
    let done = machine.first(&["--only", "step-tests,switches,confirm,attack,steps,counters,alone"]);
    assert_eq!(done.code, Some(1), "{}", done.stdout);
    assert_eq!((done.result("conv_forward"), done.result("conv_forward-again")), ("failed", "ok"));
    // By itself it runs with the kernel that is left out since.
    assert_eq!(done.result("alone-conv_forward-wrong"), "failed");
    assert_eq!(done.kernels("attack-512"), "without 128x256,input-gradient");
    assert!(
        done.called("bench step --recipe") && done.called("| 128x256,input-gradient"),
        "{:?}",
        done.calls
    );
    done.says("`SECATEUR_WGMMA=128x256,input-gradient`");
    done.says(
        "| pgd-at, batch 512 | 1000 | 25.5 | 5.1 % | 50.00 | 1250 | without 128x256,input-gradient | - | - | - |",
    );
    done.says("* conv_forward with SECATEUR_WGMMA=64x512: failed");
    done.says("* failed: conv_forward: thread 'conv_forward::wrong' panicked at a.rs:1: wrong pixel");
    // The second call goes on without them.
    let done = machine.call("second", &["--only", "rate"]);
    assert_eq!(done.kernels("step-512"), "without 128x256,input-gradient");
}

#[test]
fn failures_that_only_all_switches_together_mend_turn_all_off() {
    let machine = Machine::new();
    // Each alone is mended by one switch, but not by the two together.
    let body = |kernel: &str| {
        format!(r#"[ "$SECATEUR_WGMMA" = {kernel} ] || [ "$SECATEUR_WGMMA" = off ] || exit 101; {PASSING}"#)
    };
    machine.script(".carry/modules/conv_forward", &body("forward"));
    machine.script(".carry/modules/conv_input_gradient", &body("input-gradient"));
    let done = machine.first(&["--only", "step-tests,switches,confirm,steps"]);
    assert_eq!(done.kernels("step-512"), "without off", "{}", done.stdout);
}

#[test]
fn an_older_program_knows_off_alone() {
    let machine = Machine::new();
    machine.write("old", "");
    let refuses = r#"case $SECATEUR_WGMMA in
"") exit 101 ;;
off) echo 'test result: ok. 3 passed; 0 failed' ;;
*) echo "error: SECATEUR_WGMMA=$SECATEUR_WGMMA: expected on or off"; exit 101 ;;
esac"#;
    machine.script(".carry/modules/conv_weight_gradient", refuses);
    let done = machine.first(&["--only", "step-tests,switches,confirm,attack,variants"]);
    assert_eq!(done.result("conv_weight_gradient-without-weight-gradient"), "not run");
    assert_eq!((done.result("attack-512-carve-out-off"), done.kernels("attack-512")), ("ok", "without off"));
    assert_eq!(done.result("attack-512-prefetch-off"), "not run");
    done.says("* attack-512-prefetch-off: this program knows no --prefetch-maps");
}

#[test]
fn what_nothing_mends_is_measured_and_called_unproven() {
    let machine = Machine::new();
    machine.script(".carry/modules/kernel_norm", &failing_with("nothing").replace("*,off,*", "x"));
    machine.script(".carry/modules/kernel_select", "echo 'test result: ok. 0 passed; 0 failed'");
    let done = machine.first(&["--only", "step-tests,switches,confirm,steps,other-tests,alone"]);
    assert_eq!((done.code, done.result("step-512")), (Some(1), "ok"));
    done.says("**Unproven: kernel_norm did not pass with any choice of kernels.**");
    done.says("1000 images/s (kernels: all; unproven: kernel_norm did not pass)");
    // Only what is listed as failed runs again by itself.
    assert_eq!(done.result("alone-kernel_norm-wrong"), "failed");
    done.says("failed: kernel_select: it ran no test");
}

#[test]
fn tools_that_do_not_run_are_no_failures() {
    let machine = Machine::new();
    machine.write("refused", "");
    machine.write("notorch", "");
    fs::remove_file(machine.path(".carry/probe-hopper")).unwrap();
    let done = machine.first(&["--only", "rates,peer,counters,checkers"]);
    assert_eq!(done.code, Some(0), "{}", done.stdout);
    for (name, why) in [
        ("peer", "ModuleNotFoundError: No module named 'torch'"),
        ("counters-0", "==ERROR== Failed to initialize the profiler: LibraryNotLoaded"),
        ("racecheck", "Error: Device not supported"),
        ("probe-b0", "there is no .carry/probe-hopper"),
    ] {
        assert_eq!(done.result(name), "not run", "{name}");
        done.says(&format!("* {name}: {why}\n"));
    }
    let real = "command -v ncu compute-sanitizer || ls -d /usr/local/cuda/bin /opt/nvidia/nsight-compute";
    let real = Command::new("sh").args(["-c", real]).stderr(Stdio::null()).output().unwrap().stdout;
    if !real.is_empty() {
        println!("NVIDIA's tools are on this machine: that they are missing is not tried");
        return;
    }
    for tool in ["compute-sanitizer", "ncu"] {
        fs::remove_file(machine.path(format!("bin/{tool}"))).unwrap();
    }
    let done = machine.first(&["--folder", "other", "--only", "counters,checkers"]);
    assert_eq!(
        (done.code, done.result("counters-3"), done.result("memcheck")),
        (Some(0), "not run", "not run")
    );
    done.says("* memcheck: there is no compute-sanitizer\n");
}

#[test]
fn an_ncu_that_does_not_know_a_metric_is_asked_for_sections() {
    let machine = Machine::new();
    let knows = NCU.replace(
        "while [ \"$1\" != .carry",
        r#"case "$*" in
*--metrics*) echo '==ERROR== Failed to find metric lts__t_bytes.sum' > "$file"; exit 1 ;;
esac
while [ "$1" != .carry"#,
    );
    machine.script("bin/ncu", &knows);
    let done = machine.first(&["--only", "counters,counters-again"]);
    assert_eq!(
        (done.code, done.result("counters-0"), done.result("sections-3")),
        (Some(0), "not run", "ok"),
        "{}",
        done.stdout
    );
    done.says("| `conv_forward_relu_wgmma_128x256` | 41.5 | 71.25 |");
}

#[test]
fn what_a_checker_finds_stands_beside_the_figures() {
    let machine = Machine::new();
    machine.write("finding", "racecheck\n");
    let done = machine.first(&["--only", "steps,checkers"]);
    assert_eq!((done.code, done.result("racecheck"), done.result("memcheck")), (Some(1), "findings", "ok"));
    done.says("* racecheck: findings: `Race at 0x50; RACECHECK SUMMARY: 1 hazard` (all kernels)");
    done.says("| pgd-at, batch 512 | 1000 |");
}

#[test]
fn a_bench_that_fails_or_hangs_leaves_the_others() {
    let machine = Machine::new();
    machine.write("broken", "kernels\n");
    machine.write(
        "hang",
        "bench attack --recipe cifar10-pgd-at,cifar10-trades,cifar10-mart --width 64 --batch 512",
    );
    machine.write("scripts/qualify/job.py", &machine.hurried());
    let done = machine.first(&["--only", "attack,steps,kernels"]);
    assert_eq!(done.code, Some(1), "{}", done.stdout);
    assert_eq!((done.result("attack-512"), done.result("attack-128")), ("time up", "ok"), "{}", done.stdout);
    assert_eq!((done.result("kernels-512"), done.result("ablation-512")), ("failed", "ok"));
    // The row from before it hung.
    done.says("| pgd-at, batch 512 | 1250 |");
    done.says("attack-512.json is not finished: the rows are those so far.");
    done.says("time up: attack-512: after 1");
}

impl Machine {
    /// job.py in which no job has more than half a second, times 20.
    fn hurried(&self) -> String {
        let text = fs::read_to_string(self.path("scripts/qualify/job.py")).unwrap();
        text + "\n\nmade = Job.__init__\ndef hurried(self, name, command, limit, **rest):\n    made(self, name, command, min(limit, 0.5), **rest)\nJob.__init__ = hurried\n"
    }
}

#[test]
fn rows_that_are_not_as_expected_do_not_end_a_session() {
    let machine = Machine::new();
    machine.write("odd", "");
    let done = machine.first(&["--only", "attack,checkers"]);
    assert_eq!((done.code, done.result("racecheck")), (Some(0), "ok"), "{}", done.stdout);
    done.says("## Attack\n\nThis could not be made of the files of the session: KeyError(");
}

/// A machine where what `hang` names does not come to its end.
fn hanging(hang: &str) -> Machine {
    let machine = Machine::new();
    if hang.starts_with(".carry/modules/") {
        machine.script(hang, "echo 'test one ... ok'; exec sleep 100");
    } else {
        machine.write("hang", hang);
    }
    machine
}

/// A machine where the second test of conv_forward fails but without block 128x256; where `hangs` holds of the shell, it hangs.
fn failing_and_hanging(hangs: &str) -> Machine {
    let machine = Machine::new();
    let body =
        format!("if {hangs}; then echo 'test one ... ok'; exec sleep 100; fi\n{}", failing_with("128x256"));
    machine.script(".carry/modules/conv_forward", &body);
    machine
}

/// Kills the session, and all that it started, while the job `victim` hangs in the middle: its rows so far, those of the stages
/// before it, and what the summary says of it must be in the archive.
fn killed(machine: &Machine, call: &str, stages: &str, victim: &str, rows: &[&str]) {
    let mut child = machine
        .command(&[call, "--archive", "back/archive.tar.gz", "--only", stages])
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let begin = Instant::now();
    loop {
        let done = machine.done(None, String::new());
        if done.result(victim) == "running" && rows.iter().all(|row| done.readme.contains(row)) {
            break;
        }
        let late = begin.elapsed() > Duration::from_secs(60);
        assert!(
            !late && child.try_wait().unwrap().is_none(),
            "{victim}: {rows:?} are not in\n{}",
            done.readme
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let group = format!("-{}", child.id());
    assert!(Command::new("kill").args(["-KILL", "--", &group]).status().unwrap().success());
    child.wait().unwrap();
    let done = machine.done(None, String::new());
    done.says(&format!("* cut off while it ran: {victim}\n"));
    for row in rows {
        done.says(row);
    }
}

#[test]
fn a_kill_in_the_middle_of_any_stage_leaves_every_row() {
    const ATTACK: &str = "| pgd-at, batch 512 | 1250 | 27.8 |";
    const STEP: &str = "| pgd-at, batch 512 | 1000 | 25.5 |";
    const FAILED: &str = "of a training step: 16 of 17 passed";
    const EPOCH: &str = "| 1 | 2.10 | 1.50 | 0.50 | 9000 |";
    // What is left out is tried once, and then once more together.
    let again = r#"[ "$SECATEUR_WGMMA" = 128x256 ] && { [ -e once ] || { touch once; false; }; }"#;
    let refusing = Machine::new();
    let refuses = r#"case "$*" in
*--metrics*) echo '==ERROR== Failed to find metric lts__t_bytes.sum' > "$file"; exit 1 ;;
*) exec sleep 100 ;;
esac
while [ "$1" != .carry"#;
    refusing.script("bin/ncu", &NCU.replace("while [ \"$1\" != .carry", refuses));
    let piped = Machine::new();
    // Nobody writes into it: reading it hangs.
    let images = piped.path(".carry/images.xz");
    assert!(Command::new("mkfifo").arg(images).status().unwrap().success());

    // The call, its stages, of which the last is killed, the job that runs then, and rows that must be there.
    let cases: Vec<(Machine, &str, &str, &str, Vec<&str>)> = vec![
        (
            hanging("a3"),
            "first",
            "probes",
            "probe-a3",
            vec!["| question a2 | 9 | 3 |", "| question c1 | 9 | 3 |"],
        ),
        (hanging("b2"), "first", "probes,rates", "probe-b2", vec!["| question a2 |", "| question b1 |"]),
        (hanging(".carry/modules/graphs"), "first", "step-tests", "graphs", vec![FAILED]),
        (
            failing_and_hanging(r#"[ "$SECATEUR_WGMMA" = 64x512 ]"#),
            "first",
            "step-tests,switches",
            "conv_forward-without-64x512",
            vec![FAILED],
        ),
        (
            failing_and_hanging(again),
            "first",
            "step-tests,switches,confirm",
            "conv_forward-again",
            vec![FAILED],
        ),
        (
            hanging("bench attack"),
            "first",
            "attack",
            "attack-512",
            vec![ATTACK, "attack-512.json is not finished"],
        ),
        (hanging("bench step"), "first", "attack,steps", "step-512", vec![ATTACK, STEP]),
        (hanging("--method pgd-at"), "first", "steps,peer", "peer", vec![STEP, "125 (graphs)"]),
        (
            hanging("--graphs off"),
            "first",
            "steps,variants",
            "step-512-graphs-off",
            vec!["step pgd-at, batch 512, graphs off | 1000 | 1000 |"],
        ),
        (
            hanging("bench kernels"),
            "first",
            "steps,kernels",
            "kernels-512",
            vec![STEP, "| `conv_forward 1x1x1` | 7 |"],
        ),
        (hanging("profile"), "first", "steps,counters", "counters-0", vec![STEP]),
        (refusing, "first", "counters,counters-again", "sections-0", vec!["counters-0"]),
        (hanging(".carry/modules/kernel_select"), "first", "steps,other-tests", "kernel_select", vec![STEP]),
        (
            failing_and_hanging("[ -e once ] || { touch once; false; }"),
            "first",
            "step-tests,alone",
            "alone-conv_forward-wrong",
            vec![FAILED],
        ),
        (hanging("profile"), "first", "steps,checkers", "racecheck", vec![STEP]),
        (hanging("--method trades,mart"), "first", "steps,peer-others", "peer-others", vec![STEP]),
        (piped, "second", "images", "images", vec![]),
        (
            hanging("bench step"),
            "second",
            "images,rate",
            "step-512",
            vec!["there is no .carry/images.xz", STEP],
        ),
        (hanging("train --recipe"), "second", "rate,training", "train", vec![STEP, EPOCH]),
    ];
    let stages = python("print(*(stage.name for stage in stages.FIRST + stages.SECOND))");
    let killed_in: Vec<&str> = cases.iter().map(|case| case.2.rsplit(',').next().unwrap()).collect();
    assert_eq!(killed_in, stages.split_whitespace().collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for (machine, call, stages, victim, rows) in &cases {
            scope.spawn(move || killed(machine, call, stages, victim, rows));
        }
    });
}

#[test]
fn an_interrupted_session_ends_its_jobs() {
    let machine = Machine::new();
    machine.write("hang", "bench attack");
    let mut child = machine
        .command(&["first", "--archive", "back/archive.tar.gz", "--only", "attack"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while machine.done(None, String::new()).result("attack-512") != "running" {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let done = machine.done(child.wait().unwrap().code(), String::new());
    assert_eq!((done.code, done.result("attack-512")), (Some(130), "time up"));
    done.says("* time up: attack-512: interrupted");
}

#[test]
fn the_second_call_trains_on_the_packed_images() {
    let machine = Machine::new();
    let numpy = Command::new("python3")
        .args(["-c", "import numpy"])
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success();
    let mut records = Vec::new();
    if numpy {
        // 200 training images and 25 test images of noise; 200 and 20 fit. By hundreds, since noise takes its time to compress.
        let images = "scripts/qualify/images.py";
        let script = fs::read_to_string(machine.path(images)).unwrap();
        machine.write(images, &script.replace("CHUNK = 1000", "CHUNK = 100"));
        let noise = |count: usize, seed: u32| -> Vec<u8> {
            let mut word = seed;
            let mut byte = || {
                word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (word >> 24) as u8
            };
            (0..count)
                .flat_map(|_| std::iter::once(3).chain((0..3072).map(|_| byte())).collect::<Vec<u8>>())
                .collect()
        };
        records = noise(200, 1);
        for (name, content) in [("data_batch_1.bin", &records), ("test_batch.bin", &noise(25, 2))] {
            machine.write(name, "");
            fs::write(machine.path(name), content).unwrap();
        }
        for batch in 2..6 {
            machine.write(&format!("data_batch_{batch}.bin"), "");
        }
        let packed = Command::new("python3")
            .current_dir(machine.folder.path())
            .args(["scripts/qualify/images.py", "pack", ".", ".carry/images.xz", "900000"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[packed.stdout, packed.stderr].concat()).into_owned();
        assert_eq!(said.trim(), r#"{"train": 200, "test": 20}"#);
    }
    let done = machine.call("second", &[]);
    assert_eq!(done.code, Some(0), "{}", done.stdout);
    done.says("2.10 s an epoch (median).");
    done.says("| best, epoch 2, pgd20 | 25.0 % | 25 of 100 | 1.0 |");
    if numpy {
        let unpacked = fs::read(machine.path(".carry/data/data_batch_1.bin")).unwrap();
        assert_eq!(unpacked.len(), 30_730_000);
        assert!(unpacked.starts_with(&records) && unpacked[records.len()..].iter().all(|&byte| byte == 0));
        assert!(
            done.called("train --recipe cifar10-pgd-at --data .carry/data --device cuda "),
            "{:?}",
            done.calls
        );
        // 200 images at 1,000 images/s are 0.2 s an epoch.
        assert!(
            done.called(" --set epochs=30 --set data.train_limit=200 --set data.test_limit=20 "),
            "{:?}",
            done.calls
        );
    } else {
        done.says("* images: there is no .carry/images.xz");
    }
}

#[test]
fn what_is_missing_is_named() {
    let machine = Machine::new();
    machine.write("nogpu", "");
    let done = machine.first(&[]);
    assert_eq!(done.code, Some(3), "{}", done.stdout);
    assert!(done.stdout.contains("error: nvidia-smi names no GPU"), "{}", done.stdout);
    fs::remove_file(machine.path("nogpu")).unwrap();
    fs::remove_file(machine.path(".carry/secateur")).unwrap();
    let done = machine.first(&[]);
    assert_eq!(done.code, Some(2));
    assert!(done.stdout.contains("run scripts/pack-gpu.sh where Rust is"), "{}", done.stdout);
    let done = machine.first(&["--only", "no-such-stage"]);
    assert_eq!(done.code, Some(2), "{}", done.stdout);
    assert!(done.stdout.contains("--only no-such-stage: expected some of probes, "), "{}", done.stdout);
}

/// A module runs by a filter, which is a part of a test's name: it must not be the end of another module's name.
#[test]
fn a_filter_chooses_one_module_and_a_steps_modules_are_there() {
    let folders = |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let modules: Vec<(PathBuf, String)> = folders(&Path::new(ROOT).join("tests"))
        .filter(|folder| folder.join("main.rs").is_file())
        .flat_map(|folder| folders(&folder).collect::<Vec<_>>())
        .map(|file| (file.parent().unwrap().into(), file.file_stem().unwrap().to_str().unwrap().into()))
        .collect();
    for (folder, module) in &modules {
        let chosen = modules.iter().filter(|(other, name)| other == folder && name.ends_with(module));
        assert_eq!(chosen.count(), 1, "{folder:?}: {module}");
    }
    let of_step = python("print(*switches.STEP_TESTS)");
    assert!(of_step.split_whitespace().count() > 10, "{of_step}");
    let packed = packed_modules();
    for module in of_step.split_whitespace() {
        assert!(packed.iter().any(|(_, name)| name == module), "{module} does not travel");
    }
}

/// Executable and module of each test that scripts/pack-gpu.sh takes along.
fn packed_modules() -> Vec<(String, String)> {
    let output = Command::new(Path::new(ROOT).join("scripts/pack-gpu.sh")).arg("--modules").output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| line.split_once(' ').unwrap()).map(|(a, b)| (a.into(), b.into())).collect()
}

/// Renamed folders (--remap-path-prefix) are those of the compiler's own messages, not those of env!.
#[test]
fn tests_that_travel_hold_no_folder_of_the_building_machine() {
    let executables = packed_modules().into_iter().map(|(executable, _)| executable);
    for folder in executables.chain(["common".into()]).collect::<BTreeSet<String>>() {
        for file in fs::read_dir(Path::new(ROOT).join("tests").join(&folder)).unwrap() {
            let file = file.unwrap().path();
            let text = fs::read_to_string(&file).unwrap();
            for variable in ["CARGO_MANIFEST_DIR", "CARGO_BIN_EXE", "CARGO_TARGET_TMPDIR"] {
                let used = text.lines().any(|line| !line.trim().starts_with("//") && line.contains(variable));
                assert!(!used, "{file:?} holds {variable}");
            }
        }
    }
}

#[test]
fn what_the_checkers_run_launches_the_large_blocks() {
    let batch = python("print(stages.CHECKED_BATCH)");
    let overrides = ["attack.steps=1".into(), format!("batch={batch}"), "model.width=64".into()];
    let recipe = Recipe::load("cifar10-pgd-at", &overrides).unwrap();
    let record = Bench::dry(&recipe).unwrap().record(&Work::Step, 1).unwrap();
    for block in ["128x256", "64x512", "resident"] {
        let launched =
            record.launches.iter().any(|launch| launch.kernel.ends_with(&format!("_wgmma_{block}")));
        assert!(launched, "batch {batch} launches no {block}");
    }
}

#[test]
fn every_counted_kernel_is_launched_more_than_once() {
    let batch = python("print(stages.FULL.large)");
    let overrides = ["attack.steps=1".into(), format!("batch={batch}"), "model.width=64".into()];
    let recipe = Recipe::load("cifar10-pgd-at", &overrides).unwrap();
    let record = Bench::dry(&recipe).unwrap().record(&Work::Step, 1).unwrap();
    let counted = python("print(*stages.COUNTED)");
    assert!(counted.split_whitespace().count() >= 4, "{counted}");
    for kernel in counted.split_whitespace() {
        let kernel = regex::Regex::new(kernel).unwrap();
        // The first launch is passed over.
        let launches = record.launches.iter().filter(|launch| kernel.is_match(launch.kernel)).count();
        assert!(launches > 1, "batch {batch} launches {kernel} {launches} times");
    }
}

#[test]
fn the_program_takes_every_command_line() {
    let script = r#"
import json, sys, types
from pathlib import Path
sys.path.insert(0, "scripts")
from qualify import stages
session = types.SimpleNamespace(size=stages.FULL, device="cuda:99", folder=Path(sys.argv[1]), left=lambda: 100)
asked = [stages.attacks, stages.steps, stages.variants, stages.kernels, stages.counters, stages.checkers, stages.rate, stages.training]
commands = [list(map(str, job.command)) for jobs in asked for job in jobs(session)]
print(json.dumps([command[command.index(stages.PROGRAM) + 1:] for command in commands if stages.PROGRAM in command]))
"#;
    let folder = TempDir::new().unwrap();
    let output = Command::new("python3")
        .current_dir(ROOT)
        .args(["-B", "-c", script])
        .arg(folder.path())
        .output()
        .unwrap();
    let commands: Vec<Vec<String>> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(commands.len() > 20, "{}", String::from_utf8_lossy(&output.stderr));
    for command in commands {
        let output = Command::new(&*PROGRAM).current_dir(folder.path()).args(&command).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        // All that it says is that there is no such GPU.
        assert!(output.status.code() == Some(3), "{command:?}: {:?}\n{stderr}", output.status.code());
    }
}

#[test]
fn the_peer_takes_every_command_line() {
    let script = r#"
import json, sys, types
from pathlib import Path
from unittest.mock import MagicMock
sys.modules |= {name: MagicMock() for name in ("torch", "torch.nn", "torch.nn.functional")}
sys.path += ["scripts", "benches/peers"]
import gpu_step
from qualify import stages
for size in (stages.FULL, stages.TINY):
    session = types.SimpleNamespace(size=size, folder=Path("."))
    for stage in (stage for stage in stages.FIRST if stage.name.startswith("peer")):
        for job in stage.jobs(session):
            sys.argv = list(map(str, job.command[1:]))
            args = gpu_step.arguments()
            print(args.methods, args.batches, args.budget < stage.seconds * size.patience)
"#;
    let output = Command::new("python3").current_dir(ROOT).args(["-B", "-c", script]).output().unwrap();
    let expected = "['pgd-at'] [512, 128] True\n['trades', 'mart'] [512, 128] True\n\
                    ['pgd-at'] [8, 4] True\n['trades', 'mart'] [8, 4] True\n";
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{stderr}");
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
fn the_probe_compiles_without_a_warning_and_has_the_questions_that_are_asked() {
    let Some(nvcc) = nvcc() else {
        println!("no nvcc here: scripts/probes/hopper.cu is not compiled");
        return;
    };
    let folder = TempDir::new().unwrap();
    let program = folder.path().join("probe");
    let output = Command::new(Path::new(ROOT).join("scripts/probe-hopper.sh"))
        .arg("--build")
        .arg(&program)
        .env("NVCC", nvcc)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
    let listed = Command::new(program).arg("--list").output().unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&listed).trim(), python("print(*stages.PROBE_IDS, sep='\\n')"));
}
