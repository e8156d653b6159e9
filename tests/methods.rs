//! Every training method on tiny generated images: it learns, its images stay where its rules say, its gradient is that
//! of the published formula, and what it carries from step to step survives an interruption to the bit.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use secateur::accelerate::{BulletTrain, Groups, quantile};
use secateur::attack::{Adversary, CrossEntropyAscent, DivergenceAscent, Pgd, ScheduledPgd};
use secateur::batch::Batch;
use secateur::console::Console;
use secateur::data::DataSet;
use secateur::engine::{CrossEntropy, DeviceChoice, Engine, ImageSet, Pass, Sgd, WeightSet, open};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{Weights, initialise};
use secateur::objective;
use secateur::philox::{Key, Purpose};
use secateur::recipe::{Method, Recipe};
use secateur::train::metrics::EpochMetrics;
use secateur::train::run_folder::{RunFolder, State};
use secateur::train::{self, Run, TrainError, checkpoint};

/// 60 images in batches of 16: three steps and a smaller fourth.
const RECIPE: &str = r#"
    seed = 3
    epochs = 3
    batch = 16
    [data]
    set = "generated"
    train_limit = 60
    test_limit = 20
    [model]
    width = 16
    [optimizer]
    learning_rate = 0.02
    [schedule]
    kind = "cyclic"
    [evaluation]
    protocols = ["clean"]
"#;
const BATCH: usize = 16;
/// Rounding of a pixel in [0, 1] through a few additions.
const ROUNDING: f32 = 1e-6;
const METHODS: [Method; 7] = [
    Method::Standard,
    Method::PgdAt,
    Method::Trades,
    Method::Mart,
    Method::FgsmRs,
    Method::NFgsm,
    Method::Free,
];

fn recipe(overrides: &[&str]) -> Recipe {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
    let recipe = Recipe::parse("test", RECIPE, &overrides).unwrap();
    println!("seed {}, {overrides:?}", recipe.seed);
    recipe
}

/// The recipe of a method, two attack steps where it is free to choose.
fn of_method(method: Method, overrides: &[&str]) -> Recipe {
    let method_text = format!("objective.method={method}");
    let mut all = vec![method_text.as_str()];
    if method.fixed_steps().is_none() {
        all.push("attack.steps=2");
    }
    if method == Method::Free {
        all.push("objective.replays=3");
    }
    all.extend(overrides);
    recipe(&all)
}

fn run(recipe: &Recipe, path: &Path, stop_after: Option<usize>) -> Result<Vec<EpochMetrics>, TrainError> {
    let data = DataSet::open(recipe.data.set, None, recipe.data.train_limit, recipe.data.test_limit).unwrap();
    let mut engine = open(DeviceChoice::Cpu, train::network(recipe), recipe.batch).unwrap();
    let asked = Cell::new(0);
    let stop = || {
        asked.set(asked.get() + 1);
        stop_after == Some(asked.get())
    };
    let folder = match RunFolder::state(path)? {
        State::Fresh => RunFolder::create(path)?,
        State::Run => RunFolder::open(path),
    };
    folder.write("recipe.toml", recipe.to_toml().as_bytes())?;
    let run = Run { recipe, data: &data, folder: &folder, console: &Console::silent(), stop: &stop };
    train::run(engine.as_mut(), &run)?;
    Ok(folder.read_metrics()?)
}

/// An engine with the weights of a short training, the recipe's images, and the first batch of them.
struct Bench {
    engine: Box<dyn Engine>,
    batch: Batch,
    labels: Vec<u32>,
    key: Key,
}

impl Bench {
    fn new(recipe: &Recipe) -> Self {
        let mut engine = open(DeviceChoice::Cpu, train::network(recipe), recipe.batch).unwrap();
        let data = DataSet::open(recipe.data.set, None, recipe.data.train_limit, Some(1)).unwrap();
        let engine_ref = engine.as_mut();
        engine_ref.load_weights(&initialise(train::network(recipe), recipe.seed)).unwrap();
        let set: ImageSet = engine_ref.upload_images(&data.train.pixels, &data.train.labels).unwrap();
        let batch = Batch::alloc(engine_ref, BATCH).unwrap();
        let samples: Vec<u32> = (0..BATCH as u32).collect();
        engine_ref.write(&batch.samples, &samples).unwrap();
        engine_ref.gather(&set, &batch.samples, None, &batch.images, &batch.labels).unwrap();
        let labels = engine_ref.read(&batch.labels).unwrap();
        // Trained until most of these very images are right under the running statistics, and some are not.
        let sgd = Sgd { learning_rate: 0.02, momentum: 0.5, weight_decay: 0.0, average_decay: None };
        let loss = CrossEntropy { smoothing: 0.0, scale: 1.0 / BATCH as f32 };
        for _ in 0..100 {
            engine_ref.fold_batch_norm(WeightSet::Live).unwrap();
            engine_ref.forward(Pass::Eval, &batch.images, &batch.logits).unwrap();
            engine_ref.cross_entropy(&loss, &batch.logits, &batch.labels, None, batch.outputs()).unwrap();
            let met = engine_ref.read(&batch.predictions).unwrap();
            if met.iter().zip(&labels).filter(|(met, label)| met == label).count() >= 10 {
                break;
            }
            let pass = Pass::Train { slot: 0 };
            engine_ref.forward(pass, &batch.images, &batch.logits).unwrap();
            engine_ref.cross_entropy(&loss, &batch.logits, &batch.labels, None, batch.outputs()).unwrap();
            engine_ref.parameter_gradient(pass, &batch.logit_gradient, false).unwrap();
            engine_ref.sgd_step(&sgd).unwrap();
        }
        engine_ref.fold_batch_norm(WeightSet::Live).unwrap();
        let key = Key { seed: recipe.seed, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
        Self { engine, batch, labels, key }
    }

    fn read(&self, tensor: &secateur::engine::Tensor<f32>) -> Vec<f32> {
        self.engine.as_ref().read(tensor).unwrap()
    }
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().cloned().fold(f32::MIN, f32::max);
    let terms: Vec<f64> = logits.iter().map(|&z| f64::from(z - top).exp()).collect();
    let sum: f64 = terms.iter().sum();
    terms.iter().map(|term| term / sum).collect()
}

/// Norm of the difference over the norm of what is wanted, and the largest single difference over the largest value.
fn distances(met: &Weights, wanted: &Weights) -> (f64, f64) {
    let (mut difference, mut norm, mut largest, mut top) = (0.0, 0.0, 0.0f64, 0.0f64);
    assert_eq!(met.tensors.keys().collect::<Vec<_>>(), wanted.tensors.keys().collect::<Vec<_>>());
    for (name, wanted) in &wanted.tensors {
        for (&met, &wanted) in met.tensors[name].values.iter().zip(&wanted.values) {
            let off = f64::from(met) - f64::from(wanted);
            difference += off * off;
            norm += f64::from(wanted).powi(2);
            largest = largest.max(off.abs());
            top = top.max(f64::from(wanted).abs());
        }
    }
    ((difference / norm).sqrt(), largest / top)
}

#[test]
fn every_method_learns_and_tells_its_steps() {
    // 32 images without augmentation, two minibatches an epoch: few enough to learn by heart.
    let (epochs, minibatches) = (8, 2.0);
    let overrides = ["epochs=8", "data.train_limit=32", "data.augment=false"];
    for method in METHODS {
        let folder = tempfile::tempdir().unwrap();
        let metrics = run(&of_method(method, &overrides), folder.path(), None).unwrap();
        let losses: Vec<f64> = metrics.iter().map(|epoch| epoch.train_loss).collect();
        println!("{method}: {losses:.3?}");
        assert!(losses[epochs - 1] < 0.95 * losses[0], "{method}: {losses:?}");
        let steps = match method {
            Method::Standard => 0.0,
            Method::PgdAt | Method::Trades | Method::Mart => 2.0,
            Method::FgsmRs | Method::NFgsm => 1.0,
            Method::Free => 3.0,
        };
        for epoch in &metrics {
            assert_eq!(epoch.attack_steps_per_sample, steps, "{method}");
            assert_eq!(epoch.outlier_share, None, "{method}");
            let watched = method.fixed_steps() == Some(1);
            assert_eq!(epoch.co_pgd5_accuracy.is_some(), watched, "{method}");
            assert_eq!(epoch.co_detected.is_some(), watched, "{method}");
        }
        // The rate rises and falls over all optimizer steps: the minibatches, each as often as it is replayed.
        let replays = if method == Method::Free { 3.0 } else { 1.0 };
        let all = epochs as f64 * minibatches * replays;
        for (epoch, line) in metrics.iter().enumerate() {
            let share = (minibatches * replays * (epoch as f64 + 1.0) - 1.0) / all;
            let wanted = 0.02 * 2.0 * share.min(1.0 - share);
            assert!((line.learning_rate - wanted).abs() < 1e-12, "{method}: {line:?}, wanted {wanted}");
        }
    }
}

#[test]
fn images_stay_where_the_rules_of_the_method_say() {
    for method in METHODS {
        let recipe = of_method(method, &[]);
        let mut bench = Bench::new(&recipe);
        let mut objective = objective::of_recipe(&recipe);
        objective.attack(bench.engine.as_mut(), bench.key, &bench.batch).unwrap();
        if method == Method::Free {
            // The first replay starts at the carried perturbation, which is zero at first; its gradient moves on.
            assert_eq!(bench.read(&bench.batch.perturbed), bench.read(&bench.batch.images));
            objective.gradient(bench.engine.as_mut(), &bench.batch, None).unwrap();
        }
        let (images, moved) = (bench.read(&bench.batch.images), bench.read(&bench.batch.perturbed));
        let epsilon = recipe.attack.epsilon.as_f32();
        let step = recipe.attack.step_size.as_f32();
        let radius = match method {
            Method::Standard => 0.0,
            // Noise of 2 eps and a step of eps, by design outside the ball.
            Method::NFgsm => 3.0 * epsilon,
            _ => epsilon,
        };
        assert_eq!(moved.len(), BATCH * IMAGE_LEN);
        let mut farthest = 0.0f32;
        for (position, (&x, &moved)) in images.iter().zip(&moved).enumerate() {
            assert!((0.0..=1.0).contains(&moved), "{method}: pixel {position} is {moved}");
            assert!((moved - x).abs() <= radius + ROUNDING, "{method}: pixel {position} from {x} to {moved}");
            farthest = farthest.max((moved - x).abs());
        }
        let reached = match method {
            Method::Standard => 0.0,
            Method::NFgsm => 2.0 * epsilon,
            // Two steps of a quarter of the ball, from a start of at most 5 deviations.
            Method::Trades | Method::Mart => 2.0 * step - 0.001,
            _ => 0.99 * epsilon,
        };
        assert!(farthest >= reached, "{method}: no pixel moved further than {farthest}, expected {reached}");
    }
}

#[test]
fn paired_gradients_are_those_of_plain_operations() {
    let classes = 10;
    for (method, factor) in [(Method::Trades, 6.0), (Method::Mart, 5.0)] {
        let recipe = of_method(method, &[]);
        let mut bench = Bench::new(&recipe);
        let weights = bench.engine.weights(WeightSet::Live).unwrap();
        let mut objective = objective::of_recipe(&recipe);
        objective.attack(bench.engine.as_mut(), bench.key, &bench.batch).unwrap();
        objective.gradient(bench.engine.as_mut(), &bench.batch, None).unwrap();
        let met = bench.engine.gradients().unwrap();
        let losses = bench.read(&bench.batch.losses);

        // The same step from passes, formulas in f64, and two backward calls.
        let Bench { engine, batch, labels, .. } = &mut bench;
        let engine = engine.as_mut();
        engine.load_weights(&weights).unwrap();
        let (clean, adversarial) = (Pass::Train { slot: 0 }, Pass::Train { slot: 1 });
        engine.forward(clean, &batch.images, &batch.clean_logits).unwrap();
        engine.forward(adversarial, &batch.perturbed, &batch.logits).unwrap();
        let (z, z_adv) = (engine.read(&batch.clean_logits).unwrap(), engine.read(&batch.logits).unwrap());
        let (mut dz, mut dz_adv) = (Vec::new(), Vec::new());
        for (row, &label) in labels.iter().enumerate() {
            let range = row * classes..(row + 1) * classes;
            let (p, q) = (softmax(&z[range.clone()]), softmax(&z_adv[range]));
            let y = label as usize;
            let hot = |class: usize, other: usize| if class == other { 1.0 } else { 0.0 };
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p * (p.ln() - q.ln())).sum();
            let rival = (0..classes).filter(|&c| c != y).max_by(|&a, &b| q[a].total_cmp(&q[b])).unwrap();
            let doubt = 1.0000001 - p[y];
            let loss = match method {
                Method::Trades => -p[y].ln() + factor * kl,
                _ => -q[y].ln() - (1.0001 - q[rival]).ln() + factor * doubt * kl,
            };
            let met = f64::from(losses[row]);
            assert!((met - loss).abs() < 2e-4 * (1.0 + loss.abs()), "{method}: loss {met}, wanted {loss}");
            for c in 0..classes {
                let slope = p[c] * (p[c].ln() - q[c].ln() - kl);
                let (clean, adversarial) = match method {
                    Method::Trades => (p[c] - hot(c, y) + factor * slope, factor * (q[c] - p[c])),
                    _ => (
                        factor * (doubt * slope - kl * p[y] * (hot(c, y) - p[c])),
                        q[c] - hot(c, y)
                            + q[rival] / (1.0001 - q[rival]) * (hot(c, rival) - q[c])
                            + factor * doubt * (q[c] - p[c]),
                    ),
                };
                dz.push((clean / BATCH as f64) as f32);
                dz_adv.push((adversarial / BATCH as f64) as f32);
            }
        }
        engine.write(&batch.clean_gradient, &dz).unwrap();
        engine.write(&batch.logit_gradient, &dz_adv).unwrap();
        engine.parameter_gradient(clean, &batch.clean_gradient, false).unwrap();
        engine.parameter_gradient(adversarial, &batch.logit_gradient, true).unwrap();
        let (whole, single) = distances(&met, &engine.gradients().unwrap());
        println!("{method}: {whole:.1e} over all, {single:.1e} at one");
        assert!(whole < 1e-4 && single < 1e-4, "{method}: {whole:.1e} over all, {single:.1e} at one");
    }
}

#[test]
fn quantiles_are_those_of_torch() {
    // torch.quantile(values, q), linear interpolation.
    let values = [0.3, -0.1, 0.25, 0.0, -0.2];
    for (q, wanted) in [(0.0, -0.2), (0.1, -0.16), (0.25, -0.1), (0.6, 0.1), (0.9, 0.28), (1.0, 0.3)] {
        let met = quantile(&values, q);
        assert!((met - wanted).abs() < 1e-6, "{q}: {met}, wanted {wanted}");
    }
    assert_eq!(quantile(&[0.5], 0.7), 0.5);
}

#[test]
fn groups_are_those_of_a_plain_count() {
    let key = Key { seed: 11, purpose: Purpose::Generation, epoch: 0, step: 0 };
    println!("seed {}", key.seed);
    for round in 0..200u32 {
        let len = 1 + round as usize % 37;
        let word = |i: usize| f64::from(key.block(round, i as u32)[0]) / f64::from(u32::MAX);
        let scores: Vec<f32> = (0..len).map(|i| (0.6 * word(i) - 0.2) as f32).collect();
        let accuracy = word(1000) as f32;
        let met = Groups::of_scores(&scores, accuracy);

        // Between the two neighbours of rank (1 - accuracy)(len - 1), counted out without interpolation.
        let rank = (1.0 - accuracy) * (len - 1) as f32;
        let mut sorted = scores.clone();
        sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let (low, high) = (sorted[rank.floor() as usize].max(0.0), sorted[rank.ceil() as usize].max(0.0));
        let everyone = [&met.outliers[..], &met.boundary, &met.robust].concat();
        let mut places = everyone.clone();
        places.sort_unstable();
        assert_eq!(places, (0..len as u32).collect::<Vec<_>>(), "each sample in one group");
        for (group, places) in [(0, &met.outliers), (1, &met.boundary), (2, &met.robust)] {
            assert!(places.is_sorted());
            for &place in places {
                let score = scores[place as usize];
                let fits = match group {
                    0 => score < 0.0,
                    1 => score >= 0.0 && score <= high,
                    _ => score >= 0.0 && score > low,
                };
                assert!(fits, "score {score} in group {group}, threshold {low} to {high}");
            }
        }
    }
    // At the start of a run nothing is robust; scores that are no numbers are attacked by nobody.
    let start = Groups::of_scores(&[0.1, -0.1, 0.3, 0.0], 0.0);
    assert_eq!((start.outliers, start.boundary, start.robust), (vec![1], vec![0, 2, 3], vec![]));
    assert_eq!(Groups::of_scores(&[f32::NAN, 0.1], 0.5).outliers, [0]);
}

#[test]
fn bullet_train_gives_each_group_its_own_attack() {
    for method in [Method::PgdAt, Method::Trades] {
        let recipe = of_method(method, &["accelerate.method=bullet-train", "accelerate.robust_steps=1"]);
        let mut bench = Bench::new(&recipe);
        let full = Pgd::of_recipe(&recipe.attack);
        let mut brief = Pgd { steps: 1, ..full };
        brief.step.step_size = 6.0 / 255.0;
        let images = bench.read(&bench.batch.images);
        let Bench { engine, batch, labels, key } = &mut bench;
        let engine = engine.as_mut();

        // Section 5 in plain words: scores from a clean forward, groups, both attacks on everyone.
        engine.forward(Pass::Eval, &batch.images, &batch.clean_logits).unwrap();
        let logits = engine.read(&batch.clean_logits).unwrap();
        let scores: Vec<f32> = logits
            .chunks_exact(10)
            .zip(labels.iter())
            .map(|(row, &label)| {
                let p = softmax(row);
                let deviation = (p.iter().map(|p| (p - 0.1).powi(2)).sum::<f64>() / 9.0).sqrt();
                let best = (0..10).max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap();
                (if best == label as usize { deviation } else { -deviation }) as f32
            })
            .collect();
        let accuracy = 0.5;
        let groups = Groups::of_scores(&scores, accuracy);
        println!("{method}: {groups:?}");
        assert!(!groups.outliers.is_empty() && !groups.boundary.is_empty() && !groups.robust.is_empty());
        let attack = |engine: &mut dyn Engine, pgd: &Pgd| {
            match method {
                Method::Trades => pgd.perturb(engine, &mut DivergenceAscent, *key, batch),
                _ => pgd.perturb(engine, &mut CrossEntropyAscent, *key, batch),
            }
            .unwrap();
            engine.read(&batch.perturbed).unwrap()
        };
        let (in_full, in_brief) = (attack(engine, &full), attack(engine, &brief));
        let mut wanted = images.clone();
        for (places, moved) in [(&groups.boundary, &in_full), (&groups.robust, &in_brief)] {
            for &place in places {
                let range = place as usize * IMAGE_LEN..(place as usize + 1) * IMAGE_LEN;
                wanted[range.clone()].copy_from_slice(&moved[range]);
            }
        }

        let mut bullet = BulletTrain::new(ScheduledPgd::of_recipe(&recipe.attack), &recipe.accelerate);
        bullet.set_accuracy(accuracy);
        let work = match method {
            Method::Trades => bullet.perturb(engine, &mut DivergenceAscent, *key, batch),
            _ => bullet.perturb(engine, &mut CrossEntropyAscent, *key, batch),
        }
        .unwrap();
        let met = engine.read(&batch.perturbed).unwrap();
        // A gradient of nearly zero may change its sign with the size of the batch: few pixels, whole steps.
        let off = met.iter().zip(&wanted).filter(|(met, wanted)| (*met - *wanted).abs() > ROUNDING).count();
        assert!(off * 1000 <= met.len(), "{method}: {off} of {} pixels differ", met.len());
        for &place in &groups.outliers {
            let range = place as usize * IMAGE_LEN..(place as usize + 1) * IMAGE_LEN;
            assert_eq!(met[range.clone()], images[range], "an outlier is not attacked");
        }
        assert_eq!(work.samples, BATCH as u64);
        assert_eq!(work.steps as usize, 2 * groups.boundary.len() + groups.robust.len());
        assert_eq!(
            [work.outliers, work.boundary, work.robust].map(|count| count as usize),
            [groups.outliers.len(), groups.boundary.len(), groups.robust.len()]
        );

        // acc_ref follows the predictions of the images it made.
        engine.forward(Pass::Eval, &batch.perturbed, &batch.logits).unwrap();
        let logits = engine.read(&batch.logits).unwrap();
        let best = |row: &[f32]| (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let right = logits.chunks_exact(10).zip(labels.iter());
        let right = right.filter(|(row, label)| best(row) == **label as usize).count();
        let wanted = 0.9 * accuracy + 0.1 * 0.8 * right as f32 / BATCH as f32;
        assert!((bullet.accuracy() - wanted).abs() < 1e-6, "{} wanted {wanted}", bullet.accuracy());
    }
}

/// A run stopped in the middle of an epoch and resumed has the bits, the state and the metrics of an unbroken one.
#[test]
fn what_a_method_carries_survives_an_interruption() {
    let bullet = of_method(Method::Trades, &["accelerate.method=bullet-train"]);
    for recipe in [of_method(Method::Free, &[]), bullet] {
        let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let wanted = run(&recipe, whole.path(), None).unwrap();
        for stop_after in [2, 5] {
            let stopped = run(&recipe, broken.path(), Some(stop_after));
            assert!(matches!(stopped, Err(TrainError::Interrupted { .. })), "{stopped:?}");
        }
        let met = run(&recipe, broken.path(), None).unwrap();
        let timeless = |line: &EpochMetrics| EpochMetrics {
            seconds_attack: 0.0,
            seconds_train: 0.0,
            seconds_evaluate: 0.0,
            images_per_second: 0.0,
            ..line.clone()
        };
        assert_eq!(
            met.iter().map(timeless).collect::<Vec<_>>(),
            wanted.iter().map(timeless).collect::<Vec<_>>()
        );
        let last = |path: &Path| fs::read(path.join("last.safetensors")).unwrap();
        assert!(last(broken.path()) == last(whole.path()), "{}: other bits", recipe.objective.method);
        let state = |path: &Path| {
            let folder = RunFolder::open(path).checkpoints();
            checkpoint::load_newest(&folder, &mut |error| panic!("{error}")).unwrap().unwrap().1.objective
        };
        let kept = state(whole.path());
        assert!(state(broken.path()) == kept, "{}: other state", recipe.objective.method);
        let moved = kept.tensors.values().flat_map(|tensor| &tensor.values).any(|&value| value != 0.0);
        assert!(moved, "{}: the state was never used", recipe.objective.method);
    }
}

#[test]
fn phases_decide_the_steps_of_an_epoch() {
    let phases = "attack.phases=[{from_epoch=1, steps=3}, {from_epoch=2, steps=1, step_size='4/255'}]";
    let folder = tempfile::tempdir().unwrap();
    let metrics = run(&of_method(Method::PgdAt, &[phases]), folder.path(), None).unwrap();
    let steps: Vec<f64> = metrics.iter().map(|epoch| epoch.attack_steps_per_sample).collect();
    assert_eq!(steps, [2.0, 3.0, 1.0]);
}

#[test]
fn a_collapse_is_reported_and_stops_the_run_by_option() {
    for stop in ["true", "false"] {
        let recipe = of_method(Method::FgsmRs, &[&format!("overfitting.stop={stop}")]);
        let folder = tempfile::tempdir().unwrap();
        // Four questions an epoch and five batches of its check at most: stopped in the second epoch.
        let stopped = run(&recipe, folder.path(), Some(7));
        assert!(matches!(stopped, Err(TrainError::Interrupted { .. })), "{stopped:?}");
        // As if the epoch before had withstood everything: no network does after so few steps.
        let checkpoints = RunFolder::open(folder.path()).checkpoints();
        let (_, mut saved) =
            checkpoint::load_newest(&checkpoints, &mut |error| panic!("{error}")).unwrap().unwrap();
        assert_eq!(saved.progress.epoch, 1);
        saved.progress.pgd5_accuracy = Some(1.0);
        checkpoint::save(&checkpoints, &saved, 2).unwrap();

        let ended = run(&recipe, folder.path(), None);
        let metrics = RunFolder::open(folder.path()).read_metrics().unwrap();
        assert_eq!(metrics[0].co_detected, Some(false));
        assert_eq!(metrics[1].co_detected, Some(true));
        if stop == "true" {
            let Err(TrainError::Overfitted { epoch: 2, before: 1.0, after }) = ended else {
                panic!("not stopped: {ended:?}")
            };
            assert_eq!(Some(after), metrics[1].co_pgd5_accuracy);
            assert_eq!(metrics.len(), 2);
        } else {
            assert_eq!(ended.unwrap().len(), 3);
        }
    }
}
