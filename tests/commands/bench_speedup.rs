//! `secateur bench speedup`, `bench select` and `bench selection-error` on tiny networks and generated images: which runs there
//! are, what the cost model says of them, what the table says of what they recorded, and how the command goes on.

use std::fs;
use std::path::Path;

use secateur::accelerate::Acceleration;
use secateur::measure::speedup::cost::Cost;
use secateur::measure::speedup::document::{Document, Statistic};
use secateur::measure::speedup::plan::{Plan, Role, with_epochs};
use secateur::model::ResNet;
use secateur::prune::SelectionMethod;
use secateur::recipe::Recipe;
use secateur::train::config::Schedule;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::program;

/// 24 training images in batches of 8, 2 epochs: on half of them, chosen before each.
const TINY: &str = r#"
    epochs = 2
    batch = 8
    [data]
    set = "generated"
    train_limit = 30
    test_limit = 12
    validation = 6
    [model]
    width = 16
    [attack]
    steps = 1
    [selection]
    method = "adv-grad-match"
    fraction = 0.5
    every = 1
    [optimizer]
    learning_rate = 0.02
    [schedule]
    kind = "cyclic"
    [evaluation]
    every = 1
    best_by = "pgd1"
"#;

/// Exit code, stdout, stderr.
fn secateur(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    program::secateur(folder, args).parts()
}

fn speedup(folder: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    fs::write(folder.join("tiny.toml"), TINY).unwrap();
    secateur(folder, &[&["bench", "speedup", "--device=cpu", "--out=out"], more].concat())
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn tiny(name: &str, overrides: &[&str]) -> Recipe {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
    Recipe::parse(name, TINY, &overrides).unwrap()
}

/// Role, name, the recipes it controls, and the row it is measured against.
fn rows(plan: &Plan) -> Vec<(Role, &str, String, &str)> {
    let name = |at: usize| plan.entries[at].recipe.name.as_str();
    let entries = plan.entries.iter();
    entries
        .map(|entry| (entry.role, entry.recipe.name.as_str(), entry.controls.join(" "), name(entry.full)))
        .collect()
}

#[test]
fn every_control_is_planned_once() {
    let pruned = tiny("a", &["attack.steps=3", "selection.ridge=0.1"]);
    let bullet = tiny("b", &["attack.steps=3", "accelerate.method=bullet-train"]);
    let plan = Plan::new(&[pruned.clone(), bullet.clone()], &[5, 6]).unwrap();
    let (full, recipe) = (Role::Full, Role::Recipe);
    assert_eq!(
        rows(&plan),
        [
            (full, "a.full", "a b".into(), "a.full"),
            (Role::Short, "a.short", "a".into(), "a.full"),
            (Role::Random, "a.random", "a".into(), "a.full"),
            (Role::RandomOnline, "a.random-online", "a".into(), "a.full"),
            (recipe, "a", String::new(), "a.full"),
            (Role::Short, "b.short", "b".into(), "a.full"),
            (Role::Random, "b.random", "b".into(), "a.full"),
            (Role::RandomOnline, "b.random-online", "b".into(), "a.full"),
            (recipe, "b", String::new(), "a.full"),
        ]
    );
    for entry in &plan.entries {
        // But for the choice of the samples, a control is its recipe; the full method attacks in full besides.
        let base = if entry.recipe.name.starts_with('a') { &pruned } else { &bullet };
        let mut expected = Recipe { name: entry.recipe.name.clone(), ..base.clone() };
        expected.selection = entry.recipe.selection.clone();
        expected.evaluation.protocols.clear();
        assert_eq!(entry.recipe, expected);
        let selection = &entry.recipe.selection;
        let fraction = if selection.method == SelectionMethod::Full { 1.0 } else { 0.5 };
        assert_eq!(selection.fraction, fraction, "{}", entry.recipe.name);
        assert_eq!((entry.seeded(6).seed, entry.folder(6)), (6, format!("{}-seed-6", entry.recipe.name)));
    }
    let methods: Vec<&str> =
        plan.entries[..4].iter().map(|entry| entry.recipe.selection.method.name()).collect();
    assert_eq!(methods, ["full", "short", "random", "random-online"]);

    // What was asked for stands for the control that it is; plain full training has none, cheaper attacks have one.
    let plain = tiny(
        "plain",
        &["attack.steps=3", "selection.method=full", "selection.fraction=1", "selection.every=0"],
    );
    let mut fast = plain.clone();
    (fast.name, fast.accelerate.method) = ("fast".into(), Acceleration::BulletTrain);
    let plan = Plan::new(&[fast, plain.clone()], &[0]).unwrap();
    assert_eq!(
        rows(&plan),
        [(recipe, "plain", "fast".into(), "plain"), (recipe, "fast", String::new(), "plain")]
    );
    assert_eq!(
        rows(&Plan::new(std::slice::from_ref(&plain), &[0]).unwrap()),
        [(recipe, "plain", String::new(), "plain")]
    );
    let renamed = Recipe { name: "other".into(), ..plain.clone() };
    for (recipes, seeds, text) in [
        (vec![plain.clone(), renamed], vec![0], "--recipes other: named twice, expected each recipe once"),
        (vec![plain], vec![4, 4], "--seeds 4: named twice, expected each seed once"),
        (
            vec![pruned.clone(), Recipe { batch: 4, ..pruned }],
            vec![0],
            "two rows are named a.full, expected a name for each; give the recipe's file another name",
        ),
    ] {
        assert_eq!(Plan::new(&recipes, &seeds).unwrap_err().to_string(), text);
    }
}

#[test]
fn fewer_epochs_keep_the_shape_of_the_schedule() {
    let step = tiny("a", &["epochs=20", "schedule.kind=step", "schedule.drops=[10, 15]"]);
    let short = with_epochs(step, 4).unwrap();
    let Schedule::Step { drops, .. } = &short.schedule else { panic!("not a step schedule") };
    assert_eq!((short.epochs, drops.as_slice()), (4, &[2.0, 3.0][..]));
}

/// Passes of the rows of the tiny recipe, counted by hand: 5 a trained image (a sign step of 2, training of 3), 3 a candidate.
const PASSES: [(&str, usize, f64); 5] = [
    ("tiny.full", 2, 2.0 * 24.0 * 5.0),
    ("tiny.short", 1, 24.0 * 5.0),
    ("tiny.random", 2, 2.0 * 12.0 * 5.0),
    ("tiny.random-online", 2, 2.0 * 12.0 * 5.0),
    ("tiny", 2, 2.0 * (12.0 * 5.0 + 24.0 * 3.0)),
];

#[test]
fn a_dry_run_is_the_cost_model() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let (code, stdout, stderr) = speedup(path, &["--recipes=tiny.toml", "--dry-run", "--json=dry.json"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(!path.join("out").exists());
    let document: Document = serde_json::from_value(json(&path.join("dry.json"))).unwrap();
    assert!(document.dry_run && document.device.is_null());
    let plan = Plan::new(&[tiny("tiny", &[])], &[0]).unwrap();
    assert_eq!(document.rows.len(), PASSES.len());
    for ((row, entry), (name, epochs, passes)) in document.rows.iter().zip(&plan.entries).zip(PASSES) {
        assert_eq!((row.name.as_str(), row.predicted.epochs), (name, epochs));
        assert_eq!(row.predicted, Cost::predicted(&entry.recipe), "{name}");
        assert_eq!(row.predicted.passes(), passes, "{name}");
        assert_eq!(row.predicted_speed_up, PASSES[0].2 / passes, "{name}");
        let line = stdout.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        assert!(line.contains(&format!("{:.2}x", PASSES[0].2 / passes)), "{line}");
    }
    // The recipes that ship need no images for a prediction.
    let more = ["--recipes=cifar10-mart-glister-bullet,cifar10-trades-info-batch", "--dry-run"];
    let (code, stdout, stderr) = speedup(path, &more);
    assert_eq!(code, Some(0), "{stderr}");
    for part in [
        "cifar10-mart-glister-bullet.random-online",
        "note: BulletTrain is taken for 0.44",
        "note: InfoBatch decides itself",
    ] {
        assert!(stdout.contains(part), "no {part} in:\n{stdout}");
    }
}

/// Sums of a run's metrics.jsonl: attack, train, select.
fn recorded(folder: &Path) -> [f64; 3] {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let epochs: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    ["seconds_attack", "seconds_train", "seconds_select"]
        .map(|key| epochs.iter().map(|epoch| epoch[key].as_f64().unwrap()).sum())
}

fn near(actual: f64, expected: f64) -> bool {
    (actual - expected).abs() <= 1e-9 * expected.abs()
}

#[test]
fn a_table_is_what_its_runs_recorded_and_they_are_made_once() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let base = ["--recipes=tiny.toml", "--seeds=1,2", "--samples=4"];
    let (code, stdout, stderr) =
        speedup(path, &[&base[..], &["--protocol=clean,pgd2", "--json=t.json"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    for part in
        ["run 1 of 10: tiny.full, seed 1: 2 epochs", "run 10 of 10: tiny, seed 2", "best pgd2", "speed-up"]
    {
        assert!(stdout.contains(part), "no {part} in:\n{stdout}");
    }
    let read = json(&path.join("t.json"));
    assert_eq!(read, json(&path.join("out/speedup.json")));
    let document: Document = serde_json::from_value(read).unwrap();
    assert!(!document.dry_run && document.device["kind"] == "cpu" && document.samples == Some(4));
    assert_eq!(document.protocols, ["clean", "pgd2"]);
    let csv = fs::read_to_string(path.join("out/speedup.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + document.rows.len());
    let columns = csv.lines().map(|line| line.split(',').count()).collect::<Vec<_>>();
    assert!(columns.iter().all(|&count| count == columns[0]), "{csv}");

    for (row, (name, epochs, passes)) in document.rows.iter().zip(PASSES) {
        assert_eq!((row.name.as_str(), row.full.as_str(), row.runs.len()), (name, "tiny.full", 2));
        let figure = |name: &str| row.figures.iter().find(|figure| figure.name == name).unwrap().statistic;
        let mut speed_ups = Vec::new();
        for run in &row.runs {
            let seconds = recorded(&path.join("out").join(&run.folder));
            assert_eq!([run.seconds.attack, run.seconds.train, run.seconds.select], seconds);
            assert_eq!(["full", "short"].contains(&row.selection.as_str()), seconds[2] == 0.0, "{name}");
            let full = recorded(&path.join(format!("out/tiny.full-seed-{}", run.seed)));
            let expected = full.iter().sum::<f64>() / seconds.iter().sum::<f64>();
            assert!(near(run.speed_up.unwrap(), expected), "{name}: {:?}, expected {expected}", run.speed_up);
            speed_ups.push(expected);
            // The pursuit may end with fewer samples than its budget.
            assert_eq!(run.cost.epochs, epochs);
            assert!(run.cost.passes() <= passes && (run.cost.passes() == passes || name == "tiny"), "{name}");
            assert!(near(run.speed_up_by_passes.unwrap(), PASSES[0].2 / run.cost.passes()), "{name}");
            let results: Vec<(&str, &str, usize)> = run
                .accuracies
                .iter()
                .map(|row| (row.weights.as_str(), row.protocol.as_str(), row.total))
                .collect();
            let expected =
                [("best", "clean", 4), ("best", "pgd2", 4), ("last", "clean", 4), ("last", "pgd2", 4)];
            assert_eq!(results, expected);
            let result = json(&path.join("out").join(&run.folder).join("result.json"));
            assert_eq!(result["test"].as_array().unwrap().len(), 4, "every reader of a run finds them");
            assert_eq!(result["best"]["epoch"].as_u64(), run.best_epoch.map(u64::from));
        }
        let expected = Statistic::of(&speed_ups).unwrap();
        assert!(near(figure("speed_up").mean, expected.mean), "{name}");
        assert!((figure("speed_up").deviation.unwrap() - expected.deviation.unwrap()).abs() < 1e-9, "{name}");
        let seconds: f64 = row.runs.iter().map(|run| run.cost_seconds()).sum::<f64>() / 2.0;
        assert!(near(figure("seconds").mean, seconds));
        assert!(near(figure("seconds_per_epoch").mean, seconds / epochs as f64));
    }

    // The same runs under another protocol: nothing is trained, and what was evaluated stays.
    let metrics = fs::read_to_string(path.join("out/tiny-seed-2/metrics.jsonl")).unwrap();
    let more = [&base[..], &["--protocol=clean,apgd-ce"]].concat();
    let (code, stdout, stderr) = speedup(path, &more);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stdout.matches("trained already").count(), 10, "{stdout}");
    assert!(!stdout.contains("epoch 1/"), "{stdout}");
    assert_eq!(fs::read_to_string(path.join("out/tiny-seed-2/metrics.jsonl")).unwrap(), metrics);
    let again: Document = serde_json::from_value(json(&path.join("out/speedup.json"))).unwrap();
    for (row, before) in again.rows.iter().zip(&document.rows) {
        for (run, before) in row.runs.iter().zip(&before.runs) {
            assert_eq!((run.seconds, run.speed_up), (before.seconds, before.speed_up));
            let accuracy =
                |run: &secateur::measure::speedup::document::Run, at: usize| run.accuracies[at].correct;
            assert_eq!(accuracy(run, 0), accuracy(before, 0), "clean, best");
            assert!(accuracy(run, 1) <= accuracy(run, 0), "{}: an attack helps nobody", run.folder);
        }
    }
    // A third time there is no need of a device, and the table is the same.
    let rows = |document: &Document| serde_json::to_value(&document.rows).unwrap();
    assert_eq!(speedup(path, &more).0, Some(0));
    let third: Document = serde_json::from_value(json(&path.join("out/speedup.json"))).unwrap();
    assert_eq!(rows(&third), rows(&again));

    // Another recipe in the same folders is refused before anything is trained.
    let (code, stdout, stderr) = speedup(path, &[&base[..], &["--set=attack.steps=2"]].concat());
    assert_eq!((code, stderr.lines().count(), stdout.as_str()), (Some(2), 1, ""), "{stderr}");
    for part in ["tiny.full-seed-1", "steps = 2, there steps = 1", "--out"] {
        assert!(stderr.contains(part), "no {part} in: {stderr}");
    }
}

#[test]
#[cfg(unix)]
fn an_interrupt_says_how_to_go_on_and_the_same_command_does() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command as Process, Stdio};

    let folder = TempDir::new().unwrap();
    let path = folder.path();
    fs::write(path.join("tiny.toml"), TINY).unwrap();
    let args = [
        "bench",
        "speedup",
        "--device=cpu",
        "--out=out",
        "--recipes=tiny.toml",
        "--protocol=clean",
        "--epochs=20",
        "--set=selection.method=full",
        "--set=selection.fraction=1",
        "--set=selection.every=0",
    ];
    let mut child = Process::new(env!("CARGO_BIN_EXE_secateur"))
        .current_dir(path)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("epoch 1/20")), "the first epoch never ended");
    let killed = Process::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert_eq!(stderr, "error: interrupted; what is done is kept in out; the same command goes on there\n");
    assert!(!path.join("out/speedup.json").exists());

    let (code, stdout, stderr) = secateur(path, &args);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("the rest of 20 epochs") && !stdout.contains("epoch 1/20"), "{stdout}");
    let document: Document = serde_json::from_value(json(&path.join("out/speedup.json"))).unwrap();
    assert_eq!(document.rows.len(), 1);
    let run = &document.rows[0].runs[0];
    let seconds = recorded(&path.join("out").join(&run.folder));
    assert_eq!((run.cost.epochs, run.cost_seconds()), (20, seconds.iter().sum()));
    assert_eq!(run.speed_up, Some(1.0));
}

#[test]
fn mistakes_are_one_line() {
    let folder = TempDir::new().unwrap();
    for (args, part) in [
        (&["--recipes=nothing-such"][..], "no recipe 'nothing-such'"),
        (&["--recipes=cifar10-trades"], "cifar10 needs its files: give --data DIR"),
        (&["--recipes=tiny.toml", "--data=."], "which are in no files"),
        (&["--recipes=tiny.toml", "--protocol=clean,pgd"], "protocol 'pgd': expected clean"),
        (&["--recipes=tiny.toml", "--protocol=clean,clean"], "--protocol clean: named twice"),
        (&["--recipes=tiny.toml", "--seeds="], "--seeds"),
        (&["--recipes=tiny.toml", "--seeds=3,3"], "--seeds 3: named twice"),
        (&["--recipes=tiny.toml", "--samples=13"], "--samples 13: there are 12 test images"),
        (&["--recipes=tiny.toml", "--epochs=0"], "--epochs"),
        (&["--recipes=tiny.toml", "--set=attack.stepz=1"], "did you mean attack.steps?"),
        (&["--recipes=tiny.toml,tiny.toml"], "--recipes tiny: named twice"),
        (&[], "--recipes"),
    ] {
        let (code, stdout, stderr) = speedup(folder.path(), args);
        assert_eq!((code, stderr.lines().count(), stdout.as_str()), (Some(2), 1, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(part), "{args:?}: {stderr}");
        assert!(!folder.path().join("out").exists(), "{args:?}");
    }
    for (args, part) in [
        (&["--method=best"][..], "expected random, random-online"),
        (&["--recipe=cifar10-trades"], "selects nothing; give --method"),
        (&["--fraction=0.0001"], "a share of 0.0001 of 1280 candidates is none"),
        (&["--classes=7"], "100"),
        (&["--filter=nowhere"], "--filter nowhere"),
    ] {
        let (code, stdout, stderr) =
            secateur(folder.path(), &[&["bench", "select", "--device=cpu"], args].concat());
        assert_eq!((code, stderr.lines().count(), stdout.as_str()), (Some(2), 1, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(part), "{args:?}: {stderr}");
    }
}

#[test]
fn a_selection_is_measured_in_parts() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    fs::write(path.join("tiny.toml"), TINY).unwrap();
    let base = [
        "bench",
        "select",
        "--device=cpu",
        "--width=16",
        "--batch=8",
        "--recipe=tiny.toml",
        "--candidates=20",
        "--samples=3",
        "--error=1000",
        "--timeout=0",
        "--classes=10",
    ];
    let (code, stdout, stderr) = secateur(path, &[&base[..], &["--json=a.json", "--csv=a.csv"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    let read = json(&path.join("a.json"));
    assert_eq!(read["kind"], "bench select");
    let whole = "select tiny, 10 of 20, 10 classes";
    let rows = read["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    let part = |part: &str| format!("{whole}: {part}");
    assert_eq!(names, [whole.to_string(), part("attack"), part("gradients"), part("algorithm")]);
    assert!(names.iter().all(|name| stdout.contains(name)), "{stdout}");
    let samples = |row: usize| -> Vec<f64> {
        rows[row]["samples"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    for repetition in 0..samples(0).len() {
        let parts: Vec<f64> = (1..4).map(|row| samples(row)[repetition]).collect();
        assert!(parts.iter().all(|&seconds| seconds > 0.0), "{parts:?}");
        assert!(near(parts.iter().sum(), samples(0)[repetition]), "{parts:?}");
    }
    // A sign step is a forward pass and the gradient of the images; the last-layer gradient pass passes them once more.
    let all: usize = ResNet::resnet18(16, 10).convs().iter().map(|conv| conv.multiply_adds()).sum();
    assert_eq!(rows[0]["flops"].as_f64().unwrap(), (3 * 2 * 20 * all) as f64);
    assert_eq!((&rows[0]["images"], &rows[1]["flops"]), (&20.into(), &0.0.into()));
    assert_eq!(fs::read_to_string(path.join("a.csv")).unwrap().lines().count(), 5);

    let (code, stdout, stderr) = secateur(path, &["bench", "compare", "a.json", "a.json"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stdout.lines().filter(|line| line.starts_with("select tiny")).count(), 4, "{stdout}");

    // What needs no last-layer gradients has no rows for one; scores that training leaves cost nothing; labels reach all classes.
    let methods = "--method=random,loss-rank,easy-core,adv-glister";
    let more = [&base[..10], &["--classes=100", methods, "--fraction=0.25", "--json=b.json"]].concat();
    let (code, _, stderr) = secateur(path, &more);
    assert_eq!(code, Some(0), "{stderr}");
    let read = json(&path.join("b.json"));
    let names: Vec<&str> =
        read["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    let of = |method: &str, parts: &[&str]| {
        let whole = format!("select tiny {method}, 5 of 20, 100 classes");
        let rows = parts.iter().map(|part| format!("{whole}: {part}")).collect::<Vec<_>>();
        [vec![whole], rows].concat()
    };
    let expected = [
        of("random", &["algorithm"]),
        of("loss-rank", &["algorithm"]),
        of("easy-core", &["gradients", "algorithm"]),
        of("adv-glister", &["attack", "gradients", "algorithm"]),
    ];
    assert_eq!(names, expected.concat());
}

#[test]
fn errors_of_gradients_are_measured_once_and_kept() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    fs::write(path.join("tiny.toml"), TINY).unwrap();
    let base =
        ["bench", "selection-error", "--device=cpu", "--recipe=tiny.toml", "--fraction=0.5", "--draws=2"];
    let some = "--filter=^random$|per sample, ridge 0$|InfoBatch|GLISTER, quotas";
    let run = |more: &[&str]| secateur(path, &[&base[..], more].concat());
    let (code, stdout, stderr) = run(&[some, "--out=out"]);
    assert_eq!(code, Some(0), "{stderr}");
    let table = path.join("out/selection-error.json");
    let rows = |path: &Path| json(path)["rows"].as_array().unwrap().clone();
    let actual = rows(&table);
    let names: Vec<&str> = actual.iter().map(|row| row["name"].as_str().unwrap()).collect();
    let matched = "GRAD-MATCH per sample, ridge 0";
    assert_eq!(names, [matched, "InfoBatch", "random", "Adv-GLISTER, quotas and noise"]);
    assert!(names.iter().all(|name| stdout.contains(name)), "{stdout}");
    let row = |name: &str| actual.iter().find(|row| row["name"] == name).unwrap();
    let values = |name: &str, field: &str| -> Vec<f64> {
        row(name)[field].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    assert_eq!(values("random", "images"), [12.0; 10]);
    assert_eq!((values("random", "same").len(), values("random", "fresh").len()), (10, 20));
    assert_eq!((values(matched, "same").len(), values(matched, "fresh").len()), (1, 2));
    assert!(values("InfoBatch", "images").iter().all(|&images| (13.0..24.0).contains(&images)));
    // The selection saw the very images that its error is of; fresh ones it did not see.
    assert_eq!(row(matched)["first"]["residual"].as_f64().unwrap(), values(matched, "same")[0]);
    let glister = "Adv-GLISTER, quotas and noise";
    assert_eq!((values(glister, "same").len(), values(glister, "fresh").len()), (2, 4));
    let random = values("random", "same").iter().sum::<f64>() / 10.0;
    assert!(values(matched, "same")[0] < 0.5 * random, "{actual:?}");
    assert!(values(matched, "fresh").iter().all(|&error| error > values(matched, "same")[0]), "{actual:?}");
    assert_eq!(row(glister)["first"]["missing_classes"], 0);

    // What is there is not made again; other rows are added.
    let bytes = fs::read(&table).unwrap();
    assert_eq!(run(&[some, "--out=out"]).0, Some(0));
    assert!(fs::read(&table).unwrap() == bytes);
    assert_eq!(run(&["--filter=loss-rank, plain", "--out=out"]).0, Some(0));
    let more = rows(&table);
    assert_eq!(more.iter().filter(|row| !actual.contains(row)).count(), 1);
    assert_eq!(more.len(), 5);
    // The same network from a file gives the same rows.
    let weights = ["--weights=out/network/last.safetensors", "--out=other", some];
    assert_eq!(run(&weights).0, Some(0));
    assert_eq!(rows(&path.join("other/selection-error.json")), actual);

    for (args, expected) in [
        (["--out=out", "--set=seed=4"], "a run of another recipe (seed"),
        (
            ["--out=out", "--draws=3"],
            "out/selection-error.json: a table of another recipe, network, device or number",
        ),
        (["--out=new", "--filter=nothing"], "--filter nothing: matches no row"),
        (["--out=new", "--set=objective.method=free"], "objective.method = \"free\""),
    ] {
        let base = &base[..if args[1].starts_with("--draws") { 5 } else { 6 }];
        let (code, _, stderr) = secateur(path, &[base, &args].concat());
        assert!(code == Some(2) && stderr.contains(expected) && stderr.lines().count() == 1, "{stderr}");
    }
}
