//! `secateur bench`: statistics and results on injected samples, the stop rule, and the commands on a tiny network.

use secateur::engine::{DeviceChoice, WeightSet};
use secateur::measure::ceilings::Ceilings;
use secateur::measure::compare::{Change, compare};
use secateur::measure::harness::{Rule, SamplingState, sample};
use secateur::measure::statistics::{ratio_interval, summary};
use secateur::measure::workload::{Bench, Cache, Work};
use secateur::model::ResNet;
use secateur::philox::{Key, Purpose, unit};
use secateur::recipe::{BUILTIN, Recipe};
use tempfile::TempDir;

use crate::common::program;

const SEED: u64 = 20_261_121;

/// Times of `mean` seconds with normal noise of this share.
fn times(stream: u32, count: usize, mean: f64, noise: f64) -> Vec<f64> {
    let key = Key { seed: SEED, purpose: Purpose::Generation, epoch: 7, step: 0 };
    let draw = |n: usize| {
        let [a, b, ..] = key.block(stream, n as u32).map(|word| f64::from(unit(word)));
        let normal = (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos();
        mean * (1.0 + noise * normal).max(0.05)
    };
    (0..count).map(draw).collect()
}

#[test]
fn summaries_are_robust() {
    let of = summary(&[5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
    assert_eq!((of.median, of.quartiles), (3.0, [2.0, 4.0]));
    assert!((of.noise - 2.0 / 1.349 / 3.0).abs() < 1e-12);
    assert!((of.error - 1.2533 * of.noise / 5f64.sqrt()).abs() < 1e-12);
    // One sample among many that took a hundred times as long changes nothing.
    let mut values = vec![1.0; 20];
    values.push(100.0);
    assert_eq!(summary(&values).unwrap().median, 1.0);
    assert_eq!(summary(&values).unwrap().noise, 0.0);
    assert_eq!(summary(&[]), None);
    // Noise is the standard deviation of a normal distribution.
    let noise = summary(&times(0, 4000, 2.0, 0.1)).unwrap().noise;
    assert!((0.093..0.107).contains(&noise), "seed {SEED}: {noise}");
}

#[test]
fn sampling_ends_by_its_rule() {
    let rule = Rule { samples: 5, error: 0.01, seconds: 10.0 };
    assert_eq!(rule.state(&[1.0; 4], 1.0), SamplingState::GoOn);
    assert_eq!(rule.state(&[1.0; 5], 1.0), SamplingState::Done);
    assert_eq!(rule.state(&[1.0; 5], 100.0), SamplingState::Done);
    let noisy = [1.0, 2.0, 1.0, 2.0, 1.0, 2.0];
    assert_eq!(rule.state(&noisy, 1.0), SamplingState::GoOn);
    let SamplingState::TimeUp(unmet) = rule.state(&noisy, 10.0) else { panic!("the time is up") };
    assert!(unmet.contains("standard error") && unmet.contains("expected 1.00 %"), "{unmet}");
    let SamplingState::TimeUp(unmet) = rule.state(&[1.0; 2], 11.0) else { panic!("the time is up") };
    assert!(unmet.contains("2 samples, expected 5"), "{unmet}");

    let mut calls = 0;
    let mut work = || -> Result<f64, String> {
        calls += 1;
        Ok(1.0)
    };
    let samples = sample(&rule, &|| false, &mut work).unwrap().unwrap();
    assert_eq!((samples.values.len(), samples.unmet), (5, None));
    assert_eq!(sample(&rule, &|| true, &mut work), Ok(None));
    assert_eq!(calls, 6);
    assert_eq!(sample(&rule, &|| false, &mut || Err("broken")), Err("broken"));
}

#[test]
fn injected_changes_are_found() {
    for stream in 0..20 {
        let first = times(2 * stream, 30, 1.0, 0.01);
        let again = times(2 * stream + 1, 30, 1.0, 0.01);
        let slower: Vec<f64> = again.iter().map(|seconds| 1.2 * seconds).collect();
        let change = |a: &[f64], b: &[f64]| compare("row", a, b, 0.03).unwrap().change;
        assert_eq!(change(&first, &slower), Change::Slower, "seed {SEED}, stream {stream}");
        assert_eq!(change(&slower, &first), Change::Faster, "seed {SEED}, stream {stream}");
        assert_eq!(change(&first, &again), Change::Same, "seed {SEED}, stream {stream}");
        // With such noise eight samples say nothing about 3 %.
        let [a, b] = [0, 1].map(|side| times(100 + 2 * stream + side, 8, 1.0, 0.4));
        assert_eq!(change(&a, &b), Change::Ambiguous, "seed {SEED}, stream {stream}");
        assert_eq!(change(&first[..4], &slower[..4]), Change::Ambiguous, "seed {SEED}, stream {stream}");
    }
    assert_eq!(compare("row", &[], &[1.0], 0.03), None);
}

#[test]
fn intervals_hold_the_true_ratio() {
    let trials = 100;
    let held = (0..trials).filter(|trial| {
        let [a, b] = [0, 1].map(|side| times(1000 + 2 * trial + side, 20, 1.0 + 0.5 * f64::from(side), 0.1));
        let [low, high] = ratio_interval(&a, &b);
        assert!(low <= high);
        low <= 1.5 && 1.5 <= high
    });
    // 99 % are promised; the percentile bootstrap of a median keeps a little less with few samples.
    let held = held.count();
    assert!(held >= 94, "seed {SEED}: {held} of {trials}");
}

#[test]
fn work_is_bound_by_the_nearer_ceiling() {
    let ceilings = Ceilings { flops: Some(100.0), bytes: Some(10.0), how: Vec::new() };
    let share = ceilings.share(50.0, 1.0, 2.0).unwrap();
    assert_eq!((share.share, share.bound), (0.25, "compute"));
    let share = ceilings.share(50.0, 20.0, 4.0).unwrap();
    assert_eq!((share.share, share.bound), (0.5, "memory"));
    assert_eq!(ceilings.share(0.0, 0.0, 1.0), None);
    assert_eq!(Ceilings::default().share(1.0, 1.0, 1.0), None);
}

/// Exit code, stdout, stderr.
fn secateur(folder: &TempDir, args: &[&str]) -> (Option<i32>, String, String) {
    program::secateur(folder.path(), args).parts()
}

fn json(folder: &TempDir, name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(folder.path().join(name)).unwrap()).unwrap()
}

#[test]
fn a_recipes_own_images_can_be_measured() {
    let folder = TempDir::new().unwrap();
    // Whole files of black images of class 0.
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    {
        let file = std::fs::File::create(folder.path().join(format!("{name}.bin"))).unwrap();
        file.set_len(10_000 * 3_073).unwrap();
    }
    let small =
        ["--device=cpu", "--width=16", "--batch=2", "--samples=1", "--timeout=0", "--set=attack.steps=1"];
    let step =
        [&["bench", "step", "--recipe", "cifar10-pgd-at", "--json", "step.json", "--data", "."][..], &small];
    let (code, out, err) = secateur(&folder, &step.concat());
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("images cifar10"), "{out}");
    assert_eq!(json(&folder, "step.json")["images"], "cifar10");

    let (code, out, err) = secateur(&folder, &[&step.concat()[..6], &small].concat());
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("images generated"), "{out}");

    let missing =
        [&["bench", "step", "--recipe", "cifar10-pgd-at", "--data", "nowhere"][..], &small].concat();
    let (code, _, err) = secateur(&folder, &missing);
    assert!(code == Some(2) && err.contains("there is no such folder"), "{code:?}: {err}");
}

/// Convolution FLOPs of a step of PGD-AT with one attack step: forward and input gradient with the stem's; forward, input
/// gradient without it, weight gradient.
fn step_flops(width: usize, batch: usize) -> f64 {
    let convs = ResNet::resnet18(width, 10).convs();
    let all: usize = convs.iter().map(|conv| 2 * batch * conv.multiply_adds()).sum();
    (5 * all - 2 * batch * convs[0].multiply_adds()) as f64
}

const TINY: [&str; 7] = [
    "--width=16",
    "--batch=4",
    "--set=attack.steps=1",
    "--samples=5",
    "--timeout=0",
    "--error=50",
    "--recipe=cifar10-pgd-at",
];

#[test]
fn a_step_is_measured_on_the_cpu() {
    let folder = TempDir::new().unwrap();
    let args = [&["bench", "step", "--device=cpu", "--json=a.json", "--csv=a.csv"], &TINY[..]].concat();
    let (code, stdout, stderr) = secateur(&folder, &args);
    assert_eq!(code, Some(0), "{stderr}");
    for part in ["device ", "build ", "ceilings ", "images/s", "step cifar10-pgd-at", "1 samples, expected 5"]
    {
        assert!(stdout.contains(part), "no {part} in:\n{stdout}");
    }
    let read = json(&folder, "a.json");
    assert_eq!(read["secateur_measure"], 1);
    assert_eq!(read["finished"], true);
    assert_eq!((&read["kind"], &read["device"]["kind"]), (&"bench step".into(), &"cpu".into()));
    assert_eq!((&read["width"], &read["batch"]), (&16.into(), &4.into()));
    assert!(read["ceiling_flops"].as_f64().unwrap() > 1e8 && read["ceiling_bytes"].as_f64().unwrap() > 1e8);
    let row = &read["rows"][0];
    assert_eq!(row["flops"].as_f64().unwrap(), step_flops(16, 4));
    assert_eq!(row["images"], 4);
    assert!(row["unmet"].as_str().unwrap().contains("expected 5"));
    assert!(row["median"].as_f64().unwrap() > 0.0 && row["ceiling_share"].as_f64().unwrap() > 0.0);
    let csv = std::fs::read_to_string(folder.path().join("a.csv")).unwrap();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 2, "{csv}");
    assert!(lines[1].starts_with("\"step cifar10-pgd-at\",1,"), "{csv}");
}

#[test]
fn a_bench_that_is_killed_leaves_its_rows() {
    let folder = TempDir::new().unwrap();
    let recipe = BUILTIN.iter().find(|builtin| builtin.name == "cifar10-pgd-at").unwrap().text;
    let endless = recipe.replace("steps = 10", "steps = 1000").replace("cifar10-pgd-at", "endless");
    std::fs::write(folder.path().join("endless.toml"), endless).unwrap();
    let mut child =
        program::command(folder.path(), ["bench", "attack", "--device=cpu", "--recipe=quick,endless.toml"])
            .args(["--width=16", "--batch=64", "--samples=1", "--timeout=0", "--json=a.json"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
    while !folder.path().join("a.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended without a row");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let left = json(&folder, "a.json");
    assert_eq!((&left["finished"], left["rows"].as_array().unwrap().len()), (&false.into(), 1), "{left}");
    let (_, _, stderr) = secateur(&folder, &["bench", "compare", "a.json", "a.json"]);
    assert!(stderr.contains("the second is not finished: ") && stderr.contains("1 rows so far"), "{stderr}");
}

#[test]
fn attack_evaluation_and_filter_work() {
    let folder = TempDir::new().unwrap();
    let args = [&["bench", "attack", "--device=cpu", "--json=a.json"], &TINY[..]].concat();
    assert_eq!(secateur(&folder, &args).0, Some(0));
    // Forward and input gradient of one step, the stem's included.
    let all: usize = ResNet::resnet18(16, 10).convs().iter().map(|conv| conv.multiply_adds()).sum();
    assert_eq!(json(&folder, "a.json")["rows"][0]["flops"].as_f64().unwrap(), (2 * 2 * 4 * all) as f64);
    let args = [&["bench", "eval", "--device=cpu", "--json=e.json"], &TINY[..]].concat();
    assert_eq!(secateur(&folder, &args).0, Some(0));
    // PGD-20, and the forward pass of the result.
    assert_eq!(json(&folder, "e.json")["rows"][0]["flops"].as_f64().unwrap(), (41 * 2 * 4 * all) as f64);
    // A filter is a regular expression; a bad one and one that matches nothing are usage errors of one line.
    for (filter, part) in [("trades", "trades: matches no row"), ("step (", "unclosed group")] {
        let filter = format!("--filter={filter}");
        let args = [&["bench", "step", "--device=cpu", &filter], &TINY[..]].concat();
        let (code, _, stderr) = secateur(&folder, &args);
        assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    }
    let args = [&["bench", "kernels", "--device=cpu"], &TINY[..]].concat();
    let (code, _, stderr) = secateur(&folder, &args);
    assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
    assert!(stderr.contains("emulated"), "{stderr}");
}

#[test]
fn caches_are_cold_where_that_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let args = [
        &["bench", "step", "--device=cpu", "--cache=both", "--filter=^step .*-at$", "--json=c.json"],
        &TINY[..],
    ]
    .concat();
    let (code, stdout, stderr) = secateur(&folder, &args);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("cold time") && stdout.contains("batch time"), "{stdout}");
    let read = json(&folder, "c.json");
    let rows = read["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| &row["cache"]).collect::<Vec<_>>(), ["cold", "warm"]);
    // The flush is work of its own: both states count the operations of a step.
    assert!(rows.iter().all(|row| row["flops"].as_f64().unwrap() == step_flops(16, 4)));
    // Rows of different states are not compared with each other.
    let args = [&["bench", "step", "--device=cpu", "--json=w.json"], &TINY[..]].concat();
    assert_eq!(secateur(&folder, &args).0, Some(0));
    let (_, stdout, stderr) = secateur(&folder, &["bench", "compare", "c.json", "w.json"]);
    assert_eq!(stdout.lines().count(), 2, "{stdout}");
    assert!(stderr.contains("(cold): in the first only"), "{stderr}");
}

#[test]
fn kernels_are_measured_by_shape() {
    let folder = TempDir::new().unwrap();
    let tiny = [&["bench", "kernels", "--device=emulated", "--batch=1"], &TINY[..1], &TINY[2..]].concat();
    let (code, stdout, stderr) = secateur(&folder, &[&tiny[..], &["--json=k.json", "--csv=k.csv"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    for part in ["cifar10-pgd-at sgd_step", "cold time", "batch time", "samples, expected 5"] {
        assert!(stdout.contains(part), "no {part} in:\n{stdout}");
    }
    let read = json(&folder, "k.json");
    let (kernels, rows) = (read["kernels"].as_array().unwrap(), read["rows"].as_array().unwrap());
    let of = |cache: &str| rows.iter().filter(|row| row["cache"] == cache).collect::<Vec<_>>();
    assert_eq!((of("cold").len(), of("warm").len()), (rows.len() / 2, rows.len() / 2));
    // The same work, told by kernel and by kernel and shape.
    let sum = |rows: &[&serde_json::Value]| -> f64 {
        rows.iter().map(|row| row["flops"].as_f64().unwrap() * row["calls"].as_f64().unwrap()).sum()
    };
    let (by_kernel, by_shape) = (sum(&kernels.iter().collect::<Vec<_>>()), sum(&of("cold")));
    assert!((by_kernel / by_shape - 1.0).abs() < 1e-9, "{by_kernel} {by_shape}");
    assert!(by_kernel > step_flops(16, 1), "{by_kernel}");
    // No ceiling is known of a simulation.
    assert!(
        read["ceiling_flops"].is_null() && kernels.iter().all(|kernel| kernel["ceiling_share"].is_null())
    );
    let csv = std::fs::read_to_string(folder.path().join("k.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + rows.len(), "{csv}");

    let (code, stdout, _) =
        secateur(&folder, &[&tiny[..], &["--filter=head_(forward|input)", "--cache=warm"]].concat());
    assert_eq!(code, Some(0));
    assert!(stdout.contains("head_forward") && !stdout.contains("cold"), "{stdout}");
    assert!(!stdout.contains("head_weight_gradient") && !stdout.contains("conv_"), "{stdout}");
    let (code, _, stderr) = secateur(&folder, &[&tiny[..], &["--filter=no_such_kernel"]].concat());
    assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
}

#[test]
fn a_replayed_launch_computes_what_it_computed() {
    // The last kernel of the optimizer, again: momentum and weights move on as in a second step of the same gradient.
    let recipe = Recipe::load("cifar10-pgd-at", &["model.width=16".into(), "batch=1".into()]).unwrap();
    let recipe = Recipe { attack: secateur::attack::AttackConfig { steps: 1, ..recipe.attack }, ..recipe };
    let mut bench = Bench::open(DeviceChoice::Emulated, true, &recipe, 1).unwrap();
    let record = bench.record_replayable(&Work::Step, 1).unwrap();
    let at = record.launches.iter().position(|launch| launch.kernel == "sgd_step").unwrap();
    let weights = |bench: &Bench| bench.engine.weights(WeightSet::Live).unwrap();
    let before = weights(&bench);
    for cache in [Cache::Cold, Cache::Warm] {
        assert!(bench.replay(at, 1, cache).unwrap() > 0.0);
    }
    let momentum = bench.engine.optimizer().unwrap().momentum;
    assert!(weights(&bench) != before && momentum != bench.engine.weights(WeightSet::Gradients).unwrap());
    // Parameters of every launch still name memory, that of the batch included.
    for at in 0..record.launches.len() {
        bench.replay(at, 1, Cache::Warm).unwrap();
    }
    let error = bench.replay(record.launches.len(), 1, Cache::Warm).unwrap_err().to_string();
    assert!(error.contains("can be replayed"), "{error}");
    assert!(bench.record(&Work::Step, 1).is_ok() && bench.replay(0, 1, Cache::Warm).is_err());
}

#[test]
fn files_are_compared() {
    let folder = TempDir::new().unwrap();
    let args = [&["bench", "attack", "--device=cpu", "--json=a.json"], &TINY[..]].concat();
    assert_eq!(secateur(&folder, &args).0, Some(0));
    let mut write = json(&folder, "a.json");
    let mut write = |name: &str, samples: Vec<f64>| {
        write["rows"][0]["samples"] = samples.into();
        std::fs::write(folder.path().join(name), write.to_string()).unwrap();
    };
    write("a.json", times(0, 30, 1.0, 0.01));
    write("b.json", times(1, 30, 1.2, 0.01));
    write("c.json", times(2, 30, 1.0, 0.01));
    let (code, stdout, stderr) = secateur(&folder, &["bench", "compare", "a.json", "b.json"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stdout.contains("SLOWER") && stdout.contains("99 % interval"), "{stdout}");
    assert!(stderr.contains("1 of 1 rows SLOWER"), "{stderr}");
    let (code, stdout, _) = secateur(&folder, &["bench", "compare", "b.json", "a.json"]);
    assert!(code == Some(0) && stdout.contains("FASTER"), "{stdout}");
    let (code, stdout, _) = secateur(&folder, &["bench", "compare", "a.json", "c.json"]);
    assert!(code == Some(0) && stdout.contains("SAME"), "{stdout}");
    // Other work is not compared, whatever its times; nor is what is no time.
    let sound = json(&folder, "a.json");
    for (pointer, value, part) in [
        ("/recipes", serde_json::json!(["other"]), "recipes: "),
        ("/batch", 1.into(), "batch: "),
        ("/width", 64.into(), "width: "),
        ("/images", "cifar10".into(), "images: generated in the first, cifar10 in the second"),
        ("/device/kind", "cuda".into(), "device kind: cpu in the first, cuda in the second"),
        ("/kind", "bench eval".into(), "kind: bench attack in the first, bench eval in the second"),
        ("/rows/0/samples/0", 0.0.into(), "sample 0 is 0 s, expected a time above 0"),
        ("/rows/0/samples/1", (-1.0).into(), "sample 1 is -1 s, expected a time above 0"),
    ] {
        let mut other = sound.clone();
        *other.pointer_mut(pointer).unwrap() = value;
        std::fs::write(folder.path().join("other.json"), other.to_string()).unwrap();
        let (code, stdout, stderr) = secateur(&folder, &["bench", "compare", "a.json", "other.json"]);
        assert_eq!((code, stdout.as_str(), stderr.lines().count()), (Some(2), "", 1), "{pointer}: {stderr}");
        assert!(stderr.contains(part), "{pointer}: {stderr}");
        assert_eq!(stderr.contains("NOT COMPARABLE"), !pointer.contains("samples"), "{stderr}");
    }
    std::fs::write(folder.path().join("bad.json"), "{}").unwrap();
    let (code, _, stderr) = secateur(&folder, &["bench", "compare", "a.json", "bad.json"]);
    assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
    assert!(stderr.contains("bad.json"), "{stderr}");
}
