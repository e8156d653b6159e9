//! The command line as a user meets it: a real process, its exit codes, its one-line errors, its files.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command as Process, Stdio};

use assert_cmd::Command;
use secateur::model::Weights;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_secateur");

/// A run of seconds: 60 images, two steps an epoch.
const TINY: [&str; 12] = [
    "--set=data.train_limit=60",
    "--set=data.test_limit=20",
    "--set=data.validation=10",
    "--set=batch=25",
    "--set=epochs=2",
    "--set=attack.steps=1",
    "--set=evaluation.every=1",
    "--set=evaluation.samples=20",
    "--set=evaluation.best_by=pgd1",
    "--set=evaluation.protocols=['clean','pgd2']",
    "--set=checkpoint.every=1",
    "--device=cpu",
];

/// What a command left: exit code, lines of stdout and of stderr.
struct Done {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn secateur(folder: &Path, args: &[&str]) -> Done {
    let output = Command::new(PROGRAM).current_dir(folder).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn tiny_run(folder: &Path, more: &[&str]) -> Done {
    secateur(folder, &[&["train", "--out", "run"], &TINY[..], more].concat())
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn help_and_version_are_answers() {
    let folder = TempDir::new().unwrap();
    for (args, part) in [
        (&["--help"][..], "Usage: secateur <COMMAND>"),
        (&["--version"], concat!("secateur ", env!("CARGO_PKG_VERSION"))),
        (&["train", "--help"], "--resume"),
        (&["eval", "--help"], "--protocol"),
        (&["dump", "--help"], "--x-adv"),
        (&["recipes"], "quick"),
        (&["recipes", "quick", "--set", "attack.steps=7"], "steps = 7"),
    ] {
        let done = secateur(folder.path(), args);
        assert_eq!(done.code, Some(0), "{args:?}: {}", done.stderr);
        assert!(done.stdout.contains(part), "{args:?}: {}", done.stdout);
    }
}

#[test]
fn a_mistake_is_one_line_and_leaves_nothing_behind() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    fs::write(path.join("bad.toml"), "epochs = [").unwrap();
    fs::write(path.join("bad.safetensors"), b"\x08\0\0\0\0\0\0\0{}").unwrap();
    fs::create_dir(path.join("full")).unwrap();
    fs::write(path.join("full/thesis.tex"), "all of it").unwrap();
    fs::create_dir(path.join("empty")).unwrap();
    let cases: &[(&str, i32, &str)] = &[
        ("frobnicate", 2, "'frobnicate'"),
        ("train --devic cpu", 2, "'--devic'"),
        ("train --device gpu", 2, "device 'gpu': expected auto, cpu, cuda, cuda:N or emulated"),
        ("train --device cuda:99", 3, "error: "),
        ("train --recipe nope", 2, "no recipe 'nope'"),
        ("train --recipe bad.toml", 2, "bad"),
        ("train --set attack.stepz=3", 2, "attack.stepz"),
        ("train --set epochs=0", 2, "epochs"),
        ("train --set evaluation.best_by=pgd", 2, "protocol 'pgd'"),
        ("train --resume", 2, "--out"),
        ("train --out full", 2, "full: not a run of secateur"),
        ("train --out full --resume", 2, "full: not a run of secateur"),
        ("train --out bad.toml/run --device cpu", 2, "bad.toml/run"),
        ("train --data empty", 2, "--data empty"),
        ("train --recipe cifar10-demo", 2, "--data"),
        ("train --recipe cifar10-demo --data empty", 2, "empty"),
        ("train --recipe cifar10-demo --data nowhere", 2, "nowhere"),
        ("eval --weights nowhere", 2, "nowhere: No such file"),
        ("eval --weights bad.safetensors", 2, "bad.safetensors"),
        ("eval --weights empty", 2, "empty: neither a weights file"),
        ("eval --weights bad.safetensors --protocol clean,foo", 2, "protocol 'foo'"),
        ("eval --weights bad.safetensors --eps 2", 2, "'2'"),
        ("eval --weights bad.safetensors --samples 0", 2, "'0'"),
        ("dump --weights bad.safetensors --samples 8..8 --out d", 2, "'8..8'"),
        ("dump --weights nowhere --out d", 2, "nowhere"),
    ];
    for &(line, code, part) in cases {
        let done = secateur(path, &line.split(' ').collect::<Vec<_>>());
        assert_eq!(done.code, Some(code), "{line}: {}", done.stderr);
        assert_eq!(done.stdout, "", "{line}");
        assert_eq!(done.stderr.lines().count(), 1, "{line}: {}", done.stderr);
        assert!(done.stderr.starts_with("error: "), "{line}: {}", done.stderr);
        assert!(done.stderr.contains(part), "{line}: {}", done.stderr);
    }
    let mut left: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["bad.safetensors", "bad.toml", "empty", "full"]);
    assert_eq!(fs::read_dir(path.join("full")).unwrap().count(), 1);
}

#[test]
fn train_then_eval_then_dump() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let done = tiny_run(path, &[]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(lines.len(), 6, "{}", done.stdout);
    assert!(lines[1].starts_with("epoch 1/2: loss ") && lines[2].starts_with("epoch 2/2: loss "));
    assert!(lines[3].starts_with("best (epoch ") && lines[4].starts_with("last (epoch 2): clean "));
    assert!(lines[4].contains("pgd2 ") && lines[5].contains("images/s"), "{}", done.stdout);
    for name in ["recipe.toml", "environment.json", "metrics.jsonl", "result.json", "checkpoints"] {
        assert!(path.join("run").join(name).exists(), "{name}");
    }

    // Once more into the same folder: refused, and nothing changes.
    let before = fs::read(path.join("run/metrics.jsonl")).unwrap();
    let again = tiny_run(path, &[]);
    assert_eq!(again.code, Some(2));
    assert!(again.stderr.contains("run: not empty") && again.stderr.contains("--resume"), "{}", again.stderr);
    assert_eq!(fs::read(path.join("run/metrics.jsonl")).unwrap(), before);
    // Another recipe is not a continuation of this run.
    let other = secateur(path, &["train", "--out", "run", "--resume", "--set", "epochs=9"]);
    assert_eq!(other.code, Some(2));
    assert!(other.stderr.contains("epochs = 9, there epochs = 2"), "{}", other.stderr);
    // A finished run resumes to its end: the same results.
    let result = json(&path.join("run/result.json"));
    let resumed = secateur(path, &["train", "--out", "run", "--resume", "--device", "cpu"]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    assert_eq!(json(&path.join("run/result.json"))["test"][0]["correct"], result["test"][0]["correct"]);
    assert_eq!(json(&path.join("run/environment.json")).as_array().unwrap().len(), 2);

    // What eval finds is what the run said of its best weights.
    let line = "eval --weights run --protocol clean,pgd2,pgd2x2 --device cpu --out result.json --batch 7";
    let done = secateur(path, &line.split(' ').collect::<Vec<_>>());
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let report = json(&path.join("result.json"));
    assert_eq!(report["samples"], 20);
    assert_eq!(report["results"].as_array().unwrap().len(), 3);
    for (row, protocol) in ["clean", "pgd2"].iter().enumerate() {
        let (met, said) = (&report["results"][row], &result["test"][row]);
        assert_eq!(met["protocol"], *protocol);
        assert_eq!(met["correct"], said["correct"], "{protocol}");
    }
    assert_eq!(report["results"][1]["epsilon"], "8/255");
    assert_eq!(report["results"][2]["restarts"], 2);

    // A step dumped, and again from its own adversarial images: the same numbers.
    let dump = |out: &str, more: &[&str]| {
        let args = [
            "dump",
            "--weights",
            "run/last.safetensors",
            "--samples",
            "3..8",
            "--device",
            "cpu",
            "--out",
            out,
        ];
        let done = secateur(path, &[&args[..], more].concat());
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        Weights::read(&path.join(out)).unwrap()
    };
    let (first, second) = (dump("a", &[]), dump("b", &["--x-adv", "a"]));
    assert_eq!(first, second);
    assert_eq!(first.tensors["x_adv"].shape, [5, 3, 32, 32]);
    assert_eq!(first.tensors["grad.conv1.weight"].shape, [16, 3, 3, 3]);
    let count = |prefix: &str| first.tensors.keys().filter(|name| name.starts_with(prefix)).count();
    assert_eq!((count("grad."), count("after.")), (62, 40));
    let moved = first.tensors["x"].values.iter().zip(&first.tensors["x_adv"].values);
    let farthest = moved.map(|(x, x_adv)| (x - x_adv).abs()).fold(0.0, f32::max);
    assert!((0.03..=8.0 / 255.0 + 1e-6).contains(&farthest), "{farthest}");
}

#[test]
#[cfg(unix)]
fn an_interrupt_saves_and_the_run_goes_on_where_it_was() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let args = [&["train", "--out", "run"], &TINY[..], &["--set=epochs=500"]].concat();
    let mut child = Process::new(PROGRAM)
        .current_dir(path)
        .args(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("epoch 1/500")), "the first epoch never ended");
    let killed = Process::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert_eq!(stderr, "error: interrupted; continue with --resume --out run\n");
    let printed = 1 + lines.filter(|line| line.starts_with("epoch ")).count();
    let metrics = fs::read_to_string(path.join("run/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), printed);
}

#[test]
#[cfg(target_os = "linux")]
fn a_reader_that_leaves_is_no_error_and_a_full_disk_is_one() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    // The reading end is closed before the first line.
    let mut child = Process::new(PROGRAM)
        .current_dir(path)
        .args([&["train", "--out", "pipe"], &TINY[..]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert!(path.join("pipe/result.json").exists());

    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Process::new(PROGRAM)
        .current_dir(path)
        .args([&["train", "--out", "full"], &TINY[..]].concat())
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("error: stdout: No space left"), "{stderr}");
    // The work itself is done and on disk.
    assert!(path.join("full/result.json").exists());
}
