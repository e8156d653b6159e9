//! Launches that are recorded and replayed: what a driver promises, and training, which must not tell the difference.
//!
//! When an engine records and what it keeps is tested with the cache, in src/cuda/graphs.rs.

use std::rc::Rc;

use secateur::attack::Pgd;
use secateur::batch::Batch;
use secateur::cuda::driver::record::Recorder;
use secateur::cuda::driver::{Address, Buffer, Driver, Kernel};
use secateur::data::{DataSet, SetKind};
use secateur::engine::{DeviceOptions, GradRequest, Pass, Phase, Sgd, SignStep, WeightSet, open_with};
use secateur::model::{ResNet, Weights, initialise};
use secateur::ops::rows::{self, Rows};
use secateur::ops::{AscentLoss, ImageSet, Noise, PairedForm, PairedLoss};
use secateur::philox::{Key, Purpose};

use crate::common::*;

/// Launches a copy of four words; a kernel that runs on every driver.
fn copy(driver: &dyn Driver, from: &Buffer, to: Address, first: &Buffer) {
    let (from, rows) = (from.address(), first.address());
    let rows = Rows { from, to, rows, count: 4, limit: 4, row_len: 1 };
    rows::gather_rows(driver, &rows).unwrap();
}

#[test]
fn a_graph_is_recorded_without_being_done_and_reads_what_is_there_when_it_is_replayed() {
    on_every_driver("graphs", |driver| {
        let order = input(driver, "rows", &[3u32, 2, 1, 0]);
        let numbers = input(driver, "numbers", &[1u32, 2, 3, 4]);
        let middle = input(driver, "middle", &[0u32; 4]);
        let last = Output::new::<u32>(driver, "last", 4);
        // Loads the kernel's code.
        copy(&**driver, &numbers, middle.address(), &order);
        driver.write(middle.address(), &[0; 16]).unwrap();

        driver.begin_capture().unwrap();
        copy(&**driver, &numbers, middle.address(), &order);
        driver.phase(Phase::AttackStep(2));
        copy(&**driver, &middle, last.address(), &order);
        for refused in [
            driver.begin_capture(),
            driver.write(numbers.address(), &[0; 16]),
            driver.read(numbers.address(), &mut [0; 16]),
            driver.fill(middle.address(), 0, 16),
            driver.copy(numbers.address(), middle.address(), 16),
            driver.synchronize(),
            driver.alloc("no", 16).map(drop),
        ] {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("inside a capture"), "{error}");
        }
        let graph = driver.end_capture().unwrap();
        assert!(driver.end_capture().is_err(), "no capture is open");
        assert_eq!(last.read::<u32>(), [u32::MAX; 4], "recorded, not done");
        let phases: Vec<Option<Phase>> = graph.launches().iter().map(|launch| launch.phase).collect();
        assert_eq!(phases, [None, Some(Phase::AttackStep(2))]);

        driver.replay(&graph).unwrap();
        assert_eq!(middle.to_vec::<u32>().unwrap(), [4, 3, 2, 1]);
        assert_eq!(last.read::<u32>(), [1, 2, 3, 4]);
        driver.write(numbers.address(), bytemuck::cast_slice(&[5u32, 6, 7, 8])).unwrap();
        driver.replay(&graph).unwrap();
        driver.replay(&graph).unwrap();
        assert_eq!(last.read::<u32>(), [5, 6, 7, 8]);
        drop(graph);
        last.read()
    });
}

#[test]
fn a_record_lists_every_launch_of_a_replay() {
    for (name, driver) in drivers() {
        let (driver, mut recording) = Recorder::wrap(driver);
        let order = input(&driver, "rows", &[0u32, 1, 2, 3]);
        let numbers = input(&driver, "numbers", &[1u32, 2, 3, 4]);
        let last = Output::new::<u32>(&driver, "last", 4);
        copy(&*driver, &numbers, last.address(), &order);
        let record = |driver: &Rc<dyn Driver>| {
            driver.begin_capture().unwrap();
            for step in 1..=3 {
                driver.phase(Phase::AttackStep(step));
                driver.layer(Some(step as usize));
                copy(&**driver, &numbers, last.address(), &order);
            }
            driver.layer(None);
            driver.end_capture().unwrap()
        };
        let graph = record(&driver);
        recording.start(false).unwrap();
        // A recording is no launch, also while a record is kept.
        drop(record(&driver));
        driver.phase(Phase::Other);
        driver.replay(&graph).unwrap();
        let kept = recording.stop().unwrap();
        let phases: Vec<Phase> = kept.launches.iter().map(|launch| launch.phase).collect();
        assert_eq!(phases, [1, 2, 3].map(Phase::AttackStep), "{name}");
        let layers: Vec<Option<usize>> = kept.launches.iter().map(|launch| launch.layer).collect();
        assert_eq!(layers, [1, 2, 3].map(Some), "{name}");
        let kernel = Kernel::named("gather_rows").unwrap();
        assert!(kept.launches.iter().all(|launch| launch.kernel == kernel.name() && launch.bytes > 0));
    }
}

const NETWORK: ResNet = ResNet::resnet18(16, 10);

/// Adversarial training on whole and smaller batches, with one train pass and with two, the step size changed on the way, then
/// attacks on both sets of weights.
fn train(replays: bool, early: bool) -> (Weights, Vec<Vec<f32>>) {
    let options = DeviceOptions { graphs: replays, dependent_launch: early, ..DeviceOptions::default() };
    let mut engine = open_with(cuda_engine(), NETWORK, 3, options).unwrap();
    let engine = &mut engine;
    engine.load_weights(&initialise(NETWORK, SEED)).unwrap();
    let data = DataSet::open(SetKind::Generated, None, Some(9), Some(1)).unwrap();
    let set = ImageSet::upload(engine, &data.train.pixels, &data.train.labels).unwrap();
    let whole = Batch::alloc(engine, 3).unwrap();
    let mut pgd = Pgd {
        start: Some(Noise::Uniform { radius: 8.0 / 255.0 }),
        step: SignStep { step_size: 2.0 / 255.0, epsilon: 8.0 / 255.0 },
        steps: 1,
        pass: Pass::EvalSplit,
    };
    let key = |step| Key { seed: SEED, purpose: Purpose::AttackStart, epoch: 0, step };
    let mut images = Vec::new();
    for step in 0..9u32 {
        let batch = if step % 3 == 2 { whole.rows(0..2) } else { whole.clone() };
        let samples: Vec<u32> = (0..batch.len() as u32).map(|i| (3 * step + i) % 9).collect();
        engine.write(&batch.samples, &samples).unwrap();
        engine.run(&batch.gather(&set, None)).unwrap();
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        if step == 4 {
            pgd.step.step_size = 1.0 / 255.0;
        }
        pgd.perturb(engine, AscentLoss::CrossEntropy, key(step), &batch).unwrap();
        images.push(engine.read(&batch.perturbed).unwrap());
        let scale = 1.0 / batch.len() as f32;
        if step % 2 == 0 {
            let pass = Pass::Train { slot: 0 };
            engine.forward(pass, &batch.perturbed, &batch.logits).unwrap();
            engine.run(&batch.cross_entropy(scale)).unwrap();
            engine.backward(pass, &batch.logit_gradient, GradRequest::PARAMETERS).unwrap();
        } else {
            let logits = [&batch.clean_logits, &batch.logits];
            engine.forward(Pass::Pair, [&batch.images, &batch.perturbed], logits).unwrap();
            let outputs = batch.paired_outputs();
            engine
                .run(&PairedLoss {
                    form: PairedForm::Trades { smoothing: 0.1 },
                    divergence: 6.0,
                    scale,
                    clean_logits: logits[0],
                    adversarial_logits: logits[1],
                    labels: &batch.labels,
                    weights: None,
                    outputs,
                })
                .unwrap();
            engine
                .backward(Pass::Pair, [&batch.clean_gradient, &batch.logit_gradient], GradRequest::PARAMETERS)
                .unwrap();
        }
        // Rate, momentum and decay of the average change in every step, as a schedule changes them.
        let learning_rate = 0.05 - 0.003 * step as f32;
        let momentum = 0.8 + 0.01 * step as f32;
        let average_decay = (step > 1).then_some((1 + step) as f32 / (10 + step) as f32);
        let sgd = Sgd { learning_rate, momentum, weight_decay: 5e-4, average_decay, ..Sgd::ZERO };
        engine.step(&sgd).unwrap();
    }
    // One batch at one place: only the weights differ.
    for set in [WeightSet::Live, WeightSet::Average, WeightSet::Live, WeightSet::Average] {
        engine.fold_batch_norm(set).unwrap();
        pgd.perturb(engine, AscentLoss::CrossEntropy, key(99), &whole).unwrap();
        images.push(engine.read(&whole.perturbed).unwrap());
    }
    (engine.weights(WeightSet::Live).unwrap(), images)
}

#[test]
fn training_and_evaluation_are_the_same_bits_with_replays_early_starts_and_without() {
    println!("seed {SEED}");
    let expected = train(false, false);
    for (replays, early) in [(true, true), (true, false), (false, true)] {
        let actual = train(replays, early);
        let of = format!("replays {replays}, early starts {early}, seed {SEED}");
        for (step, (actual, expected)) in actual.1.iter().zip(&expected.1).enumerate() {
            assert!(actual == expected, "images of attack {step} differ, {of}");
        }
        assert!(actual.0 == expected.0, "weights differ, {of}");
    }
    let [.., live, average, live_again, average_again] = &expected.1[..] else { panic!("four attacks") };
    assert!(live != average && live == live_again && average == average_again);
}
