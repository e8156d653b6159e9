//! `secateur bench model`: the roofline of a step, from launches that nothing runs, against the arithmetic of the layer table.

use secateur::cuda::driver::Kernel;
use secateur::engine::{DeviceChoice, Record};
use secateur::measure::model::{Part, Prediction, Roof, predict};
use secateur::measure::predict::predicted_seconds;
use secateur::measure::workload::{Bench, Work};
use secateur::model::ResNet;
use secateur::recipe::Recipe;
use tempfile::TempDir;

use crate::common::program::secateur;

fn recipe(name: &str, width: usize, batch: usize, steps: Option<usize>) -> Recipe {
    let mut overrides = vec![format!("model.width={width}"), format!("batch={batch}")];
    overrides.extend(steps.map(|steps| format!("attack.steps={steps}")));
    Recipe::load(name, &overrides).unwrap()
}

fn dry(recipe: &Recipe) -> Record {
    Bench::dry(recipe).unwrap().record(&Work::Step, 1).unwrap()
}

fn predicted(name: &str, roof: Roof) -> Prediction {
    let recipe = recipe(name, 64, 128, None);
    predict(&dry(&recipe), name, ResNet::resnet18(64, 10), 128, roof)
}

const COMPUTE_ONLY: Roof = Roof { flops: 790e12, bytes: f64::INFINITY };

#[test]
fn seconds_an_epoch_are_those_of_the_methods_units() {
    // A unit is a forward pass, an input gradient or a weight gradient: 1.111 GFLOP an image at width 64. At 790 TFLOP/s an
    // epoch of PGD-10 AT takes 1.62 s. What launches do besides convolving stays below one percent.
    for (name, units, seconds) in
        [("cifar10-pgd-at", 23.0, 1.62), ("cifar10-mart", 26.0, 1.83), ("cifar10-trades", 27.0, 1.90)]
    {
        let actual = predicted(name, COMPUTE_ONLY);
        assert!(
            (actual.units / units - 1.0).abs() < 0.01,
            "{name}: {} units, expected {units}",
            actual.units
        );
        assert!((actual.epoch_seconds / seconds - 1.0).abs() < 0.01, "{name}: {} s", actual.epoch_seconds);
        assert!((actual.seconds - actual.flops / 790e12).abs() < 1e-9 * actual.seconds);
        assert_eq!(actual.memory_seconds, 0.0);
        assert!((actual.images_per_second * actual.epoch_seconds / 50_000.0 - 1.0).abs() < 1e-9);
    }
}

#[test]
fn large_batches_stay_within_indices_of_32_bits() {
    // A launch beyond the limits of a grid is refused as it is made.
    for (name, classes) in [("cifar10-pgd-at", 10), ("cifar100-trades", 100), ("cifar100-mart", 100)] {
        for batch in [512, 1024] {
            let recipe = recipe(name, 64, batch, Some(1));
            assert_eq!(secateur::train::network(&recipe).classes, classes);
            let launches = dry(&recipe).launches;
            assert!(launches.len() > 100, "{name}: {} launches", launches.len());
            for launch in launches {
                // A thread takes up to four elements.
                let threads = Kernel::named(launch.kernel).unwrap().threads();
                let last = u64::from(launch.grid[0]) * u64::from(threads) * 4;
                assert!(last <= u64::from(u32::MAX), "{name}, batch {batch}: {launch:?}");
            }
        }
    }
}

#[test]
fn memory_only_adds() {
    let actual = predicted("cifar10-pgd-at", Roof::H200);
    let compute = predicted("cifar10-pgd-at", COMPUTE_ONLY);
    assert!(
        actual.seconds > compute.seconds
            && actual.seconds < compute.seconds + actual.bytes / Roof::H200.bytes
    );
    assert!(actual.memory_seconds > 0.0 && actual.memory_seconds < actual.seconds);
    let sum = |of: fn(&Part) -> f64| actual.parts.iter().map(of).sum::<f64>();
    assert!((sum(|part| part.seconds) / actual.seconds - 1.0).abs() < 1e-12);
    // Memory alone: every launch is bound by it.
    let memory = predicted("cifar10-pgd-at", Roof { flops: f64::INFINITY, bytes: 1e12 });
    assert!((memory.seconds / (memory.bytes / 1e12) - 1.0).abs() < 1e-9);
    assert!((memory.memory_seconds / memory.seconds - 1.0).abs() < 1e-9);
}

#[test]
fn every_layer_has_its_passes() {
    let actual = predicted("cifar10-pgd-at", COMPUTE_ONLY);
    let network = ResNet::resnet18(64, 10);
    for (at, conv) in network.convs().iter().enumerate() {
        let of = |pass: &str| {
            let part = actual.parts.iter().find(|part| part.layer == conv.name && part.pass == pass);
            part.unwrap_or_else(|| panic!("{} has no {pass}", conv.name)).flops
        };
        // Ten attack steps and the train pass; nobody asks for the stem's input gradient when training.
        let one = 2.0 * 128.0 * conv.multiply_adds() as f64;
        for (pass, times) in [
            ("forward", 11.0),
            ("input gradient", if at == 0 { 10.0 } else { 11.0 }),
            ("weight gradient", 1.0),
        ] {
            // The rest is BatchNorm, the sign step, and the sum of a weight gradient's parts.
            let share = of(pass) / (times * one);
            assert!((1.0..1.35).contains(&share), "{} {pass}: {share}", conv.name);
        }
    }
    assert!(actual.parts.iter().any(|part| part.layer == "linear" && part.pass == "weight gradient"));
    assert!(actual.parts.iter().any(|part| part.layer == "-" && part.pass == "sgd_step"));
}

#[test]
fn a_dry_step_launches_what_a_real_one_does() {
    let recipe = recipe("cifar10-trades", 16, 2, Some(1));
    let mut real = Bench::open(DeviceChoice::EmulatedHopper, true, &recipe, 1).unwrap();
    let real = real.record(&Work::Step, 1).unwrap();
    let launches = |record: &Record| -> Vec<_> {
        let launch = |launch: &secateur::engine::Launch| {
            (launch.kernel, launch.grid, launch.phase, launch.layer, launch.flops, launch.bytes)
        };
        record.launches.iter().map(launch).collect()
    };
    assert_eq!(launches(&dry(&recipe)), launches(&real));
}

#[test]
fn an_attack_takes_what_the_machine_code_says() {
    // The desk audit of 2026-11-28, in TFLOP/s of the convolutions: 535 to 600 where the stages after the first take 512 images, 420 to
    // 450 at 128, and 8 to 9 % more of epilogues in registers.
    for (batch, least, most) in [(512, 1.08 * 535.0, 1.09 * 600.0), (128, 1.08 * 420.0, 1.09 * 450.0)] {
        let mut bench = Bench::dry(&recipe("cifar10-pgd-at", 64, batch, None)).unwrap();
        let record = bench.record(&Work::Attack, 1).unwrap();
        let seconds = predicted_seconds(&bench.engine, &record.launches).unwrap();
        let flops: f64 = record.launches.iter().map(|launch| launch.flops as f64).sum();
        let rate = flops / seconds / 1e12;
        println!("{batch} images: {:.3} ms, {rate:.0} TFLOP/s", 1e3 * seconds);
        assert!((least..=most).contains(&rate), "{batch} images: {rate} TFLOP/s");

        // The stem and the image gradient of a step: 160 to 180 us of 512 images.
        let stem: Vec<_> = record.launches.iter().filter(|launch| launch.layer == Some(0)).copied().collect();
        let step = predicted_seconds(&bench.engine, &stem).unwrap() / 10.0 / batch as f64 * 512.0;
        assert!((160e-6..=185e-6).contains(&step), "{batch} images: {step} s");
        // A launch of no convolution has a prediction as well, and one of an unknown layer none.
        assert!(record.launches.iter().all(|launch| predicted_seconds(&bench.engine, &[*launch]).is_some()));
        let unknown = secateur::engine::Launch { layer: Some(99), ..stem[0] };
        assert_eq!(predicted_seconds(&bench.engine, &[unknown]), None);
        assert_eq!(predicted_seconds(&bench.engine, &[]), None);
    }
}

#[test]
fn every_launch_of_a_step_has_a_prediction() {
    for name in ["cifar10-pgd-at", "cifar10-trades", "cifar10-mart"] {
        let recipe = recipe(name, 64, 128, Some(1));
        let mut bench = Bench::dry(&recipe).unwrap();
        let record = bench.record(&Work::Step, 1).unwrap();
        let least = predict(&record, name, bench.engine.network(), 128, Roof::H200).seconds;
        let seconds = predicted_seconds(&bench.engine, &record.launches).unwrap();
        assert!(least < seconds && seconds < 4.0 * least, "{name}: {seconds} s, {least} s by the roof");
    }
}

#[test]
fn the_command_prints_layers_and_steps() {
    let folder = TempDir::new().unwrap();
    let run = |args: &[&str]| secateur(folder.path(), args).parts();
    let model = ["bench", "model", "--width=16", "--batch=8"];
    let (code, stdout, stderr) = run(&[&model[..], &["--bytes=inf", "--json=m.json"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    for part in ["layer4.1.conv2", "weight gradient", "50k epoch", "cifar10-mart", "790 TFLOP/s, inf TB/s"] {
        assert!(stdout.contains(part), "no {part} in:\n{stdout}");
    }
    let read: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("m.json")).unwrap()).unwrap();
    let steps = read["steps"].as_array().unwrap();
    assert_eq!((steps.len(), &steps[0]["recipe"]), (3, &"cifar10-pgd-at".into()));
    assert!((steps[0]["units"].as_f64().unwrap() - 23.0).abs() < 1.0, "{}", steps[0]["units"]);
    let (code, stdout, stderr) =
        run(&[&model[..], &["--recipe=cifar10-pgd-at", "--gpus=12", "--json=m.json"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    for part in
        ["not measured", "NVLink 450 GB/s and network 50 GB/s", "the batch divided", "12 GPUs", "efficiency"]
    {
        assert!(stdout.contains(part), "no {part} in:\n{stdout}");
    }
    let read: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("m.json")).unwrap()).unwrap();
    let scaling = &read["scaling"]["cifar10-pgd-at"];
    let gpus = |at: usize| -> Vec<u64> {
        scaling[at].as_array().unwrap().iter().map(|step| step["gpus"].as_u64().unwrap()).collect()
    };
    // Eight images are no share of twelve.
    assert_eq!((gpus(0), gpus(1)), (vec![1, 2, 4, 8], vec![1, 2, 4, 8, 12]));
    for step in scaling[1].as_array().unwrap() {
        let of = |key: &str| step[key].as_f64().unwrap();
        assert_eq!(of("batch"), 8.0 * of("gpus"));
        assert!((of("share_seconds") + of("all_reduce_seconds") - of("seconds")).abs() < 1e-12);
        assert!(of("efficiency") <= 1.0 && of("efficiency") > 0.5, "{step}");
    }
    for (wrong, part) in [
        ("--flops=0", "above 0"),
        ("--recipe=cifar10-trades-bullet", "accelerate.method=none"),
        ("--gpus=0", "0 is not in 1..=1024"),
    ] {
        let (code, _, stderr) = run(&[&model[..], &[wrong]].concat());
        assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    }
}
