//! `secateur bench versus`: the interval by enumeration, results under injected drifts, and the command with stand-ins for builds.

use std::path::Path;

use secateur::measure::compare::{Change, compare};
use secateur::measure::document::Document;
use secateur::measure::statistics::middle;
use secateur::measure::versus::{Rounds, RowResult, notes, second_leads};
use secateur::philox::{Key, Purpose, unit};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::program::{self, Done};

const SEED: u64 = 20_261_127;
const TOLERANCE: f64 = 0.03;

/// Two uniform numbers.
fn uniforms(stream: u32, n: u32) -> [f64; 2] {
    let key = Key { seed: SEED, purpose: Purpose::Generation, epoch: 8, step: 0 };
    let [a, b, ..] = key.block(stream, n).map(|word| f64::from(unit(word)));
    [a, b]
}

fn normal(stream: u32, n: u32) -> f64 {
    let [a, b] = uniforms(stream, n);
    (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}

#[test]
fn the_interval_of_the_middle_is_exact() {
    // Under every choice of signs, equally likely where the centre is 0. Sums of distinct ranks up to 0, 3 and 7 are 1, 5 and 19.
    for (n, excluded) in [(8, 2), (10, 10), (12, 38)] {
        let sizes: Vec<f64> = (0..n).map(|i| 0.1 + uniforms(1, i)[0]).collect();
        let without = (0..1u32 << n).filter(|signs| {
            let sign = |i: usize| if signs >> i & 1 == 1 { 1.0 } else { -1.0 };
            let values: Vec<f64> = sizes.iter().enumerate().map(|(i, size)| sign(i) * size).collect();
            let of = middle(&values).unwrap();
            let [low, high] = of.interval.unwrap();
            assert!(low <= of.estimate && of.estimate <= high);
            low > 0.0 || high < 0.0
        });
        assert_eq!(without.count(), excluded, "seed {SEED}: of 2^{n}");
        assert!(f64::from(excluded as u32) / f64::from(1u32 << n) <= 0.01);
    }
    assert_eq!(middle(&[3.0; 7]).unwrap().interval, None);
    assert_eq!(middle(&[3.0; 8]).unwrap().interval, Some([3.0, 3.0]));
    // Means 1, 1.5, 2, 5, 5.5, 9: an outlier moves the estimate to half way between 2 and 5, not to the mean of 4.
    assert_eq!(middle(&[1.0, 2.0, 9.0]).unwrap().estimate, 3.5);
    assert_eq!(middle(&[]), None);
}

#[test]
fn turns_cancel_drifts() {
    let order: String = (0..8).map(|round| if second_leads(round) { "BA" } else { "AB" }).collect();
    assert_eq!(order, "ABBABAABBAABABBA");
    // Sums over the runs of the second less those of the first, of powers of the time.
    let sum = |rounds: usize, power: i32| -> i64 {
        let turns = order.bytes().take(2 * rounds).enumerate();
        turns.map(|(time, who)| (time as i64).pow(power as u32) * if who == b'B' { 1 } else { -1 }).sum()
    };
    assert_eq!((sum(2, 1), sum(4, 1), sum(4, 2), sum(8, 3)), (0, 0, 0, 0));
}

fn document(samples: &[f64]) -> Value {
    json!({
        "secateur_measure": 1, "kind": "bench step", "command": [], "build": "secateur 0.0.1 (release)",
        "started_unix_seconds": 0, "device": {"kind": "cpu", "name": "2 CPU threads", "code": "avx2"}, "threads": 2,
        "recipes": ["cifar10-pgd-at"], "images": "generated", "width": 16, "batch": 32,
        "ceiling_flops": null, "ceiling_bytes": null, "ceilings": [],
        "rows": [{
            "name": "step cifar10-pgd-at", "samples": samples, "median": 1.0, "quartiles": [1.0, 1.0], "noise": 0.0,
            "images": 32, "flops": 5e9, "bytes": 0.0, "ceiling_share": null, "bound": null, "unmet": null
        }]
    })
}

fn parsed(document: &Value) -> Document {
    Document::parse(document.to_string().as_bytes()).unwrap()
}

/// How many times longer all work takes at a time, in seconds.
type Machine<'a> = &'a dyn Fn(f64) -> f64;

/// A session on a machine: `turns` says whose run is next, of eight samples with 2 % of noise after a second of preparation. A
/// sample takes 0.7 s, by the second `ratio` times as long.
fn session(stream: u32, ratio: f64, machine: Machine, turns: &[bool]) -> Vec<Vec<f64>> {
    let (mut time, mut draw) = (0.0, 0);
    let mut run = |second: &bool| {
        time += 1.0;
        let mut sample = || {
            draw += 1;
            let noise = 1.0 + 0.02 * normal(stream, draw);
            let seconds = 0.7 * machine(time) * noise * if *second { ratio } else { 1.0 };
            time += seconds;
            seconds
        };
        (0..8).map(|_| sample()).collect()
    };
    turns.iter().map(&mut run).collect()
}

/// The result of the row of a session, by the rule that ends the command after `most` rounds.
fn versus(stream: u32, ratio: f64, machine: Machine, most: usize, tolerance: f64) -> RowResult {
    let turns: Vec<bool> = (0..most).flat_map(|round| [second_leads(round), !second_leads(round)]).collect();
    let runs = session(stream, ratio, machine, &turns);
    let mut rounds = Rounds::default();
    let mut result = None;
    for (runs, turns) in runs.chunks(2).zip(turns.chunks(2)) {
        let at = |side: bool| parsed(&document(&runs[usize::from(turns[0] != side)]));
        rounds.add(&at(false), &at(true)).unwrap();
        result = rounds.results(tolerance).pop();
        if result.as_ref().is_some_and(|row| row.unmet.is_none()) {
            break;
        }
    }
    result.unwrap()
}

/// A neighbour that comes and goes, for 40 s on average, and takes 40 % of the machine.
fn neighbour(stream: u32) -> impl Fn(f64) -> f64 {
    let mut changes = vec![0.0];
    for n in 0..200 {
        changes.push(changes[n] - 40.0 * (1.0 - uniforms(stream, 1_000_000 + n as u32)[0]).ln());
    }
    move |time| if changes.partition_point(|&change| change < time) % 2 == 0 { 1.0 } else { 1.0 / 0.6 }
}

#[test]
fn a_drift_that_both_share_cancels() {
    let steady = |_: f64| 1.0;
    // A tenth more every minute; a fifth up and down in 97 s; a sudden fall to half the speed.
    let slowing = |time: f64| 1.0 + time / 600.0;
    let waves = |time: f64| 1.0 + 0.1 * (time * std::f64::consts::TAU / 97.0).sin();
    let fall = |time: f64| if time < 61.0 { 1.0 } else { 2.0 };
    let machines: [(&str, Machine); 4] =
        [("steady", &steady), ("slowing", &slowing), ("waves", &waves), ("fall", &fall)];
    for (name, machine) in machines {
        for stream in 100..105 {
            let change = |ratio| versus(stream, ratio, machine, 40, TOLERANCE).compared.change;
            let found = [1.0, 1.05, 1.0 / 1.05].map(change);
            assert_eq!(
                found,
                [Change::Same, Change::Slower, Change::Faster],
                "seed {SEED}, {stream}, {name}"
            );
        }
    }
    // The same samples one side after the other mislead.
    let turns: Vec<bool> = (0..32).map(|run| run >= 16).collect();
    let runs = session(100, 1.0, &slowing, &turns);
    let [first, second] = [&runs[..16], &runs[16..]].map(|runs| runs.concat());
    assert_eq!(compare("row", &first, &second, TOLERANCE).unwrap().change, Change::Slower);
}

#[test]
fn false_alarms_are_as_rare_as_promised() {
    // A tolerance far below the noise, so that the interval alone keeps the result from being wrong.
    let (trials, mut wrong, mut missed) = (200, 0, 0);
    for trial in 0..trials {
        let machine = neighbour(1_000 + trial);
        let same = versus(2_000 + trial, 1.0, &machine, 20, 0.001).compared;
        wrong += u32::from(matches!(same.change, Change::Slower | Change::Faster));
        let [low, high] = versus(2_000 + trial, 1.05, &machine, 20, 0.001).compared.interval.unwrap();
        missed += u32::from(!(low <= 1.05 && 1.05 <= high));
    }
    // 1 % is promised: more than 6 of 200 would happen once in 250.
    assert!(wrong <= 6 && missed <= 6, "seed {SEED}: {wrong} and {missed} of {trials}");
}

#[test]
fn rounds_hold_what_both_measured() {
    let mut rounds = Rounds::default();
    let (first, second) = (document(&[1.0, 2.0, 3.0]), document(&[3.0]));
    for round in 1..=8 {
        rounds.add(&parsed(&first), &parsed(&second)).unwrap();
        let row = rounds.results(TOLERANCE).pop().unwrap();
        assert_eq!((row.rounds.len(), row.rounds[0]), (round, [2.0, 3.0]));
        assert_eq!(row.compared.medians, [2.0, 3.0]);
        assert!((row.compared.ratio - 1.5).abs() < 1e-12);
        let change = if round < 8 { Change::Ambiguous } else { Change::Slower };
        assert_eq!((row.compared.change, row.unmet.is_none()), (change, round == 8), "{round} rounds");
    }
    // One more round, of another ratio: the interval is wider than the tolerance.
    rounds.add(&parsed(&first), &parsed(&document(&[2.0]))).unwrap();
    let unmet = rounds.results(TOLERANCE).pop().unwrap().unmet.unwrap();
    assert!(unmet.contains("% wide, expected 3.0 %"), "{unmet}");

    let changed = |pointer: &str, value: Value| {
        let mut document = document(&[1.0]);
        *document.pointer_mut(pointer).unwrap() = value;
        document
    };
    for (pointer, value, part) in [
        ("/kind", json!("bench eval"), "kind: bench step in the first, bench eval in the second"),
        ("/width", json!(64), "width: 16 in the first, 64 in the second"),
        ("/device/name", json!("H200"), "device name: 2 CPU threads in the first, H200 in the second"),
        ("/rows/0/name", json!("step other"), "no row in common"),
        ("/rows/0/samples", json!([]), "NaN s in the second"),
    ] {
        let error = rounds.add(&parsed(&first), &parsed(&changed(pointer, value))).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let error =
        Document::parse(&serde_json::to_vec(&changed("/rows/0/samples", json!([0.0]))).unwrap()).unwrap_err();
    assert!(error.to_string().contains("sample 0 is 0 s, expected a time above 0"), "{error}");
    // Other code for the same device is what may be compared, and other work is worth a note.
    let mut other = changed("/device/code", json!("avx512"));
    other["rows"][0]["flops"] = json!(4e9);
    other["rows"].as_array_mut().unwrap().push(changed("/rows/0/name", json!("new"))["rows"][0].clone());
    rounds.add(&parsed(&first), &parsed(&other)).unwrap();
    let notes = notes(&parsed(&first), &parsed(&other));
    let expected =
        ["new: in the second only", "step cifar10-pgd-at: 5.00 GFLOP in the first, 4.00 in the second"];
    assert_eq!(notes, expected);
}

/// Exit code, stdout, stderr of `secateur bench versus`.
fn secateur(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    // Where temporary folders go.
    std::fs::create_dir_all(folder.join("temporary")).unwrap();
    let mut command = program::command(folder, ["bench", "versus"]);
    let output = command.args(args).env("TMPDIR", folder.join("temporary")).output().unwrap();
    assert_eq!(std::fs::read_dir(folder.join("temporary")).unwrap().count(), 0, "temporary files are left");
    Done::from(output).parts()
}

/// A stand-in for a build: a shell script, its name in a comment so that no two are the same.
#[cfg(unix)]
fn stand_in(folder: &Path, name: &str, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n# {name}\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// One that writes its document, and its name and arguments into the file `runs`.
#[cfg(unix)]
fn write_document(folder: &Path, name: &str, document: &Value) {
    std::fs::write(folder.join(format!("{name}.json")), document.to_string()).unwrap();
    let script =
        "echo \"${0##*/} $*\" >> runs\nwhile [ \"$1\" != --json ]; do shift; done\ncp \"$0.json\" \"$2\"";
    stand_in(folder, name, script);
}

#[test]
#[cfg(unix)]
fn builds_are_run_in_turns_and_compared() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    write_document(path, "old", &document(&[1.0, 1.01]));
    write_document(path, "new", &document(&[1.06, 1.07]));
    write_document(path, "like-old", &document(&[1.01, 1.0]));

    let (code, stdout, stderr) = secateur(path, &["old", "new", "--json=v.json", "--", "step", "--width=16"]);
    assert_eq!((code, stderr.as_str()), (Some(1), "error: 1 of 1 rows SLOWER\n"), "{stdout}");
    for part in
        ["first    old: secateur 0.0.1 (release), SHA-256 ", "second   new: ", "2 CPU threads", "8 rounds"]
    {
        assert!(stdout.contains(part), "no {part} in:\n{stdout}");
    }
    let runs = std::fs::read_to_string(path.join("runs")).unwrap();
    let who: Vec<&str> = runs.lines().map(|line| line.split(' ').next().unwrap()).collect();
    let order: Vec<&str> =
        (0..8).flat_map(|round| if second_leads(round) { ["new", "old"] } else { ["old", "new"] }).collect();
    assert_eq!(who, order);
    assert!(runs.lines().all(|line| line.contains(" bench step --width=16 --timeout 5 --json ")), "{runs}");
    let record: Value = serde_json::from_slice(&std::fs::read(path.join("v.json")).unwrap()).unwrap();
    assert_eq!((&record["secateur_versus"], &record["rounds"]), (&json!(1), &json!(8)));
    assert_eq!((&record["first"]["executable"], &record["width"]), (&json!("old"), &json!(16)));
    let row = &record["rows"][0];
    assert_eq!((&row["name"], &row["change"]), (&json!("step cifar10-pgd-at"), &json!("SLOWER")));
    assert_eq!((row["rounds"].as_array().unwrap().len(), &row["unmet"]), (8, &Value::Null));
    assert_eq!(row["rounds"][0], json!([1.005, 1.065]));

    let (code, stdout, _) = secateur(path, &["new", "old", "--", "step", "--timeout=1"]);
    assert!(code == Some(0) && stdout.contains("FASTER"), "{stdout}");
    let runs = std::fs::read_to_string(path.join("runs")).unwrap();
    assert!(runs.lines().last().unwrap().contains(" bench step --timeout=1 --json "), "{runs}");
    let (code, stdout, stderr) = secateur(path, &["old", "like-old", "--", "step"]);
    assert!(code == Some(0) && stdout.contains("SAME") && stderr.is_empty(), "{stdout}{stderr}");
    // Six percent are the same to who says so; no time is left for a second round.
    let (code, stdout, _) = secateur(path, &["old", "new", "--tolerance=0.1", "--", "step"]);
    assert!(code == Some(0) && stdout.contains("SAME"), "{stdout}");
    let (code, stdout, _) = secateur(path, &["old", "new", "--timeout=0", "--", "step"]);
    assert!(code == Some(0) && stdout.contains("AMBIGUOUS"), "{stdout}");
    assert!(stdout.contains("time is up after 0 s: fewer than 8 rounds"), "{stdout}");
}

#[test]
#[cfg(unix)]
fn what_cannot_be_compared_is_one_clear_error() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let good = document(&[1.0]);
    let changed = |key: &str, value: Value| {
        let mut document = good.clone();
        document[key] = value;
        document
    };
    write_document(path, "good", &good);
    write_document(path, "wide", &changed("width", json!(64)));
    write_document(path, "later", &changed("secateur_measure", json!(2)));
    write_document(path, "other", &json!({}));
    std::fs::write(path.join("plain"), "text").unwrap();
    stand_in(path, "silent", "exit 0");
    stand_in(path, "broken", "echo 'error: --width 3: no such width' >&2; exit 2");
    stand_in(path, "checked", "exit 1");
    stand_in(path, "no-device", "echo 'error: no NVIDIA driver' >&2; exit 3");
    stand_in(path, "killed", "kill -9 $$");
    stand_in(
        path,
        "rebuilt",
        &format!(
            "{}\necho '# new' >> \"$0\"",
            "while [ \"$1\" != --json ]; do shift; done; cp good.json \"$2\""
        ),
    );
    let step: &[&str] = &["--", "step"];
    for (before, after, code, part) in [
        (&["missing"][..], step, 2, "missing: No such file"),
        (&["."], step, 2, "expected an executable file"),
        (&["plain", "good"], step, 2, "plain bench step: cannot be run: Permission denied"),
        (&["good", "silent"], step, 2, "silent bench step: it wrote no measurement"),
        (&["good", "other"], step, 2, "other bench step: not a file of secateur bench"),
        (&["good", "later"], step, 2, "later bench step: layout 2, this build reads 1"),
        (&["good", "wide"], step, 2, "did not measure the same: width: 16 in the first, 64 in the second"),
        (&["good", "broken"], step, 2, "broken bench step: exit status: 2: --width 3: no such width"),
        (&["good", "checked"], step, 2, "checked bench step: exit status: 1: no message"),
        (&["good", "no-device"], step, 3, "no-device bench step: exit status: 3: no NVIDIA driver"),
        (&["good", "killed"], step, 2, "killed bench step: signal: 9"),
        (&["good", "rebuilt"], step, 2, "rebuilt: the file changed while it was measured"),
        (&["good"], &["--", "model"], 2, "model: expected one of step, attack"),
        (&["good"], &["--", "step", "--json=x"], 2, "--json after --"),
        (&["good"], &["--", "step", "--csv", "x"], 2, "--csv after --"),
        (&["good"], &[], 2, "required arguments"),
        (&["good", "--rounds=7"], step, 2, "7 is not in 8..=200"),
        (&["good", "--tolerance=0"], step, 2, "--tolerance 0: expected a number above 0"),
        (&["good", "--timeout=NaN"], step, 2, "--timeout NaN: expected a number of seconds"),
        (&["good", "--json=no/folder/v.json"], step, 2, "no/folder"),
    ] {
        let (actual, stdout, stderr) = secateur(path, &[before, after].concat());
        assert_eq!((actual, stderr.lines().count()), (Some(code), 1), "{before:?}: {stdout}{stderr}");
        assert!(stderr.contains(part), "no {part} in: {stderr}");
    }
}

#[test]
fn a_build_is_measured_against_itself() {
    let folder = TempDir::new().unwrap();
    let own = program::PROGRAM.as_str();
    let step = [
        "step",
        "--device=cpu",
        "--recipe=cifar10-pgd-at",
        "--width=16",
        "--batch=2",
        "--set=attack.steps=1",
        "--samples=1",
        "--timeout=0",
    ];
    let args = [&[own, "--timeout=0", "--json=v.json", "--"][..], &step].concat();
    let (code, stdout, stderr) = secateur(folder.path(), &args);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("the same, byte for byte"), "{stderr}");
    assert!(stdout.contains("second   this executable: ") && stdout.contains("AMBIGUOUS"), "{stdout}");
    let record: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("v.json")).unwrap()).unwrap();
    assert_eq!((&record["rows"][0]["interval"], &record["rounds"]), (&Value::Null, &json!(1)));
    assert!(record["rows"][0]["ratio"].as_f64().unwrap() > 0.0);
    let arguments: Vec<&str> =
        record["arguments"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    assert_eq!(arguments, step);
    // What the build itself refuses is told in its words.
    let (code, _, stderr) = secateur(folder.path(), &[own, "--", "step", "--recipe=no-such-recipe"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("bench step: exit status: 2: ") && stderr.contains("no-such-recipe"), "{stderr}");
}

#[test]
#[cfg(target_os = "linux")]
fn an_interrupt_ends_the_run_and_leaves_nothing() {
    use std::process::{Command, Stdio};
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    std::fs::create_dir(path.join("temporary")).unwrap();
    write_document(path, "quick", &document(&[1.0]));
    // Answers twice; its third run never ends.
    let script = "echo run >> slow-runs; while [ \"$1\" != --json ]; do shift; done; cp quick.json \"$2\"\n\
                  [ $(wc -l < slow-runs) -lt 3 ] && exit 0\necho $$ > pid.new && mv pid.new pid && exec sleep 100000";
    stand_in(path, "slow", script);
    let mut command = program::command(path, "bench versus quick slow --json=v.json -- step".split(' '));
    command.env("TMPDIR", path.join("temporary")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let pid = loop {
        std::thread::sleep(std::time::Duration::from_millis(10));
        match std::fs::read_to_string(path.join("pid")) {
            Ok(pid) => break pid,
            Err(_) => assert_eq!(child.try_wait().unwrap(), None, "ended before the third round"),
        }
    };
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert_eq!((output.status.code(), stderr.as_str()), (Some(130), "error: interrupted\n"));
    assert!(stdout.contains("interrupted: fewer than 8 rounds") && stdout.contains("2 rounds"), "{stdout}");
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "the run goes on");
    assert_eq!(std::fs::read_dir(path.join("temporary")).unwrap().count(), 0);
    let record: Value = serde_json::from_slice(&std::fs::read(path.join("v.json")).unwrap()).unwrap();
    assert_eq!((&record["rounds"], &record["ended"]), (&json!(2), &json!("interrupted")));
}
