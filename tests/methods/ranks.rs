//! Engines that share every batch: their gradients are those of one engine that takes the shares one after another, their selections
//! those of one engine, and a run of them repeats and resumes to the same bits.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::Mutex;
use std::thread;

use secateur::accelerate::Grouping;
use secateur::batch::{Batch, Share};
use secateur::collective::{Threads, share, shared_items};
use secateur::data::order::{Split, epoch_order};
use secateur::engine::{DeviceChoice, Engine, Error, Pass, WeightSet, open};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ParameterKind, Weights, initialise};
use secateur::objective::Method;
use secateur::ops::ImageSet;
use secateur::philox::{Key, Purpose};
use secateur::progress::{Event, ProgressSink};
use secateur::recipe::Recipe;
use secateur::train::result::Summary;
use secateur::train::run_folder::RunFolder;
use secateur::train::{self, TrainError, Trainer, TrainingRun, TrainingSetup, ranks};

use crate::common;
use crate::common::Random;
use crate::common::tiny::{BATCH, Bench, METHODS, metrics, newest, of_method, recipe, timeless, train_in};

/// What `work` returns on each rank, which has an engine of the network of the recipe that is a rank of the group.
fn on_ranks<T: Send>(
    device: DeviceChoice,
    recipe: &Recipe,
    ranks: usize,
    work: impl Fn(&mut Engine) -> T + Sync,
) -> Vec<T> {
    thread::scope(|scope| {
        let work = &work;
        let start = |group: Threads| {
            scope.spawn(move || {
                let mut engine = open(device, train::network(recipe), recipe.batch).unwrap();
                engine.join(Rc::new(group)).unwrap();
                work(&mut engine)
            })
        };
        let started: Vec<_> = Threads::group(ranks).into_iter().map(start).collect();
        started.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Ten images in shares of 3, 3 and 4.
const IMAGES: usize = 10;

/// Loss and gradient of a share of ten images with weights on their losses, and the running statistics after it.
struct Given {
    losses: Vec<f32>,
    gradients: Weights,
    live: Weights,
}

fn gradient(engine: &mut Engine, recipe: &Recipe, range: std::ops::Range<usize>) -> Given {
    let data = recipe.data.open(None).unwrap();
    let set = ImageSet::upload(engine, &data.train.pixels, &data.train.labels).unwrap();
    engine.load_weights(&initialise(train::network(recipe), recipe.seed)).unwrap();
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    let samples: Vec<u32> = range.clone().map(|sample| sample as u32).collect();
    let mut batch = Batch::alloc(engine, samples.len()).unwrap();
    batch = batch.gathered(engine, &set, &samples, None).unwrap();
    let weights = Random::new(1).uniforms(IMAGES, 0.2, 3.0);
    batch.weights = Some(engine.upload("weights", &weights[range.clone()]).unwrap());
    batch.share = Share { first: range.start, images: IMAGES };
    let mut objective = recipe.new_objective();
    let key = Key { seed: recipe.seed, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
    objective.attack(engine, key, &batch).unwrap();
    objective.gradient(engine, &batch).unwrap();
    engine.average_statistics().unwrap();
    Given {
        losses: engine.read(&batch.losses).unwrap(),
        gradients: engine.weights(WeightSet::Gradients).unwrap(),
        live: engine.weights(WeightSet::Live).unwrap(),
    }
}

/// Values of all ranks together, in their order.
fn together(parts: &[Weights], of: impl Fn(f32, f32) -> f32, last: impl Fn(f32) -> f32) -> Weights {
    let mut all = parts[0].clone();
    for part in &parts[1..] {
        for (name, tensor) in &mut all.tensors {
            tensor.values.iter_mut().zip(&part.tensors[name].values).for_each(|(a, b)| *a = of(*a, *b));
        }
    }
    all.tensors.values_mut().flat_map(|tensor| &mut tensor.values).for_each(|value| *value = last(*value));
    all
}

fn shares_add_up(device: DeviceChoice, method: Method, ranks: usize) {
    let recipe = of_method(method, &["batch=10", "data.train_limit=10", "data.augment=false"]);
    let shares: Vec<_> = (0..ranks).map(|rank| share(0..IMAGES, rank, ranks)).collect();
    let one_by_one: Vec<Given> = shares
        .iter()
        .map(|share| {
            let mut engine = open(device, train::network(&recipe), recipe.batch).unwrap();
            gradient(&mut engine, &recipe, share.clone())
        })
        .collect();
    let of = |get: fn(&Given) -> &Weights| -> Vec<Weights> {
        one_by_one.iter().map(|given| get(given).clone()).collect()
    };
    let sum = together(&of(|given| &given.gradients), |a, b| a + b, |sum| sum);
    let mean = together(&of(|given| &given.live), |a, b| a + b, |sum| sum / ranks as f32);

    let done = on_ranks(device, &recipe, ranks, |engine| {
        let own = engine.share(0..IMAGES);
        gradient(engine, &recipe, own)
    });
    for (rank, (actual, alone)) in done.iter().zip(&one_by_one).enumerate() {
        let what = format!("{method} on {device:?}, rank {rank} of {ranks}");
        assert_eq!(common::words(&actual.losses), common::words(&alone.losses), "{what}: losses");
        assert!(actual.losses.iter().all(|loss| *loss > 0.0), "{what}");
        assert!(actual.gradients == sum, "{what}: gradients");
        assert!(actual.gradients != alone.gradients, "{what}: nothing was added");
        for parameter in train::network(&recipe).parameters() {
            let [actual, mean] = [&actual.live, &mean].map(|weights| &weights.tensors[&parameter.name]);
            if !parameter.kind.trainable() {
                assert!(actual == mean, "{what}: {}", parameter.name);
            }
        }
    }
}

/// BatchNorm has the statistics of each share, so this is not the gradient of the whole batch; that is tested below, on shares that
/// have the same.
#[test]
fn gradients_are_the_sum_of_those_of_the_shares() {
    for method in METHODS {
        shares_add_up(DeviceChoice::Cpu, method, 3);
    }
    for ranks in [2, 4] {
        shares_add_up(DeviceChoice::Cpu, Method::PgdAt, ranks);
    }
}

#[test]
fn gradients_of_the_emulated_device_are_those_of_the_shares() {
    shares_add_up(common::cuda_engine(), Method::Mart, 2);
}

/// Initial weights with large BatchNorm biases, so that no rounding of the statistics flips a ReLU.
fn steady(recipe: &Recipe) -> Weights {
    let network = train::network(recipe);
    let (mut weights, mut random) = (initialise(network, recipe.seed), Random::new(2));
    for parameter in network.parameters() {
        let (low, high) = match parameter.kind {
            ParameterKind::BnWeight => (0.4, 0.8),
            ParameterKind::BnBias => (2.2, 2.6),
            _ => continue,
        };
        let values = random.uniforms(parameter.len(), low, high);
        weights.insert(parameter.name.as_str(), &parameter.shape, values);
    }
    weights
}

/// Images whose every share has the same four, so that its batch statistics are those of the whole batch: then ranks train as one
/// engine does, but for the unbiased variance of a share.
fn equal_shares_train_as_one(device: DeviceChoice, ranks: usize, whole: f64) {
    let batch = 4 * ranks;
    let (batch_text, limit) = (format!("batch={batch}"), format!("data.train_limit={batch}"));
    let recipe = recipe(&[
        &batch_text,
        &limit,
        "epochs=1",
        "data.augment=false",
        "attack.steps=2",
        "attack.start=none",
        "schedule.kind=constant",
        "optimizer.average_decay=0.5",
    ]);
    let data = recipe.data.open(None).unwrap();
    let samples: Vec<u32> = (0..batch as u32).collect();
    let order = epoch_order(recipe.seed, 0, &samples);
    let (mut pixels, mut labels) = (data.train.pixels.clone(), data.train.labels.clone());
    for (at, &sample) in order.iter().enumerate() {
        let (to, from) = (sample as usize * IMAGE_LEN, at % 4 * IMAGE_LEN);
        pixels[to..to + IMAGE_LEN].copy_from_slice(&data.train.pixels[from..from + IMAGE_LEN]);
        labels[sample as usize] = data.train.labels[at % 4];
    }
    let split = Split { train: samples, ..Split::default() };
    let before = steady(&recipe);
    let step = |engine: &mut Engine| {
        let set = ImageSet::upload(engine, &pixels, &labels).unwrap();
        engine.load_weights(&before).unwrap();
        let mut trainer = Trainer::new(engine, &recipe, &set, &split).unwrap();
        let outcome = trainer.epoch(&mut |_| true).unwrap().unwrap();
        (outcome.samples.losses, trainer.checkpoint().unwrap())
    };
    let mut engine = open(device, train::network(&recipe), recipe.batch).unwrap();
    let (losses, alone) = step(&mut engine);
    let losses: Vec<f64> = losses.into_iter().map(f64::from).collect();

    let done = on_ranks(device, &recipe, ranks, step);
    let again = on_ranks(device, &recipe, ranks, step);
    assert!(
        again[0].0 == done[0].0 && again[0].1.weights == done[0].1.weights,
        "{device:?}: other bits once more"
    );
    for (rank, (actual, checkpoint)) in done.iter().enumerate() {
        let what = format!("{device:?}, rank {rank} of {ranks}");
        let bound = common::Bound { absolute: 1e-6, relative: 4.0 * whole, whole };
        common::assert_close(&format!("{what}: losses"), actual, &losses, bound);
        assert!(checkpoint.weights == done[0].1.weights, "{what}: other weights than rank 0");
        assert!(checkpoint.optimizer == done[0].1.optimizer, "{what}: another average than rank 0");
        assert_eq!(checkpoint.progress.epoch_attacks, alone.progress.epoch_attacks, "{what}: attack work");
        let (mut difference, mut moved) = (0.0, 0.0);
        for parameter in train::network(&recipe).parameters() {
            let of = |weights: &Weights| weights.tensors[&parameter.name].values.clone();
            let (actual, expected, before) = (of(&checkpoint.weights), of(&alone.weights), of(&before));
            match parameter.kind {
                ParameterKind::BnRunningVar => continue,
                ParameterKind::BnRunningMean => {
                    let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
                    let bound = common::Bound { absolute: whole, relative: whole, whole };
                    common::assert_close(&format!("{what}: {}", parameter.name), &actual, &expected, bound);
                    continue;
                }
                _ => {}
            }
            for ((actual, expected), before) in actual.iter().zip(expected).zip(before) {
                difference += f64::from(actual - expected).powi(2);
                moved += f64::from(expected - before).powi(2);
            }
        }
        let distance = (difference / moved).sqrt();
        println!("{what}: {distance:e} of the step");
        assert!(distance < whole && moved > 0.0, "{what}: {distance:e} of the step, bound {whole:e}");
    }
}

#[test]
fn equal_shares_train_as_one_engine_on_the_whole_batch() {
    for ranks in [2, 3, 4] {
        equal_shares_train_as_one(DeviceChoice::Cpu, ranks, 1e-5);
    }
}

/// Where the statistics of three shares differ in their last bits, so does what is rounded to bf16: by 2^-9 of a value.
#[test]
fn equal_shares_train_as_one_engine_on_the_emulated_device() {
    for ranks in [2, 3, 4] {
        equal_shares_train_as_one(common::cuda_engine(), ranks, 1e-3);
    }
}

/// Says what it was told, and asks to stop at one question.
struct Stopping {
    stop_after: Option<usize>,
    asked: Mutex<usize>,
    warnings: Mutex<Vec<String>>,
}

impl Stopping {
    fn after(stop_after: Option<usize>) -> Self {
        Self { stop_after, asked: Mutex::default(), warnings: Mutex::default() }
    }
}

impl ProgressSink for Stopping {
    fn event(&self, event: Event) {
        if let Event::Warning(text) = event {
            self.warnings.lock().unwrap().push(text.into());
        }
    }
    fn stop(&self) -> bool {
        let mut asked = self.asked.lock().unwrap();
        *asked += 1;
        self.stop_after == Some(*asked)
    }
}

/// Starts or resumes a run of several engines on the CPU.
fn train_on(
    ranks: usize,
    recipe: &Recipe,
    folder: &Path,
    progress: &Stopping,
) -> Result<Summary, TrainError> {
    let data = recipe.data.open(None).unwrap();
    let setup = TrainingSetup { recipe, data: &data, data_path: None };
    let open = |_| open(DeviceChoice::Cpu, train::network(recipe), recipe.batch);
    ranks::on_threads(ranks, &open, setup, Some(folder), |engine| {
        TrainingRun::start_or_resume(engine, setup, folder)?.run(progress)
    })
}

fn assert_same_run(actual: &Path, expected: &Path, what: &str) {
    let last = |folder: &Path| fs::read(folder.join("last.safetensors")).unwrap();
    assert!(last(actual) == last(expected), "{what}: other weights");
    assert_eq!(timeless(actual), timeless(expected), "{what}");
    let (actual, expected) = (newest(actual), newest(expected));
    assert!(actual.weights == expected.weights && actual.optimizer == expected.optimizer, "{what}");
    assert!(actual.objective == expected.objective && actual.selection == expected.selection, "{what}");
}

/// 60 images in batches of 16, then 12: shares of 6, 5 and 5, and of 4.
fn a_run_repeats_and_resumes(recipe: &Recipe, ranks: usize, stops: &[usize]) {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let [whole, again, broken] = &folders[..] else { panic!("three folders") };
    for folder in [whole, again] {
        train_on(ranks, recipe, folder.path(), &Stopping::after(None)).unwrap();
    }
    assert_same_run(again.path(), whole.path(), "once more");
    for &stop_after in stops {
        let done = train_on(ranks, recipe, broken.path(), &Stopping::after(Some(stop_after)));
        let error = done.unwrap_err();
        assert!(matches!(error, TrainError::Interrupted { .. }), "{error}");
    }
    train_on(ranks, recipe, broken.path(), &Stopping::after(None)).unwrap();
    assert_same_run(broken.path(), whole.path(), "broken and resumed");
    assert_eq!(newest(whole.path()).progress.ranks, Some(ranks));
    let sessions = RunFolder::open(broken.path()).sessions().unwrap();
    assert_eq!(sessions.len(), stops.len() + 1);
    assert!(sessions.iter().all(|session| session["ranks"] == ranks));
}

const SHORT: &str = "epochs=2";

#[test]
fn a_run_of_several_engines_repeats_and_resumes_to_the_same_bits() {
    let recipe = of_method(Method::Trades, &[SHORT, "optimizer.average_decay=0.8"]);
    a_run_repeats_and_resumes(&recipe, 3, &[2, 3]);
}

/// The last batch has 12 images for 4 ranks, then a run of 62 images has 14, and one of 50 two.
#[test]
fn what_is_carried_from_batch_to_batch_is_that_of_all_ranks() {
    let bullet_train =
        ["accelerate.method=bullet-train", "accelerate.super_batch=2", "accelerate.warmup_accuracy=0.1"];
    let set = [&[SHORT, "data.train_limit=50", "objective.awp=0.005"], &bullet_train[..]].concat();
    a_run_repeats_and_resumes(&of_method(Method::PgdAt, &set), 4, &[3]);
    let set = [SHORT, "data.train_limit=50", "accelerate.method=bullet-train"];
    a_run_repeats_and_resumes(&of_method(Method::Free, &set), 3, &[3]);
}

#[test]
fn a_run_with_selections_repeats_and_resumes_to_the_same_bits() {
    let set = [
        "epochs=4",
        "selection.method=el2n",
        "selection.fraction=0.5",
        "selection.every=1",
        "selection.warm_start=0.25",
        "attack.steps=1",
    ];
    // In the first epoch, and in a selection.
    a_run_repeats_and_resumes(&recipe(&set), 3, &[2, 4]);
}

/// Ranks attack and pass a share of the candidates each, and know as much as one engine that passes all.
#[test]
fn selections_are_those_of_one_engine() {
    let selections = |folder: &Path| -> BTreeMap<_, _> {
        let entries = fs::read_dir(folder.join("selection")).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| (path.file_name().unwrap().to_owned(), fs::read(path).unwrap())).collect()
    };
    for method in ["adv-grad-match", "adv-glister", "easy-core", "grand"] {
        let method = format!("selection.method={method}");
        let set = [
            &method,
            "epochs=1",
            "data.train_limit=80",
            "data.validation=20",
            "evaluation.best_by=pgd1",
            "objective.method=trades",
            "selection.fraction=0.4",
            "selection.every=1",
            "selection.warm_start=0",
            "attack.steps=1",
        ];
        let recipe = recipe(&set);
        let [alone, shared] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        train_in(&recipe, alone.path(), None).unwrap();
        train_on(3, &recipe, shared.path(), &Stopping::after(None)).unwrap();
        let (alone, shared) = (selections(alone.path()), selections(shared.path()));
        assert_eq!(alone.len(), 1, "{method}");
        assert!(alone == shared, "{method}: another subset");
    }
}

/// BulletTrain's threshold is of the whole batch, and what it learns of all shares.
#[test]
fn groups_are_those_of_the_whole_batch() {
    let recipe = recipe(&["accelerate.method=bullet-train"]);
    let mut bench = Bench::new(&recipe);
    let weights = bench.engine.weights(WeightSet::Live).unwrap();
    let grouping = || {
        let mut grouping = Grouping::new(&recipe.accelerate);
        grouping.set_accuracy(0.3);
        grouping
    };
    let mut alone = grouping();
    let expected = alone.divide(&mut bench.engine, &bench.batch).unwrap();
    alone.learn(&bench.engine, 3, BATCH).unwrap();
    let mut of_shares = Vec::new();
    for rank in 0..3 {
        let own = share(0..BATCH, rank, 3);
        let groups = grouping().divide(&mut bench.engine, &bench.batch.rows(own.clone())).unwrap();
        of_shares.extend(groups.robust.into_iter().map(|place| place + own.start as u32));
    }
    assert_ne!(of_shares, expected.robust, "each share has the threshold of all: the test would see nothing");
    assert!(!expected.robust.is_empty() && !expected.boundary.is_empty(), "{expected:?}");

    let data = recipe.data.open(None).unwrap();
    let done = on_ranks(DeviceChoice::Cpu, &recipe, 3, |engine| {
        let set = ImageSet::upload(engine, &data.train.pixels, &data.train.labels).unwrap();
        engine.load_weights(&weights).unwrap();
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        let own = engine.share(0..BATCH);
        let samples: Vec<u32> = own.clone().map(|sample| sample as u32).collect();
        let batch =
            Batch::alloc(engine, samples.len()).unwrap().gathered(engine, &set, &samples, None).unwrap();
        let mut grouping = grouping();
        let groups = grouping.divide(engine, &batch).unwrap();
        // 0, 1 and 2 are right of the shares' images.
        grouping.learn(engine, engine.rank(), batch.len()).unwrap();
        let first = own.start as u32;
        let groups = [groups.outliers, groups.boundary, groups.robust]
            .map(|group| group.into_iter().map(|place| place + first).collect::<Vec<u32>>());
        (groups, grouping.accuracy())
    });
    let all =
        [0, 1, 2].map(|at| done.iter().flat_map(|(groups, _)| groups[at].clone()).collect::<Vec<u32>>());
    assert_eq!(all, [expected.outliers, expected.boundary, expected.robust]);
    assert!(done.iter().all(|(_, accuracy)| *accuracy == alone.accuracy()), "acc_ref");
}

#[test]
fn a_run_goes_on_with_another_number_of_engines_and_says_so() {
    let recipe = recipe(&["attack.steps=1"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    // In the middle of an epoch each time.
    for (ranks, stop_after) in [(3, 2), (2, 4)] {
        let error = train_on(ranks, &recipe, path, &Stopping::after(Some(stop_after))).unwrap_err();
        assert!(matches!(error, TrainError::Interrupted { .. }), "{error}");
        assert_eq!(newest(path).progress.ranks, Some(ranks));
    }
    let last = Stopping::after(None);
    train_on(1, &recipe, path, &last).unwrap();
    let warnings = last.warnings.into_inner().unwrap();
    assert!(
        warnings.iter().any(|text| text.starts_with("the checkpoint is of 2 ranks, this run of 1")),
        "{warnings:?}"
    );
    let lines = metrics(path);
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| line.images == 60 && line.train_loss.is_finite()));
}

/// One engine of a group of one trains as it would alone.
#[test]
fn a_group_of_one_is_an_engine_alone() {
    let recipe = recipe(&[SHORT, "attack.steps=1"]);
    let [alone, grouped] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    train_in(&recipe, alone.path(), None).unwrap();
    train_on(1, &recipe, grouped.path(), &Stopping::after(None)).unwrap();
    assert_same_run(grouped.path(), alone.path(), "a group of one");
}

#[test]
fn a_rank_that_fails_ends_the_run_and_is_named() {
    let recipe = recipe(&[SHORT, "attack.steps=1"]);
    let data = recipe.data.open(None).unwrap();
    let setup = TrainingSetup { recipe: &recipe, data: &data, data_path: None };
    let run = |open: &(dyn Fn(usize) -> Result<Engine, Error> + Sync)| {
        let folder = tempfile::tempdir().unwrap();
        let (path, none) = (folder.path(), Stopping::after(None));
        let done = ranks::on_threads(3, open, setup, Some(path), |engine| {
            TrainingRun::start_or_resume(engine, setup, path)?.run(&none)
        });
        (done.unwrap_err(), path.join("recipe.toml").exists())
    };
    let network = train::network(&recipe);
    let plain = |batch| open(DeviceChoice::Cpu, network, batch);

    // Before there is a folder.
    let (error, begun) = run(&|rank| match rank {
        2 => Err(Error::Unavailable("no such GPU".into())),
        _ => plain(recipe.batch),
    });
    assert_eq!(error.to_string(), "rank 2 of 3: no such GPU");
    assert!(!begun);
    // Rank 0 itself.
    let (error, _) = run(&|rank| match rank {
        0 => Err(Error::Unavailable("no such GPU".into())),
        _ => plain(recipe.batch),
    });
    assert_eq!(error.to_string(), "no such GPU");
    // In the middle of a step: its share has five images.
    let (error, begun) = run(&|rank| plain(if rank == 1 { 4 } else { recipe.batch }));
    let text = error.to_string();
    assert!(text.starts_with("rank 1 of 3: ") && text.contains("a batch of 5 images"), "{text}");
    assert!(begun);
    // By a fault of the program.
    let (error, _) = run(&|rank| match rank {
        1 => panic!("on purpose"),
        _ => plain(recipe.batch),
    });
    assert_eq!(error.to_string(), "rank 1 of 3 has ended: it panicked");
    // Where devices differ, their bits would.
    let (error, _) = run(&|rank| match rank {
        1 => open(DeviceChoice::CpuBf16, network, recipe.batch),
        _ => plain(recipe.batch),
    });
    assert!(error.to_string().contains("exchanges results of cpu:bf16"), "{error}");
    // More ranks than images.
    let few = Recipe { batch: 2, ..recipe.clone() };
    let setup = TrainingSetup { recipe: &few, ..setup };
    let done = ranks::on_threads(3, &|_| plain(2), setup, None, |_| Ok(()));
    assert_eq!(
        done.unwrap_err().to_string(),
        "batch = 2: fewer images than 3 ranks, expected one for each at least"
    );
}

#[test]
fn an_engine_alone_has_nothing_to_sum() {
    let recipe = recipe(&[]);
    let mut engine = open(DeviceChoice::Cpu, train::network(&recipe), recipe.batch).unwrap();
    assert!(engine.average_statistics().unwrap_err().to_string().contains("no weights"));
    engine.load_weights(&initialise(train::network(&recipe), recipe.seed)).unwrap();
    assert!(engine.sum_gradients().unwrap_err().to_string().contains("no parameter gradients"));
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    engine.average_statistics().unwrap();
    // Nothing has changed, so the fold stands.
    let batch = Batch::alloc(&engine, 1).unwrap();
    engine.write(&batch.images, &[0.5; IMAGE_LEN]).unwrap();
    engine.forward(Pass::Eval, &batch.images, &batch.logits).unwrap();
    assert_eq!((engine.rank(), engine.ranks(), engine.share(3..9)), (0, 1, 3..9));
}

/// Rows of a tensor that ranks fill and gather, fewer than ranks too.
#[test]
fn rows_are_gathered_in_order() {
    let recipe = recipe(&[]);
    for rows in [1, 2, 3, 7, 16] {
        let done = on_ranks(DeviceChoice::Cpu, &recipe, 3, |engine| {
            let tensor = engine.upload("rows", &vec![f32::NAN; rows * 5]).unwrap();
            let own = engine.share(0..rows);
            let values: Vec<f32> = (own.start * 5..own.end * 5).map(|at| at as f32).collect();
            engine.write(&tensor.rows(own, 5), &values).unwrap();
            engine.gather_rows(&tensor, 5).unwrap();
            assert_eq!(engine.shared_items(rows), shared_items(rows, 3));
            assert_eq!(engine.group().map(|group| group.ranks()), Some(3));
            engine.read(&tensor).unwrap()
        });
        let expected: Vec<f32> = (0..rows * 5).map(|at| at as f32).collect();
        assert!(done.iter().all(|values| *values == expected), "{rows} rows");
    }
}
