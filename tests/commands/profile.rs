//! `secateur profile`: the static table in the built program, and the record of a training step on the emulated device.

use std::collections::BTreeMap;

use secateur::engine::{DeviceChoice, Phase, Record};
use secateur::measure::ceilings::Ceilings;
use secateur::measure::profile;
use secateur::measure::trace::trace;
use secateur::measure::workload::{Bench, Work};
use secateur::model::ResNet;
use secateur::recipe::Recipe;
use tempfile::TempDir;

use crate::common::program;

/// Exit code, stdout, stderr.
fn secateur(folder: &TempDir, args: &[&str]) -> (Option<i32>, String, String) {
    program::secateur(folder.path(), args).parts()
}

#[test]
fn the_program_lists_its_kernels() {
    let (code, text, _) = secateur(&TempDir::new().unwrap(), &["profile", "--static"]);
    assert_eq!(code, Some(0), "{text}");
    for kernel in ["perturb_uniform", "conv_", "sgd"] {
        assert!(text.contains(kernel), "no {kernel} in:\n{text}");
    }
    for other in ["test_", "fault_", "im2col"] {
        assert!(!text.contains(other), "{other} in:\n{text}");
    }
}

#[test]
fn profile_needs_to_know_what() {
    let (code, _, stderr) = secateur(&TempDir::new().unwrap(), &["profile"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--static") && stderr.contains("--recipe"), "{stderr}");
}

const BATCH: usize = 2;

fn recorded(recipe: &str, attack_steps: usize) -> Record {
    let overrides =
        ["model.width=16".into(), format!("batch={BATCH}"), format!("attack.steps={attack_steps}")];
    let recipe = Recipe::load(recipe, &overrides).unwrap();
    Bench::open(DeviceChoice::Emulated, true, &recipe, 1).unwrap().record(&Work::Step, 1).unwrap()
}

/// FLOPs of one forward pass over the batch, and of its stem.
fn forward() -> (u64, u64) {
    let convs = ResNet::resnet18(16, 10).convs();
    let flops = |adds: usize| 2 * (BATCH * adds) as u64;
    (flops(convs.iter().map(|conv| conv.multiply_adds()).sum()), flops(convs[0].multiply_adds()))
}

fn convolution_flops(record: &Record) -> u64 {
    // The sum of a weight gradient's parts is counted by the kernel that adds them.
    let product = |kernel: &str| kernel.starts_with("conv_") && !kernel.contains("_reduce");
    record.launches.iter().filter(|launch| product(launch.kernel)).map(|launch| launch.flops).sum()
}

#[test]
fn a_record_accounts_for_every_launch_of_a_step() {
    let record = recorded("cifar10-pgd-at", 2);
    for launch in &record.launches {
        assert!(launch.bytes > 0 && launch.seconds > 0.0, "{launch:?}");
        assert_ne!(launch.phase, Phase::Other, "{launch:?}");
    }
    for pair in record.launches.windows(2) {
        assert!(pair[0].start + pair[0].seconds <= pair[1].start + 1e-9, "{pair:?}");
    }
    let last = record.launches.last().unwrap();
    assert!(last.start + last.seconds <= record.seconds + 1e-9);

    let mut phases: Vec<Phase> = record.launches.iter().map(|launch| launch.phase).collect();
    phases.dedup();
    let expected = [
        Phase::Gather,
        Phase::Attack,
        Phase::AttackStep(1),
        Phase::AttackStep(2),
        Phase::Train,
        Phase::Optimizer,
    ];
    assert_eq!(phases, expected);

    // Two attack steps of a forward pass and an input gradient, then forward, input gradient (but for the stem's, which
    // nobody asks for) and weight gradient.
    let (all, stem) = forward();
    assert_eq!(convolution_flops(&record), 2 * 2 * all + 3 * all - stem);

    let rows = profile::kernels(&record, &Ceilings::default(), "host");
    let calls: BTreeMap<&str, usize> = rows.iter().map(|row| (row.name.as_str(), row.calls)).collect();
    for (kernel, expected) in [
        ("gather_images", 1),
        ("batch_norm_fold", 1),
        ("perturb_uniform", 1),
        ("conv_image_sign_step_mma_128x16", 2),
        ("head_ascent_cross_entropy", 2),
        ("cross_entropy", 1),
        ("head_weight_gradient", 1),
        ("batch_norm_statistics", 20),
        ("sgd_step", 1),
    ] {
        assert_eq!(calls.get(kernel), Some(&expected), "{kernel} in {calls:?}");
    }
    assert_eq!(rows.iter().map(|row| row.calls).sum::<usize>(), record.launches.len());
    assert!((rows.iter().map(|row| row.share).sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(rows.windows(2).all(|pair| pair[0].share >= pair[1].share));
}

#[test]
fn trades_costs_what_its_passes_say() {
    // A clean forward pass for the attack, one attack step, and two train passes.
    let (all, stem) = forward();
    assert_eq!(convolution_flops(&recorded("cifar10-trades", 1)), all + 2 * all + 2 * (3 * all - stem));
}

#[test]
fn simple_kernels_cost_what_they_move() {
    let record = recorded("cifar10-pgd-at", 1);
    let bytes = |kernel: &str| record.launches.iter().find(|launch| launch.kernel == kernel).unwrap().bytes;
    let (pixels, image) = ((BATCH * 1024) as u64, (BATCH * 3072) as u64);
    // u8 and f32 images; sample, label read and label written.
    assert_eq!(bytes("gather_images"), image * 5 + 12 * BATCH as u64);
    assert_eq!(bytes("perturb_uniform"), image * 8 + 4 * BATCH as u64);
    // f32 in, eight bf16 channels out.
    assert_eq!(bytes("image_pack"), image * 4 + pixels * 16);
    // Logits and gradient, label, loss and prediction.
    assert_eq!(bytes("cross_entropy"), (BATCH * (2 * 10 + 3) * 4) as u64);
}

#[test]
fn a_trace_has_rows_of_phases_and_kernels() {
    let record = recorded("cifar10-pgd-at", 1);
    let read: serde_json::Value = serde_json::from_str(&trace(&record, "test").to_string()).unwrap();
    let events = read["traceEvents"].as_array().unwrap();
    let of = |category: &str| events.iter().filter(|event| event["cat"] == category).collect::<Vec<_>>();
    assert_eq!(of("kernel").len(), record.launches.len());
    let names: Vec<&str> = of("phase").iter().map(|event| event["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["gather", "attack", "attack 1", "train", "optimizer"]);
    for event in of("kernel").iter().chain(&of("phase")) {
        assert_eq!(event["ph"], "X");
        assert!(event["ts"].as_f64().unwrap() >= 0.0 && event["dur"].as_f64().unwrap() > 0.0, "{event}");
    }
    let sum = |events: &[&serde_json::Value]| {
        events.iter().map(|event| event["dur"].as_f64().unwrap()).sum::<f64>()
    };
    assert!(sum(&of("phase")) >= sum(&of("kernel")), "phases hold their kernels");
}

#[test]
fn the_program_profiles_a_recipe() {
    let folder = TempDir::new().unwrap();
    let tiny = ["profile", "--recipe=cifar10-pgd-at", "--width=16", "--batch=1", "--set=attack.steps=1"];
    let args = [&tiny[..], &["--device=emulated", "--steps=2", "--trace=t.json", "--json=p.json"]].concat();
    let (code, stdout, stderr) = secateur(&folder, &args);
    assert_eq!(code, Some(0), "{stderr}");
    for part in ["device ", "in 2 steps", "of roof", "registers", "conv_image_sign_step_mma_128x16"] {
        assert!(stdout.contains(part), "no {part} in:\n{stdout}");
    }
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(folder.path().join(name)).unwrap()).unwrap()
    };
    let (table, trace) = (read("p.json"), read("t.json"));
    let calls: u64 =
        table["kernels"].as_array().unwrap().iter().map(|kernel| kernel["calls"].as_u64().unwrap()).sum();
    let kernels = trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["cat"] == "kernel");
    assert_eq!(calls, kernels.count() as u64);
    assert!(
        table["kernels"].as_array().unwrap().iter().all(|kernel| kernel["seconds"].as_f64().unwrap() > 0.0)
    );

    let (code, _, stderr) = secateur(&folder, &[&tiny[..], &["--device=cpu"]].concat());
    assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
    assert!(stderr.contains("emulated"), "{stderr}");
    let (code, stdout, _) = secateur(&folder, &[&tiny[..], &["--print-command", "ncu"]].concat());
    assert_eq!(code, Some(0));
    assert!(
        stdout.starts_with("ncu --profile-from-start off") && stdout.contains("--recipe=cifar10-pgd-at"),
        "{stdout}"
    );
    assert!(!stdout.contains("print-command"), "{stdout}");
}
