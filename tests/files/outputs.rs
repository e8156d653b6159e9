//! Inputs and outputs of real commands: nothing is destroyed, links are not followed under names of ours, one process at a time.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use secateur::files::Place;
use tempfile::TempDir;

use crate::common::program::{Done, command, secateur};

/// A run of seconds: 60 images, two steps an epoch.
const TINY: &str = "--set=data.train_limit=60 --set=data.test_limit=20 --set=data.validation=10 --set=batch=25 \
    --set=epochs=2 --set=attack.steps=1 --set=evaluation.every=1 --set=evaluation.samples=20 \
    --set=evaluation.best_by=pgd1 --set=evaluation.protocols=['clean'] --set=checkpoint.every=1 --device=cpu";

fn run(folder: &Path, line: &str) -> Done {
    secateur(folder, line.split(' '))
}

/// The commands, each refused with one line that holds these words and before it does anything.
fn refused(folder: &Path, line: &str, parts: &[&str]) {
    let done = run(folder, line);
    assert_eq!(done.code, Some(2), "{line}: {}", done.stderr);
    assert_eq!((done.stdout.as_str(), done.stderr.lines().count()), ("", 1), "{line}: {}", done.stderr);
    for part in parts {
        assert!(done.stderr.contains(part), "{line}: {}", done.stderr);
    }
}

fn weights(folder: &Path) {
    let done = run(folder, "weights init --dataset generated --width 16 --out w");
    assert_eq!(done.code, Some(0), "{}", done.stderr);
}

/// Every file below a folder and what it holds.
fn snapshot(folder: &Path) -> Vec<(OsString, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(snapshot(&path)),
            false => files.push((path.clone().into_os_string(), fs::read(path).unwrap())),
        }
    }
    files.sort();
    files
}

#[test]
fn an_output_destroys_no_input_and_no_other_output() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    weights(path);
    fs::write(path.join("recipe.toml"), secateur::recipe::BUILTIN[0].text).unwrap();
    fs::write(path.join("k.json"), r#"{"kernels": [{"name": "k", "seconds": 1}]}"#).unwrap();
    fs::hard_link(path.join("w"), path.join("hard")).unwrap();
    symlink("w", path.join("soft")).unwrap();
    fs::create_dir(path.join("data")).unwrap();
    fs::create_dir(path.join("data/cifar-10-batches-bin")).unwrap();
    fs::write(path.join("data/cifar-10-batches-bin/test_batch.bin"), "x").unwrap();
    fs::create_dir_all(path.join("run/checkpoints")).unwrap();
    fs::write(path.join("run/recipe.toml"), secateur::recipe::BUILTIN[0].text).unwrap();
    fs::write(path.join("run/metrics.jsonl"), "{\"epoch\": 1}\n").unwrap();
    fs::copy(path.join("w"), path.join("run/best.safetensors")).unwrap();
    let before = snapshot(path);
    let cases: &[(&str, &[&str])] = &[
        ("eval --weights w --out w", &["--out w: also the file of --weights"]),
        ("eval --weights w --out hard", &["--out hard: also the file of --weights"]),
        ("eval --weights soft --out ./w", &["--out ./w: also the file of --weights"]),
        ("eval --weights w --protocol aa --dump w", &["--dump w: also the file of --weights"]),
        ("eval --weights w --protocol apgd-ce --out r --state r", &["state r: also the file of --out"]),
        ("eval --weights w --protocol apgd-ce --out r --dump r.state", &["r.state: also the file of --dump"]),
        ("eval --weights w --protocol apgd-ce --out r --dump r.state.images", &["also the file of --dump"]),
        ("eval --weights w --protocol apgd-ce --out r --dump r.state.lock", &["also the file of --dump"]),
        ("eval --weights w --protocol apgd-ce --state w", &["state w: also the file of --weights"]),
        ("eval --weights run --out run/best.safetensors", &["also the file of --weights"]),
        ("eval --weights run --out run/metrics.jsonl", &["one of the files of --weights run"]),
        ("eval --weights run --out run/checkpoints/x", &["one of the files of --weights run"]),
        (
            "eval --weights w --data data --out data/cifar-10-batches-bin/test_batch.bin",
            &["one of the files of --data data"],
        ),
        (
            "select --weights w --method random --fraction 0.5 --out w",
            &["--out w: also the file of --weights"],
        ),
        (
            "select --weights w --method random --fraction 0.5 --out s --factors soft",
            &["--factors soft: also the file of --weights"],
        ),
        (
            "select --weights w --recipe recipe.toml --method random --fraction 0.5 --out recipe.toml",
            &["--out recipe.toml: also the file of --recipe"],
        ),
        ("dump --weights w --out w", &["--out w: also the file of --weights"]),
        ("dump --weights w --x-adv k.json --out k.json", &["--out k.json: also the file of --x-adv"]),
        ("dump --weights w --out missing/d", &["missing: No such file"]),
        ("bench step --device cpu --json x --csv x", &["--csv x: also the file of --json"]),
        ("bench attack --device cpu --recipe recipe.toml --csv recipe.toml", &["also the file of --recipe"]),
        ("bench eval --device cpu --json x --csv ./x", &["--csv ./x: also the file of --json"]),
        ("bench kernels --device emulated --json x --csv x", &["--csv x: also the file of --json"]),
        ("bench select --device cpu --json x --csv x", &["--csv x: also the file of --json"]),
        ("bench model --recipe recipe.toml --json recipe.toml", &["also the file of --recipe"]),
        ("bench versus w --json w -- step", &["--json w: also the file of the executable"]),
        ("bench speedup --recipes quick --dry-run --json x --csv x", &["--csv x: also the file of --json"]),
        ("profile --recipe quick --json x --trace x", &["--trace x: also the file of --json"]),
        ("report run --out run/metrics.jsonl", &["one of the files of the run run"]),
        ("report run --kernels k.json --out k.json", &["--out k.json: also the file of --kernels"]),
        ("weights init --width 16 --out w", &["w: exists already"]),
    ];
    for (line, parts) in cases {
        refused(path, line, parts);
        assert!(snapshot(path) == before, "{line}: files changed");
    }
}

/// A device to write to: for root, who could destroy the system's, one of the test's own.
fn null(folder: &Path) -> PathBuf {
    let own = folder.join("null");
    let (mode, device) = (rustix::fs::Mode::from_raw_mode(0o600), rustix::fs::makedev(1, 3));
    let kind = rustix::fs::FileType::CharacterDevice;
    let made = rustix::fs::mknodat(rustix::fs::CWD, &own, kind, mode, device);
    match made.is_ok() && fs::write(&own, "x").is_ok() {
        true => own,
        false => "/dev/null".into(),
    }
}

#[test]
fn what_is_no_file_is_written_to_and_what_is_one_keeps_its_permissions() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    weights(path);
    let eval = |out: &str| {
        run(path, &format!("eval --weights w --protocol clean --samples 2 --device cpu --out {out}"))
    };
    let is_report =
        |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap()["samples"] == 2;

    // A link is followed, and stays; its target keeps its permissions.
    fs::create_dir(path.join("inside")).unwrap();
    fs::write(path.join("inside/target"), "old").unwrap();
    fs::set_permissions(path.join("inside/target"), Permissions::from_mode(0o600)).unwrap();
    symlink("inside/target", path.join("link")).unwrap();
    assert_eq!(eval("link").code, Some(0));
    assert!(path.join("link").is_symlink() && is_report(&fs::read(path.join("inside/target")).unwrap()));
    assert_eq!(fs::metadata(path.join("inside/target")).unwrap().permissions().mode() & 0o777, 0o600);
    // To a file that is not there yet, too.
    symlink("inside/new", path.join("dangling")).unwrap();
    assert_eq!(eval("dangling").code, Some(0));
    assert!(path.join("dangling").is_symlink() && is_report(&fs::read(path.join("inside/new")).unwrap()));

    // Devices and pipes stay what they are.
    let null = null(path);
    assert_eq!(eval(null.to_str().unwrap()).code, Some(0));
    assert!(fs::metadata(&null).unwrap().file_type().is_char_device());
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let reader = std::thread::spawn({
        let pipe = path.join("pipe");
        move || fs::read(pipe).unwrap()
    });
    assert_eq!(eval("pipe").code, Some(0));
    assert!(is_report(&reader.join().unwrap()));
    assert!(fs::metadata(path.join("pipe")).unwrap().file_type().is_fifo());

    // The standard output, into a pipe and into a file that has lines already: neither is replaced.
    let done = eval("/dev/stdout");
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let lines = done.stdout.split_once('\n').unwrap();
    assert!(lines.0.starts_with("clean: ") && is_report(lines.1.as_bytes()), "{}", done.stdout);
    let log = fs::File::create(path.join("log")).unwrap();
    let line = "eval --weights w --protocol clean --samples 2 --device cpu --out /dev/stdout";
    let status = command(path, line.split(' ')).stdout(log).status().unwrap();
    assert!(status.success());
    let log = fs::read_to_string(path.join("log")).unwrap();
    let lines = log.split_once('\n').unwrap();
    assert!(lines.0.starts_with("clean: ") && is_report(lines.1.as_bytes()), "{log}");
}

#[test]
fn links_under_names_of_ours_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    fs::write(path.join("victim"), "precious").unwrap();
    fs::create_dir(path.join("victims")).unwrap();
    let train = format!("train --out run --resume --set=metrics.tensorboard=true {TINY}");
    let done = run(path, &train);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let is_event = |name: &str| name.starts_with("events.out.tfevents.");
    let names = fs::read_dir(path.join("run")).unwrap().map(|entry| entry.unwrap().file_name());
    let event = names.filter_map(|name| name.into_string().ok()).find(|name| is_event(name)).unwrap();
    for (name, target) in [
        (".lock", "victim"),
        ("metrics.jsonl", "victim"),
        ("environment.json", "victim"),
        ("checkpoints", "victims"),
    ] {
        let place = path.join("run").join(name);
        fs::rename(&place, path.join("aside")).unwrap();
        symlink(path.join(target), &place).unwrap();
        let done = run(path, "train --out run --resume --device cpu");
        assert_eq!(done.code, Some(2), "{name}: {}", done.stderr);
        assert!(done.stderr.contains(name) && done.stderr.contains("symbolic link"), "{}", done.stderr);
        assert_eq!(done.stderr.matches("error: ").count(), 1, "{}", done.stderr);
        fs::remove_file(&place).unwrap();
        fs::rename(path.join("aside"), &place).unwrap();
    }
    // Of TensorBoard's file, and of the weights, the link gives way to a file.
    for name in [event.as_str(), "last.safetensors"] {
        let place = path.join("run").join(name);
        fs::remove_file(&place).unwrap();
        symlink(path.join("victim"), &place).unwrap();
        let done = run(path, "train --out run --resume --device cpu");
        assert_eq!(done.code, Some(0), "{name}: {}", done.stderr);
    }
    assert!(!path.join("run/last.safetensors").is_symlink());
    assert_eq!(fs::read_to_string(path.join("victim")).unwrap(), "precious");
    assert_eq!(fs::read_dir(path.join("victims")).unwrap().count(), 0);
}

#[test]
fn an_evaluation_locks_its_state() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    weights(path);
    let line = "eval --weights w --protocol apgd-ce --samples 2 --device cpu --out r.json --dump d";
    let lock = Place::from(&path.join("r.json.state")).lock().unwrap();
    let holder = format!("another evaluation works with it: process {}", std::process::id());
    refused(path, line, &["r.json.state: ", &holder]);
    refused(path, &format!("{line} --resume"), &["r.json.state: ", &holder]);
    drop(lock);
    assert_eq!(run(path, line).code, Some(0));
    let mut left: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["d", "r.json", "w"]);
}

fn interrupted(mut child: Child) {
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut rest = String::new();
    child.stderr.take().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
}

#[test]
fn a_run_that_is_moved_goes_on_where_it_now_is() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let line = format!("train --out run {TINY} --set=epochs=500 --set=metrics.tensorboard=true");
    let mut child =
        command(path, line.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut epoch = |number: usize| {
        let start = format!("epoch {number}/500");
        assert!(lines.any(|line| line.starts_with(&start)), "epoch {number} never ended");
    };
    epoch(1);
    fs::rename(path.join("run"), path.join("moved")).unwrap();
    fs::create_dir_all(path.join("run/checkpoints")).unwrap();
    fs::write(path.join("run/metrics.jsonl"), "of another run").unwrap();
    let other = snapshot(&path.join("run"));
    epoch(4);
    interrupted(child);
    drop(lines);
    assert!(snapshot(&path.join("run")) == other, "the other run was touched");
    let metrics = fs::read_to_string(path.join("moved/metrics.jsonl")).unwrap();
    assert!(metrics.lines().count() >= 4, "{metrics}");
    assert!(!path.join("moved/.writing").exists());
    let newest =
        fs::read_dir(path.join("moved/checkpoints")).unwrap().map(|entry| entry.unwrap().file_name()).max();
    assert!(newest.unwrap().to_str().unwrap() >= "epoch-0004", "no checkpoint since");
    // It can be resumed there.
    let line = "eval --weights moved --samples 2 --protocol clean --device cpu";
    assert_eq!(run(path, line).code, Some(0));
}

#[test]
fn paths_need_not_be_text() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let q = OsStr::from_bytes(b"q\xff");
    let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
    let with = |line: &str, more: &[&OsStr]| {
        let words = words(line).into_iter().chain(more.iter().map(OsString::from));
        let done = secateur(path, words);
        assert_eq!(done.code, Some(0), "{line}: {}", done.stderr);
        done
    };
    let inside = |name: &str| Path::new(q).join(name).into_os_string();
    with(&format!("train {TINY} --out"), &[q]);
    let environment = fs::read(path.join(q).join("environment.json")).unwrap();
    assert!(String::from_utf8(environment).unwrap().contains("q\u{fffd}"));
    with("train --device cpu --resume --out", &[q]);
    with("eval --protocol clean --device cpu --weights", &[q, OsStr::new("--out"), &inside("e.json")]);
    with("report --device cpu --images 1 --out page.html", &[q]);
    let (recipe, weights) = (inside("recipe.toml"), inside("last.safetensors"));
    let out = OsStr::new("--out");
    let given = [recipe.as_os_str(), OsStr::new("--weights"), &weights, out, &inside("out")];
    with("select --device cpu --method random --fraction 0.5 --recipe", &given);
    with("dump --device cpu --samples 0..2 --recipe", &given);
    with("recipes", &[recipe.as_os_str()]);
    let done = with("profile --print-command ncu --recipe", &[recipe.as_os_str()]);
    assert!(done.stdout.contains(r"$'q\xff/recipe.toml'"), "{}", done.stdout);
    // What is no path must be text.
    for option in ["--device", "--set", "--protocol"] {
        let done = secateur(path, ["eval".as_ref(), "--weights".as_ref(), q, OsStr::new(option), q]);
        assert_eq!(done.code, Some(2), "{option}: {}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{option}: {}", done.stderr);
    }
}
