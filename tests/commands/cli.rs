//! The command line as a user meets it: a real process, its exit codes, its one-line errors, its files.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command as Process, Stdio};

use safetensors::SafeTensors;
use secateur::model::{ResNet, Weights, initialise};
use secateur::names::Named;
use secateur::prune::SelectionMethod;
use secateur::train::run_folder::RunFolder;
use tempfile::TempDir;

use crate::common::program::{Done, PROGRAM, secateur};

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

fn tiny_run(folder: &Path, more: &[&str]) -> Done {
    secateur(folder, [&["train", "--out", "run"], &TINY[..], more].concat())
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
        ("train --device gpu", 2, "device 'gpu': expected auto, cpu, cpu:bf16, cuda, cuda:N, emulated"),
        ("train --device cuda:99", 3, "error: "),
        ("train --recipe nope", 2, "no recipe 'nope'"),
        ("train --recipe bad.toml", 2, "bad"),
        ("train --set attack.stepz=3", 2, "attack.stepz"),
        ("train --set epochs=0", 2, "epochs"),
        ("train --set name=../x", 2, "name = \"../x\", expected the name of a folder"),
        ("train --set name=/tmp/x", 2, "name = \"/tmp/x\", expected the name of a folder"),
        ("train --set name=a/b", 2, "name = \"a/b\", expected the name of a folder"),
        ("eval --weights bad.safetensors --eps 1e-60", 2, "'1e-60'"),
        ("data info generated --data empty", 2, "the generated ones, which are in no files\n"),
        ("train --set attack.precision=e4m3", 2, "attack.precision = \"e4m3\", expected \"device\""),
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
        ("select --weights nowhere --method random --fraction 0.5 --out s", 2, "nowhere"),
        ("select --weights nowhere --method random --out s", 2, "selection.fraction is missing"),
        ("select --weights nowhere --method best --fraction 0.5 --out s", 2, "expected full, random, "),
        ("select --weights nowhere --method short --fraction 0.5 --out s", 2, "expected full, random, "),
        (
            "select --weights nowhere --method el2n --fraction 0 --out s",
            2,
            "selection.fraction = 0.0, expected a number",
        ),
        (
            "select --weights nowhere --method el2n --fraction 1.5 --out s",
            2,
            "selection.fraction = 1.5, expected a number",
        ),
        (
            "select --weights nowhere --method full --fraction 0.5 --out s",
            2,
            "selection.fraction = 0.5, expected 1",
        ),
        (
            "select --weights nowhere --method info-batch --set attack.batch_norm=train --out s",
            2,
            "attack.batch_norm = \"train\", expected \"eval\"",
        ),
    ];
    for &(line, code, part) in cases {
        let done = secateur(path, line.split(' ').collect::<Vec<_>>());
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
    let other = secateur(path, ["train", "--out", "run", "--resume", "--set", "epochs=9"]);
    assert_eq!(other.code, Some(2));
    assert!(other.stderr.contains("epochs = 9, there epochs = 2"), "{}", other.stderr);
    // Nor is a second process let in while one trains there.
    let claim = RunFolder::open(&path.join("run")).claim().unwrap();
    let second = secateur(path, ["train", "--out", "run", "--resume", "--device", "cpu"]);
    assert_eq!(second.code, Some(2));
    assert!(second.stderr.contains("run: another process is training into it"), "{}", second.stderr);
    assert_eq!(json(&path.join("run/environment.json")).as_array().unwrap().len(), 1);
    drop(claim);
    // A finished run resumes to its end: the same results. So does one of before `attack.precision` was retired.
    let recipe = fs::read_to_string(path.join("run/recipe.toml")).unwrap();
    let older = recipe.replace("[attack]\n", "[attack]\nprecision = \"device\"\n");
    assert_ne!(older, recipe);
    fs::write(path.join("run/recipe.toml"), older).unwrap();
    let result = json(&path.join("run/result.json"));
    let resumed = secateur(path, ["train", "--out", "run", "--resume", "--device", "cpu"]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    assert_eq!(json(&path.join("run/result.json"))["test"][0]["correct"], result["test"][0]["correct"]);
    assert_eq!(json(&path.join("run/environment.json")).as_array().unwrap().len(), 2);

    // What eval finds is what the run said of its best weights.
    let line = "eval --weights run --protocol clean,pgd2,pgd2x2 --device cpu --out result.json --batch 7";
    let done = secateur(path, line.split(' ').collect::<Vec<_>>());
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let report = json(&path.join("result.json"));
    assert_eq!(report["samples"], 20);
    assert_eq!(report["results"].as_array().unwrap().len(), 3);
    for (row, protocol) in ["clean", "pgd2"].iter().enumerate() {
        let (actual, said) = (&report["results"][row], &result["test"][row]);
        assert_eq!(actual["protocol"], *protocol);
        assert_eq!(actual["correct"], said["correct"], "{protocol}");
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
        let done = secateur(path, [&args[..], more].concat());
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
    let mut child = Process::new(&*PROGRAM)
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

/// `nohup` ignores a hang-up, a shell without job control Ctrl-C in the background.
#[test]
#[cfg(unix)]
fn a_signal_that_was_ignored_stays_ignored() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let args = [&["train", "--out", "run"], &TINY[..], &["--set=epochs=5000"]].concat();
    let mut child = Process::new("sh")
        .current_dir(path)
        .args(["-c", "trap '' HUP INT; exec \"$0\" \"$@\"", &PROGRAM])
        .args(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let signal = |name: &str| {
        assert!(Process::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
    };
    assert!(lines.any(|line| line.starts_with("epoch 1/5000")), "the first epoch never ended");
    for ignored in ["-HUP", "-INT", "-INT"] {
        signal(ignored);
        // One epoch may be after the signal already in the pipe, and a stop would end the next.
        assert_eq!(lines.by_ref().take(4).filter(|line| line.starts_with("epoch ")).count(), 4, "{ignored}");
    }
    signal("-TERM");
    lines.for_each(drop);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(130), 1), "{stderr}");
}

/// A file beyond `ulimit -f` is an error of the write, not the end of the process; what was on disk stays.
#[test]
#[cfg(target_os = "linux")]
fn a_limit_on_file_sizes_is_an_error_and_nothing_is_lost() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let limited = |blocks: u32, args: &[&str]| {
        let mut command = Process::new("sh");
        command.args(["-c", &format!("ulimit -f {blocks}; exec \"$0\" \"$@\""), &PROGRAM]).args(args);
        Done::from(command.current_dir(path).output().unwrap())
    };
    let done = limited(64, &[&["train", "--out", "run"], &TINY[..]].concat());
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(
        done.stderr.starts_with("error: run/checkpoints/") && done.stderr.contains("File too large"),
        "{}",
        done.stderr
    );
    assert_eq!(
        (done.stderr.lines().count(), fs::read_dir(path.join("run/checkpoints")).unwrap().count()),
        (1, 0)
    );
    let resume = ["train", "--out", "run", "--resume", "--device=cpu"];
    let done = secateur(path, resume);
    assert_eq!(done.code, Some(0), "{}", done.stderr);

    // The metrics of a finished run are not touched by a resume that cannot write.
    let before = fs::read(path.join("run/metrics.jsonl")).unwrap();
    let done = limited(0, &resume);
    assert!(
        done.code == Some(2) && done.stderr.contains("File too large"),
        "{:?}: {}",
        done.code,
        done.stderr
    );
    assert!(fs::read(path.join("run/metrics.jsonl")).unwrap() == before);
    assert_eq!(
        secateur(path, ["eval", "--weights", "run", "--protocol", "clean", "--device", "cpu"]).code,
        Some(0)
    );
}

#[test]
#[cfg(target_os = "linux")]
fn a_reader_that_leaves_is_no_error_and_a_full_disk_is_one() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    // The reading end is closed before the first line.
    let mut child = Process::new(&*PROGRAM)
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
    let output = Process::new(&*PROGRAM)
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

/// Values of a tensor of 8-byte or 4-byte elements.
fn tensor<const N: usize, T>(file: &SafeTensors, name: &str, of: fn([u8; N]) -> T) -> (Vec<usize>, Vec<T>) {
    let view = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    (view.shape().to_vec(), view.data().as_chunks().0.iter().map(|&word| of(word)).collect())
}

#[test]
fn select_writes_a_subset_and_what_it_was_chosen_from() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let done = tiny_run(path, &["--set=evaluation.every=0"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let select = |more: &[&str]| {
        let common =
            ["select", "--weights", "run/last.safetensors", "--recipe", "run/recipe.toml", "--device", "cpu"];
        secateur(path, [&common[..], more].concat())
    };
    let train: Vec<i64> = {
        let done = select(&["--method", "full", "--out", "all.safetensors"]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let bytes = fs::read(path.join("all.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        tensor(&file, "indices", i64::from_le_bytes).1
    };
    assert_eq!(train.len(), 50);
    for (method, _) in SelectionMethod::ALL.iter().filter(|(_, method)| *method != SelectionMethod::Short) {
        let sized = SelectionMethod::from_name(method).unwrap().has_fraction();
        let fraction: &[&str] = if sized { &["--fraction", "0.3"] } else { &[] };
        let args = [&["--method", *method, "--out", "s.safetensors", "--seed", "3"], fraction].concat();
        let done = select(&args);
        // Fifteen images may well miss one of ten classes.
        let warned = done.stderr.is_empty() || done.stderr.starts_with("warning: ");
        assert!(done.code == Some(0) && warned, "{method}: {}", done.stderr);
        assert!(done.stdout.starts_with(&format!("s.safetensors: {method}, ")), "{}", done.stdout);
        for figure in
            ["class entropy", "effective size", "wrong already", "accuracy less that of held-out images"]
        {
            assert!(done.stdout.contains(figure), "{method}: {}", done.stdout);
        }
        let bytes = fs::read(path.join("s.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (shape, indices) = tensor(&file, "indices", i64::from_le_bytes);
        let (_, weights) = tensor(&file, "weights", f32::from_le_bytes);
        let (_, residuals) = tensor(&file, "residuals", f64::from_le_bytes);
        assert_eq!((shape[0], weights.len()), (indices.len(), indices.len()), "{method}");
        assert!(
            indices.is_sorted_by(|a, b| a < b) && indices.iter().all(|index| train.contains(index)),
            "{method}"
        );
        // Adv-GRAD-MATCH may stop early.
        assert!((1..=if sized { 15 } else { 50 }).contains(&indices.len()), "{method}: {}", indices.len());
        assert!(indices.len() == 15 || !sized || *method == "adv-grad-match", "{method}: {}", indices.len());
        let mean = weights.iter().sum::<f32>() / weights.len() as f32;
        assert!((mean - 1.0).abs() < 1e-5 || *method == "info-batch", "{method}: {mean}");
        let (_, entropy) = tensor(&file, "class_entropy", f64::from_le_bytes);
        assert!(entropy.len() == 1 && (0.0..=1.0001).contains(&entropy[0]), "{method}: {entropy:?}");
        assert_eq!(residuals.is_empty(), *method != "adv-grad-match", "{method}");
        // Once more: the same bytes.
        assert_eq!(select(&args).code, Some(0));
        assert!(fs::read(path.join("s.safetensors")).unwrap() == bytes, "{method}: two selections differ");
    }

    // With TRADES there are two terms.
    for (objective, terms) in [("pgd-at", &["adversarial"][..]), ("trades", &["clean", "adversarial"])] {
        let set = format!("objective.method={objective}");
        let out =
            ["--method", "el2n", "--fraction", "0.5", "--out", "e.safetensors", "--factors", "f.safetensors"];
        // The largest norms, as published.
        let plain = ["--set", "selection.temperature=0", "--set", "selection.class_quotas=false"];
        let done = select(&[&["--set", &set][..], &plain, &out].concat());
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let bytes = fs::read(path.join("f.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (_, indices) = tensor(&file, "indices", i64::from_le_bytes);
        let (_, labels) = tensor(&file, "labels", i64::from_le_bytes);
        assert_eq!(indices, train);
        assert!(labels.iter().all(|label| (0..10).contains(label)));
        assert_eq!(file.len(), 3 + 2 * terms.len());
        for term in terms {
            let (shape, gradient) = tensor(&file, &format!("{term}.logit_gradient"), f32::from_le_bytes);
            assert_eq!(shape, [50, 10]);
            // The softmax has one sum, whatever the logits.
            for row in gradient.chunks_exact(10) {
                assert!(row.iter().sum::<f32>().abs() < 1e-4, "{term}: {row:?}");
            }
            let (shape, features) = tensor(&file, &format!("{term}.features"), f32::from_le_bytes);
            assert_eq!(shape, [50, 128]);
            assert!(features.iter().all(|value| *value >= 0.0) && features.iter().any(|value| *value > 0.0));
        }
        // EL2N by another program: PGD-AT's logit gradient is q - e_y itself.
        if terms.len() == 1 {
            let (_, gradient) = tensor(&file, "adversarial.logit_gradient", f32::from_le_bytes);
            let norm = |row: &[f32]| row.iter().map(|value| value * value).sum::<f32>();
            let norms: Vec<f32> = gradient.chunks_exact(10).map(norm).collect();
            let bytes = fs::read(path.join("e.safetensors")).unwrap();
            let (_, chosen) =
                tensor(&SafeTensors::deserialize(&bytes).unwrap(), "indices", i64::from_le_bytes);
            let of = |inside: bool| {
                indices
                    .iter()
                    .zip(&norms)
                    .filter(move |(index, _)| chosen.contains(index) == inside)
                    .map(|(_, norm)| *norm)
            };
            let (least, most) = (of.clone()(true).fold(f32::MAX, f32::min), of(false).fold(0.0, f32::max));
            assert!(least > most - 1e-5, "{least} chosen, {most} left out");
        }
    }

    // What cannot be written is said before the work, and weights that are no numbers are refused.
    let random = ["--method", "random", "--fraction", "0.5"];
    let done = select(&[&random[..], &["--out", "nowhere/s.safetensors"]].concat());
    assert_eq!(done.code, Some(2));
    assert!(done.stderr.contains("nowhere"), "{}", done.stderr);
    let done = select(&[&random[..], &["--out", "run"]].concat());
    assert!(done.code == Some(2) && done.stderr.contains("run: a folder"), "{}", done.stderr);
    let done = select(&[&random[..], &["--out", "s", "--factors", "s"]].concat());
    assert!(done.code == Some(2) && done.stderr.contains("--factors s: also"), "{}", done.stderr);
    let hundred = ["--recipe", "cifar100-trades", "--out", "s"];
    let weights = ["select", "--weights", "run/last.safetensors"];
    let done = secateur(path, [&weights[..], &random, &hundred].concat());
    assert!(
        done.code == Some(2) && done.stderr.contains("10 classes, and cifar100 has 100"),
        "{}",
        done.stderr
    );
    let mut damaged = Weights::read(&path.join("run/last.safetensors")).unwrap();
    damaged.tensors.get_mut("linear.bias").unwrap().values[0] = f32::NAN;
    fs::write(path.join("nan.safetensors"), damaged.to_bytes()).unwrap();
    let done =
        secateur(path, [&["select", "--weights", "nan.safetensors", "--out", "s"][..], &random].concat());
    assert!(done.code == Some(2) && done.stderr.contains("linear.bias[0]: NaN"), "{}", done.stderr);
}

/// Weights of the width of tests; `change` damages them.
fn write_weights(path: &Path, change: impl Fn(&mut Weights)) {
    let mut weights = initialise(ResNet::resnet18(16, 10), 3);
    change(&mut weights);
    fs::write(path, weights.to_bytes()).unwrap();
}

fn split(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[test]
fn logits_that_are_not_finite_fail_an_evaluation() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    write_weights(&path.join("w.safetensors"), |weights| {
        weights.tensors.get_mut("conv1.weight").unwrap().values.fill(3e38);
    });
    let line = "eval --weights w.safetensors --samples 4 --protocol clean,fgsm,cw,aa --device cpu --out r.json --dump d";
    let done = secateur(path, split(line));
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert!(done.stdout.contains("clean: 0.00 % (0 of 4 test images of generated)"), "{}", done.stdout);
    let warning =
        "warning: cw: 4 of 4 images have a logit that is NaN or infinite; they were counted as wrong";
    assert!(done.stderr.contains(warning) && !done.stderr.contains("4294967295"), "{}", done.stderr);
    let report = json(&path.join("r.json"));
    for row in report["results"].as_array().unwrap() {
        assert_eq!((&row["non_finite"], &row["correct"]), (&4.into(), &0.into()), "{row}");
    }
    assert!(report["warnings"][0].as_str().unwrap().contains("clean: 4 of 4 images"), "{report}");
    let dump = fs::read(path.join("d")).unwrap();
    let dump = SafeTensors::deserialize(&dump).unwrap();
    assert_eq!(dump.tensor("clean_predictions").unwrap().data(), (-1i64).to_le_bytes().repeat(4));
}

#[test]
fn a_training_that_diverges_fails() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let diverging = ["--set=optimizer.learning_rate=100", "--set=schedule.kind=constant"];
    let done = tiny_run(path, &diverging);
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert!(done.stderr.lines().last().unwrap().contains("training diverged"), "{}", done.stderr);
    // Without validation the final test sees it, and the results say so.
    let more = [
        "--set=data.validation=0",
        "--set=epochs=1",
        "--set=batch=30",
        "--set=evaluation.protocols=['clean']",
    ];
    let args = [&["train", "--out", "blind"], &TINY[..], &diverging, &more].concat();
    let done = secateur(path, &args);
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    let last = done.stderr.lines().last().unwrap();
    assert!(
        last.contains("epoch 1: 20 of 20 test images") && last.contains("training diverged"),
        "{}",
        done.stderr
    );
    let result = json(&path.join("blind/result.json"));
    assert_eq!((&result["test"][0]["non_finite"], &result["test"][0]["correct"]), (&20.into(), &0.into()));
}

#[test]
fn weights_are_evaluated_on_the_images_of_their_own_run() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let eval = |line: &str| {
        let protocol = if line.contains("--protocol") { "" } else { " --protocol clean" };
        secateur(path, split(&format!("eval --samples 4 --device cpu {line}{protocol}")))
    };
    for (run, recipe) in [("quick", "quick"), ("cifar", "cifar10-demo")] {
        let checkpoint = path.join(run).join("checkpoints/epoch-0001-step-000000");
        fs::create_dir_all(&checkpoint).unwrap();
        fs::write(path.join(run).join("recipe.toml"), secateur(path, ["recipes", recipe]).stdout).unwrap();
        write_weights(&path.join(run).join("best.safetensors"), |_| ());
        write_weights(&checkpoint.join("weights.safetensors"), |_| ());
    }
    write_weights(&path.join("w.safetensors"), |_| ());
    for weights in ["best.safetensors", "checkpoints/epoch-0001-step-000000/weights.safetensors"] {
        let done = eval(&format!("--weights cifar/{weights}"));
        assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{weights}");
        assert!(done.stderr.contains("cifar10 needs its files: give --data"), "{}", done.stderr);
        let done = eval(&format!("--weights quick/{weights} --data quick"));
        assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{weights}");
        assert!(
            done.stderr.contains("trained on generated images, which are in no files"),
            "{}",
            done.stderr
        );
        assert!(!done.stderr.contains("--set"), "eval has no --set: {}", done.stderr);
        let done = eval(&format!("--weights quick/{weights}"));
        assert!(done.code == Some(0) && done.stdout.contains("test images of generated"), "{}", done.stderr);
    }
    // Of a run whose files are elsewhere nothing is known: the line says which images were used.
    let done = eval("--weights w.safetensors");
    assert!(
        done.code == Some(0) && done.stdout.contains(" of 4 test images of generated)"),
        "{}",
        done.stdout
    );
    // A search that never began is begun by --resume.
    let line = "--weights w.safetensors --protocol apgd-ce --eps 0.5/255 --resume --out r.json";
    let done = eval(line);
    assert!(done.code == Some(0) && path.join("r.json").exists(), "{}", done.stderr);
}

#[test]
fn what_a_killed_write_left_does_not_block_a_run() {
    let folder = TempDir::new().unwrap();
    let stray = folder.path().join("run/.writing-a1b2c3");
    fs::create_dir(folder.path().join("run")).unwrap();
    fs::write(&stray, "half").unwrap();
    let done = tiny_run(folder.path(), &["--set=epochs=1"]);
    assert!(done.code == Some(0) && !stray.exists(), "{}", done.stderr);
}
