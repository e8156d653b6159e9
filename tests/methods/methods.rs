//! Every training method on tiny generated images: it learns, its images stay where its rules say, its gradient is that
//! of the published formula, and what it carries from step to step survives an interruption to the bit.

use std::fs;
use std::path::Path;

use secateur::attack::Pgd;
use secateur::engine::{DeviceChoice, GradRequest, Pass, WeightSet};
use secateur::model::Weights;
use secateur::model::layers::IMAGE_LEN;
use secateur::objective::Method;
use secateur::ops::AscentLoss;
use secateur::train::run_folder::RunFolder;
use secateur::train::{TrainError, checkpoint};
use tempfile::TempDir;

use crate::common::tiny::{BATCH, Bench, METHODS, ROUNDING, of_method, run, softmax, timeless, train_on};

/// Norm of the difference over the norm of what is wanted, and the largest single difference over the largest value.
fn distances(actual: &Weights, expected: &Weights) -> (f64, f64) {
    let (mut difference, mut norm, mut largest, mut top) = (0.0, 0.0, 0.0f64, 0.0f64);
    assert_eq!(actual.tensors.keys().collect::<Vec<_>>(), expected.tensors.keys().collect::<Vec<_>>());
    for (name, expected) in &expected.tensors {
        for (&actual, &expected) in actual.tensors[name].values.iter().zip(&expected.values) {
            let off = f64::from(actual) - f64::from(expected);
            difference += off * off;
            norm += f64::from(expected).powi(2);
            largest = largest.max(off.abs());
            top = top.max(f64::from(expected).abs());
        }
    }
    ((difference / norm).sqrt(), largest / top)
}

#[test]
fn every_method_learns_and_tells_its_steps() {
    // 32 images without augmentation, two minibatches an epoch: few enough to learn by heart.
    let (epochs, minibatches) = (6, 2.0);
    let overrides = ["epochs=6", "data.train_limit=32", "data.augment=false"];
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
            let watched = method.row().attack.fixed_steps() == Some(1);
            assert_eq!(epoch.co_pgd5_accuracy.is_some(), watched, "{method}");
            assert_eq!(epoch.co_detected.is_some(), watched, "{method}");
        }
        // The rate rises and falls over all optimizer steps: the minibatches, each as often as it is replayed.
        let replays = if method == Method::Free { 3.0 } else { 1.0 };
        let all = epochs as f64 * minibatches * replays;
        for (epoch, line) in metrics.iter().enumerate() {
            let share = (minibatches * replays * (epoch as f64 + 1.0) - 1.0) / all;
            let expected = 0.02 * 2.0 * share.min(1.0 - share);
            assert!((line.learning_rate - expected).abs() < 1e-12, "{method}: {line:?}, expected {expected}");
        }
    }
}

#[test]
fn every_method_tells_its_groups_under_bullet_train_and_learns() {
    let epochs = 8;
    let overrides =
        ["accelerate.method=bullet-train", "epochs=8", "data.train_limit=32", "data.augment=false"];
    for method in METHODS {
        let mut overrides = overrides.to_vec();
        let single_step = method.row().attack.fixed_steps().is_some() && method != Method::Free;
        if !single_step {
            overrides.push("accelerate.robust_steps=1");
        }
        let folder = tempfile::tempdir().unwrap();
        let metrics = run(&of_method(method, &overrides), folder.path(), None).unwrap();
        let (mut attacked, mut robust) = (0.0, 0.0);
        for line in &metrics {
            let shares = [line.outlier_share, line.boundary_share, line.robust_share].map(Option::unwrap);
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{method}: {shares:?}");
            // Of boundary and robust samples.
            let [of_boundary, of_robust] = match method {
                Method::Standard => [0.0, 0.0],
                Method::PgdAt | Method::Trades | Method::Mart => [2.0, 1.0],
                Method::FgsmRs | Method::NFgsm => [1.0, 1.0],
                Method::Free => [3.0, 1.0],
            };
            let expected = of_boundary * shares[1] + of_robust * shares[2];
            let actual = line.attack_steps_per_sample;
            assert!((actual - expected).abs() < 1e-12, "{method}: {actual} steps, expected {expected}");
            attacked += shares[1] + shares[2];
            robust += shares[2];
        }
        println!("{method}: attacked {:.2}, robust {:.2}", attacked / epochs as f64, robust / epochs as f64);
        assert!(attacked > 0.0, "{method}: all are outliers");
        let (first, last) = (metrics[0].train_loss, metrics[epochs - 1].train_loss);
        assert!(last < 0.95 * first, "{method}: loss {first} to {last}");
    }
}

#[test]
fn images_stay_where_the_rules_of_the_method_say() {
    for method in METHODS {
        let recipe = of_method(method, &[]);
        let mut bench = Bench::new(&recipe);
        let mut objective = recipe.new_objective();
        objective.attack(&mut bench.engine, bench.key, &bench.batch).unwrap();
        if method == Method::Free {
            // The first replay starts at the carried perturbation, which is zero at first; its gradient moves on.
            assert_eq!(bench.read(&bench.batch.perturbed), bench.read(&bench.batch.images));
            objective.gradient(&mut bench.engine, &bench.batch).unwrap();
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
    for (method, factor, smoothing) in
        [(Method::Trades, 6.0, 0.0), (Method::Trades, 6.0, 0.1), (Method::Mart, 5.0, 0.0)]
    {
        let recipe = of_method(method, &[&format!("objective.label_smoothing={smoothing}")]);
        let mut bench = Bench::new(&recipe);
        let weights = bench.engine.weights(WeightSet::Live).unwrap();
        let mut objective = recipe.new_objective();
        objective.attack(&mut bench.engine, bench.key, &bench.batch).unwrap();
        objective.gradient(&mut bench.engine, &bench.batch).unwrap();
        let actual = bench.engine.weights(WeightSet::Gradients).unwrap();
        let losses = bench.read(&bench.batch.losses);

        // The same step from passes, formulas in f64, and two backward calls.
        let Bench { engine, batch, labels, .. } = &mut bench;
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
            let target = |c, y| (1.0 - smoothing) * hot(c, y) + smoothing / classes as f64;
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p * (p.ln() - q.ln())).sum();
            let rival = (0..classes).filter(|&c| c != y).max_by(|&a, &b| q[a].total_cmp(&q[b])).unwrap();
            let doubt = 1.0000001 - p[y];
            let loss = match method {
                Method::Trades => factor * kl - (0..classes).map(|c| target(c, y) * p[c].ln()).sum::<f64>(),
                _ => -q[y].ln() - (1.0001 - q[rival]).ln() + factor * doubt * kl,
            };
            let actual = f64::from(losses[row]);
            assert!(
                (actual - loss).abs() < 2e-4 * (1.0 + loss.abs()),
                "{method}: loss {actual}, expected {loss}"
            );
            for c in 0..classes {
                let slope = p[c] * (p[c].ln() - q[c].ln() - kl);
                let (clean, adversarial) = match method {
                    Method::Trades => (p[c] - target(c, y) + factor * slope, factor * (q[c] - p[c])),
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
        engine.backward(clean, &batch.clean_gradient, GradRequest::PARAMETERS).unwrap();
        engine.backward(adversarial, &batch.logit_gradient, GradRequest::ADD_PARAMETERS).unwrap();
        let (whole, single) = distances(&actual, &engine.weights(WeightSet::Gradients).unwrap());
        println!("{method}: {whole:.1e} over all, {single:.1e} at one");
        assert!(whole < 1e-4 && single < 1e-4, "{method}: {whole:.1e} over all, {single:.1e} at one");
    }
}

/// A run stopped in the middle of an epoch and resumed has the bits, the state and the metrics of an unbroken one.
#[test]
fn what_a_method_carries_survives_an_interruption() {
    let bullet = [Method::Standard, Method::Trades, Method::FgsmRs, Method::NFgsm, Method::Free];
    let few = ["batch=8", "data.train_limit=30"];
    let bullet =
        bullet.map(|method| of_method(method, &[&few[..], &["accelerate.method=bullet-train"]].concat()));
    for recipe in [of_method(Method::Free, &few)].into_iter().chain(bullet) {
        let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run =
            |folder: &TempDir, stop_after| train_on(DeviceChoice::Auto, &recipe, folder.path(), stop_after);
        run(&whole, None).unwrap();
        for stop_after in [2, 5] {
            let stopped = run(&broken, Some(stop_after));
            assert!(matches!(stopped, Err(TrainError::Interrupted { .. })), "{stopped:?}");
        }
        run(&broken, None).unwrap();
        assert_eq!(timeless(broken.path()), timeless(whole.path()));
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

/// TRADES and MART take their first gradient outside of [0, 1], Free-AT its first replay; training sees neither.
#[test]
fn starts_are_clipped_where_the_published_codes_clip_them() {
    let outside = |values: &[f32]| values.iter().filter(|&&value| !(0.0..=1.0).contains(&value)).count();
    for method in [Method::Trades, Method::Mart] {
        let recipe = of_method(method, &[]);
        let mut bench = Bench::new(&recipe);
        let Bench { engine, batch, key, .. } = &mut bench;
        let (engine, key) = (engine, *key);
        let images = engine.read(&batch.images).unwrap();
        let corners: Vec<f32> = images.iter().map(|x| x.round()).collect();
        engine.write(&batch.images, &corners).unwrap();
        let pgd = Pgd::from_config(&recipe.attack);
        pgd.start(engine, key, batch).unwrap();
        let start = engine.read(&batch.perturbed).unwrap();
        assert!(outside(&start) > start.len() / 3, "{method}: {} of {}", outside(&start), start.len());
        for steps in [0, 1] {
            Pgd { steps, ..pgd }.perturb(engine, AscentLoss::CrossEntropy, key, batch).unwrap();
            let moved = engine.read(&batch.perturbed).unwrap();
            assert_eq!(outside(&moved), 0, "{method}, {steps} steps");
            assert_ne!(moved, corners, "{method}, {steps} steps");
        }
    }
    // With BulletTrain robust images that no replay moves are trained on as they are, so they are clipped.
    for (overrides, clipped) in
        [(&[][..], false), (&["accelerate.method=bullet-train", "accelerate.robust_steps=0"][..], true)]
    {
        let recipe = of_method(Method::Free, overrides);
        let mut bench = Bench::new(&recipe);
        let mut objective = recipe.new_objective();
        let mut state = objective.state();
        let carried = state.tensors.get_mut("free.perturbation").unwrap();
        carried.values.fill(0.5);
        if clipped {
            // All are robust: right, and above a threshold of zero.
            state.insert("bullet_train.accuracy", &[1], vec![1.0]);
        }
        objective.restore(&state).unwrap();
        let Bench { engine, batch, key, .. } = &mut bench;
        objective.attack(engine, *key, batch).unwrap();
        let first = engine.read(&batch.perturbed).unwrap();
        assert_eq!(outside(&first) == 0, clipped, "{overrides:?}");
        objective.gradient(engine, batch).unwrap();
        assert_eq!(outside(&engine.read(&batch.perturbed).unwrap()), 0, "{overrides:?}");
    }
}

#[test]
fn a_collapse_is_reported_and_stops_the_run_by_option() {
    for stop in ["true", "false"] {
        let recipe = of_method(Method::FgsmRs, &[&format!("overfitting.stop={stop}")]);
        let folder = tempfile::tempdir().unwrap();
        // Four questions an epoch and five batches of its check at most: stopped in the second epoch.
        let stopped = run(&recipe, folder.path(), Some(7));
        assert!(matches!(stopped, Err(TrainError::Interrupted { .. })), "{stopped:?}");
        // As if the epoch before had been robust to everything: no network does after so few steps.
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
