//! `train --devices` as a user meets it: engines of one process and processes of one run make the same weights, a process that dies
//! is named, and one that is interrupted stops all.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};

use tempfile::TempDir;

use crate::common::program::{Done, command, secateur};

/// 50 images in batches of 24: shares of 12, then of 1.
const TINY: [&str; 10] = [
    "--set=data.train_limit=60",
    "--set=data.test_limit=20",
    "--set=data.validation=10",
    "--set=batch=24",
    "--set=epochs=2",
    "--set=attack.steps=1",
    "--set=evaluation.best_by=pgd1",
    "--set=evaluation.protocols=['clean']",
    "--set=checkpoint.every=1",
    "--device=cpu",
];

fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["train"], &TINY[..], more].concat()
}

/// One process a rank, in a group of `ranks`, at a port that was free a moment ago.
fn start(folder: &Path, ranks: usize, more: &[&str]) -> Vec<Child> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let process = |rank: usize| {
        let [rank, ranks] = [rank, ranks].map(|number| number.to_string());
        command(folder, train(&[&["--devices=env", "--out=processes"], more].concat()))
            .envs([("RANK", &rank), ("LOCAL_RANK", &rank), ("WORLD_SIZE", &ranks), ("MASTER_PORT", &port)])
            .env("MASTER_ADDR", "127.0.0.1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    (0..ranks).map(process).collect()
}

fn done(processes: Vec<Child>) -> Vec<Done> {
    processes.into_iter().map(|process| process.wait_with_output().unwrap().into()).collect()
}

#[test]
fn processes_train_as_engines_of_one_process() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let threads = secateur(path, train(&["--devices=2", "--out=threads"]));
    assert_eq!(threads.code, Some(0), "{}", threads.stderr);
    assert!(threads.stdout.contains(" on 2 engines, each "), "{}", threads.stdout);
    let [first, second] = &done(start(path, 2, &[]))[..] else { panic!("two processes") };
    assert_eq!((first.code, second.code), (Some(0), Some(0)), "{}{}", first.stderr, second.stderr);
    assert_eq!((second.stdout.as_str(), second.stderr.as_str()), ("", ""), "rank 0 alone reports");
    let last = |run: &str| fs::read(path.join(run).join("last.safetensors")).unwrap();
    assert!(last("processes") == last("threads"), "other weights");
    // And not those of one engine: its batch statistics are of the whole batch.
    let alone = secateur(path, train(&["--out=alone"]));
    assert_eq!(alone.code, Some(0), "{}", alone.stderr);
    assert!(last("alone") != last("threads"));
    for (run, ranks) in [("processes", 2), ("alone", 1)] {
        let text = fs::read(path.join(run).join("environment.json")).unwrap();
        let sessions: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(sessions[0]["ranks"], ranks, "{run}");
    }
}

/// Waits for the line of an epoch.
#[cfg(unix)]
fn begun(process: &mut Child) {
    let mut lines = BufReader::new(process.stdout.as_mut().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("epoch ")), "no epoch ended");
}

#[test]
#[cfg(unix)]
fn a_process_that_dies_is_named_and_one_that_is_interrupted_stops_all() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let long = ["--set=epochs=5000", "--resume"];
    let mut processes = start(path, 3, &long);
    begun(&mut processes[0]);
    processes[2].kill().unwrap();
    let ended = done(processes);
    for done in &ended[..2] {
        assert_eq!(done.code, Some(3), "{}", done.stderr);
        assert!(done.stderr.starts_with("error: rank 2 of 3 has ended: "), "{}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    }
    // Two go on from the last checkpoint of three.
    let mut processes = start(path, 2, &long);
    begun(&mut processes[0]);
    let interrupted = Process::new("kill").args(["-INT", &processes[1].id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let ended = done(processes);
    for (rank, done) in ended.iter().enumerate() {
        assert_eq!(done.code, Some(130), "rank {rank}: {}", done.stderr);
        assert!(done.stderr.contains("error: interrupted; continue with --resume"), "{}", done.stderr);
    }
    assert!(ended[0].stderr.contains("the checkpoint is of 3 ranks, this run of 2"), "{}", ended[0].stderr);
}

#[test]
fn mistakes_are_one_line_and_leave_no_folder() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    for (more, code, part) in [
        (&["--devices=0"][..], 2, "0 devices, expected 1 at least"),
        (&["--devices=0,1,0"], 2, "GPU 0 twice, expected each once"),
        (&["--devices=all"], 2, "expected a number of devices"),
        (&["--devices=0-1"], 2, "the CPU and the emulator take a number of engines"),
        (&["--devices=25"], 2, "batch = 24: fewer images than 25 ranks"),
        (&["--devices=env"], 2, "RANK is not set"),
    ] {
        let done = secateur(path, train(&[&["--out=run"], more].concat()));
        assert_eq!(done.code, Some(code), "{more:?}: {}", done.stderr);
        assert!(done.stderr.contains(part), "{more:?}: {}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{more:?}: {}", done.stderr);
    }
    let none = secateur(path, ["train", "--device=cuda", "--devices=0,4095", "--out=run"]);
    assert_eq!((none.code, none.stderr.lines().count()), (Some(3), 1), "{}", none.stderr);
    assert!(!path.join("run").exists());
}
