//! BulletTrain: each group gets the attack that its objective has for it, in PGD training and TRADES, the single-step
//! methods, Free-AT and standard training.

use std::ops::Range;

use secateur::accelerate::{BulletTrain, Groups};
use secateur::attack::{Adversary, AttackWork, Pgd};
use secateur::batch::Batch;
use secateur::data::DataSet;
use secateur::data::order::{Split, epoch_order};
use secateur::engine::{DeviceChoice, Engine, GradRequest, Pass, Sgd, WeightSet, open};
use secateur::model::Weights;
use secateur::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use secateur::objective::{Method, Objective};
use secateur::ops::{AscentLoss, CrossEntropy, ImageSet};
use secateur::philox::{Key, Purpose, unit};
use secateur::recipe::Recipe;
use secateur::train::{self, Trainer};

use crate::common::tiny::{self, BATCH, Bench, ROUNDING, of_method, softmax};

const BULLET: &str = "accelerate.method=bullet-train";
const ACCURACY: &str = "bullet_train.accuracy";

/// The pixels of a place in a batch.
fn pixels(place: u32) -> Range<usize> {
    place as usize * IMAGE_LEN..(place as usize + 1) * IMAGE_LEN
}

/// The groups of a batch; none of them empty.
fn groups_of(engine: &mut Engine, batch: &Batch, labels: &[u32], accuracy: f32) -> Groups {
    let groups = groups_by_hand(engine, batch, labels, accuracy);
    assert!(!groups.outliers.is_empty() && !groups.boundary.is_empty() && !groups.robust.is_empty());
    groups
}

/// The groups of a batch, from the clean logits in f64.
fn groups_by_hand(engine: &mut Engine, batch: &Batch, labels: &[u32], accuracy: f32) -> Groups {
    engine.forward(Pass::Eval, &batch.images, &batch.clean_logits).unwrap();
    let logits = engine.read(&batch.clean_logits).unwrap();
    let score = |(row, &label): (&[f32], &u32)| {
        let p = softmax(row);
        let deviation = (p.iter().map(|p| (p - 0.1).powi(2)).sum::<f64>() / 9.0).sqrt();
        let best = (0..10).max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap();
        (if best == label as usize { deviation } else { -deviation }) as f32
    };
    let scores: Vec<f32> = logits.chunks_exact(10).zip(labels).map(score).collect();
    Groups::of_scores(&scores, accuracy)
}

/// The objective of a recipe in the middle of a run: with this acc_ref, and whatever else it carries.
fn resumed(recipe: &Recipe, accuracy: f32, also: Option<(&str, Vec<f32>)>) -> Box<dyn Objective> {
    let mut state = Weights::default();
    state.insert(ACCURACY, &[1], vec![accuracy]);
    if let Some((name, values)) = also {
        state.insert(name, &[values.len() / IMAGE_LEN, IMAGE_SIDE, IMAGE_SIDE, 3], values);
    }
    let mut objective = recipe.new_objective();
    objective.restore(&state).unwrap();
    objective
}

fn accuracy_of(objective: &dyn Objective) -> f32 {
    objective.state().get(ACCURACY, &[1]).unwrap()[0]
}

#[test]
fn bullet_train_gives_each_group_its_own_attack() {
    for method in [Method::PgdAt, Method::Trades] {
        let recipe = of_method(method, &[BULLET, "accelerate.robust_steps=1"]);
        let mut bench = Bench::new(&recipe);
        let full = Pgd::from_config(&recipe.attack);
        let mut short = Pgd { steps: 1, ..full };
        short.step.step_size = 6.0 / 255.0;
        let images = bench.read(&bench.batch.images);
        let Bench { engine, batch, labels, key } = &mut bench;

        // Section 5 in plain words: groups, both attacks on everyone.
        let accuracy = 0.5;
        let groups = groups_of(engine, batch, labels, accuracy);
        println!("{method}: {groups:?}");
        let attack = |engine: &mut Engine, pgd: &Pgd| {
            match method {
                Method::Trades => pgd.perturb(engine, AscentLoss::Divergence, *key, batch),
                _ => pgd.perturb(engine, AscentLoss::CrossEntropy, *key, batch),
            }
            .unwrap();
            engine.read(&batch.perturbed).unwrap()
        };
        let (in_full, in_short) = (attack(engine, &full), attack(engine, &short));
        let mut expected = images.clone();
        for (places, moved) in [(&groups.boundary, &in_full), (&groups.robust, &in_short)] {
            for &place in places {
                let range = pixels(place);
                expected[range.clone()].copy_from_slice(&moved[range]);
            }
        }

        let mut bullet = BulletTrain::new(recipe.full_attack(), &recipe.accelerate);
        bullet.set_accuracy(accuracy);
        let work = match method {
            Method::Trades => bullet.perturb(engine, AscentLoss::Divergence, *key, batch),
            _ => bullet.perturb(engine, AscentLoss::CrossEntropy, *key, batch),
        }
        .unwrap();
        let actual = engine.read(&batch.perturbed).unwrap();
        // A gradient of nearly zero may change its sign with the size of the batch: few pixels, whole steps.
        let off = actual
            .iter()
            .zip(&expected)
            .filter(|(actual, expected)| (*actual - *expected).abs() > ROUNDING)
            .count();
        assert!(off * 1000 <= actual.len(), "{method}: {off} of {} pixels differ", actual.len());
        for &place in &groups.outliers {
            let range = pixels(place);
            assert_eq!(actual[range.clone()], images[range], "an outlier is not attacked");
        }
        assert_eq!(work.steps as usize, 2 * groups.boundary.len() + groups.robust.len());
        assert_eq!(AttackWork { steps: 0, ..work }, groups.work());

        // acc_ref follows the predictions of the images it made.
        engine.forward(Pass::Eval, &batch.perturbed, &batch.logits).unwrap();
        let logits = engine.read(&batch.logits).unwrap();
        let best = |row: &[f32]| (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let right = logits.chunks_exact(10).zip(labels.iter());
        let right = right.filter(|(row, label)| best(row) == **label as usize).count();
        let expected = 0.9 * accuracy + 0.1 * 0.8 * right as f32 / BATCH as f32;
        assert!((bullet.accuracy() - expected).abs() < 1e-6, "{} expected {expected}", bullet.accuracy());
    }
}

#[test]
fn single_step_methods_spare_the_outliers_alone() {
    let accuracy = 0.5;
    for method in [Method::FgsmRs, Method::NFgsm] {
        for robust_steps in [2, 0] {
            let recipe = of_method(method, &[BULLET, &format!("accelerate.robust_steps={robust_steps}")]);
            let mut bench = Bench::new(&recipe);
            let images = bench.read(&bench.batch.images);
            let Bench { engine, batch, labels, key } = &mut bench;
            let groups = groups_of(engine, batch, labels, accuracy);
            println!("{method}: {groups:?}");
            let mut bullet = resumed(&recipe, accuracy, None);
            let work = bullet.attack(engine, *key, batch).unwrap();
            let actual = engine.read(&batch.perturbed).unwrap();

            // The method as it is without BulletTrain, on these samples alone.
            let base = of_method(method, &[]);
            let mut base_attack = |places: &[u32]| {
                let part = Batch::alloc(engine, places.len()).unwrap();
                let clean: Vec<f32> =
                    places.iter().flat_map(|&place| &images[pixels(place)]).copied().collect();
                let of_places: Vec<u32> = places.iter().map(|&place| labels[place as usize]).collect();
                // Bench's samples are numbered by their places.
                engine.write(&part.samples, places).unwrap();
                engine.write(&part.images, &clean).unwrap();
                engine.write(&part.labels, &of_places).unwrap();
                base.new_objective().attack(engine, *key, &part).unwrap();
                engine.read(&part.perturbed).unwrap()
            };
            let attacked = match robust_steps {
                0 => groups.boundary.clone(),
                _ => (0..BATCH as u32).filter(|place| !groups.outliers.contains(place)).collect(),
            };
            let moved = base_attack(&attacked);
            for (place, moved) in attacked.iter().zip(moved.chunks_exact(IMAGE_LEN)) {
                assert!(
                    actual[pixels(*place)] == *moved,
                    "{method}: place {place} is not what {method} makes of it"
                );
                assert!(images[pixels(*place)] != *moved, "{method}: place {place} did not move");
            }
            // In the whole batch a gradient of nearly zero may have the other sign: few pixels.
            let whole = base_attack(&(0..BATCH as u32).collect::<Vec<_>>());
            let of_attacked = attacked.iter().flat_map(|&place| pixels(place));
            let off = of_attacked.filter(|&pixel| (actual[pixel] - whole[pixel]).abs() > ROUNDING).count();
            assert!(off * 1000 <= attacked.len() * IMAGE_LEN, "{method}: {off} pixels differ");
            for &place in &groups.outliers {
                assert!(actual[pixels(place)] == images[pixels(place)], "{method}: outlier {place} moved");
            }
            if robust_steps == 0 {
                Pgd::from_config(&recipe.attack).start(engine, *key, batch).unwrap();
                let start = engine.read(&batch.perturbed).unwrap();
                for &place in &groups.robust {
                    assert!(
                        actual[pixels(place)] == start[pixels(place)],
                        "{method}: robust {place} is not its start"
                    );
                }
                engine.write(&batch.perturbed, &actual).unwrap();
            }
            assert_eq!(work, AttackWork { steps: attacked.len() as u64, ..groups.work() }, "{method}");

            engine.forward(Pass::Eval, &batch.perturbed, &batch.logits).unwrap();
            engine.run(&batch.cross_entropy(1.0)).unwrap();
            let predictions = engine.read(&batch.predictions).unwrap();
            let right =
                predictions.iter().zip(labels.iter()).filter(|(actual, label)| actual == label).count();
            let expected = 0.9 * accuracy + 0.1 * 0.8 * right as f32 / BATCH as f32;
            assert!((accuracy_of(bullet.as_ref()) - expected).abs() < 1e-6, "{method}: expected {expected}");
        }
    }
}

#[test]
fn free_replays_move_what_their_groups_allow() {
    let (accuracy, replays, robust_steps) = (0.5, 3, 1);
    let recipe = of_method(Method::Free, &[BULLET, &format!("accelerate.robust_steps={robust_steps}")]);
    assert_eq!(recipe.objective.replays, replays);
    let epsilon = recipe.attack.epsilon.as_f32();
    // What the minibatch before left at each place.
    let key = Key { seed: 19, purpose: Purpose::Generation, epoch: 0, step: 0 };
    let draw = |i: u32| epsilon * (2.0 * unit(key.block(i, 0)[0]) - 1.0);
    let carried: Vec<f32> = (0..(BATCH * IMAGE_LEN) as u32).map(draw).collect();
    println!("seed {}", key.seed);

    let mut bench = Bench::new(&recipe);
    let images = bench.read(&bench.batch.images);
    let Bench { engine, batch, labels, key } = &mut bench;
    let groups = groups_of(engine, batch, labels, accuracy);
    println!("{groups:?}");
    let mut free = resumed(&recipe, accuracy, Some(("free.perturbation", carried.clone())));

    // The same replays from plain calls on another engine, all images moved and some put back by hand.
    let mut other = Bench::new(&recipe);
    let (plain, plain_batch) = (&mut other.engine, &other.batch);
    let mut expected = images.clone();
    for &place in groups.boundary.iter().chain(&groups.robust) {
        for pixel in pixels(place) {
            expected[pixel] += carried[pixel];
        }
    }
    let step = Pgd::from_config(&recipe.attack).step;
    let pass = Pass::Train { slot: 0 };
    let mut right = 0;
    for replay in 0..replays {
        assert_eq!(free.needs_fold(), replay == 0, "one clean forward a minibatch");
        let work = free.attack(engine, *key, batch).unwrap();
        let of_minibatch = if replay == 0 { groups.work() } else { AttackWork::default() };
        let moving = groups.boundary.len() + if replay < robust_steps { groups.robust.len() } else { 0 };
        assert_eq!(work, AttackWork { steps: moving as u64, ..of_minibatch }, "replay {replay}");
        assert!(engine.read(&batch.perturbed).unwrap() == expected, "replay {replay}: other images");
        free.gradient(engine, batch).unwrap();

        plain.write(&plain_batch.perturbed, &expected).unwrap();
        plain.forward(pass, &plain_batch.perturbed, &plain_batch.logits).unwrap();
        let (labels_there, outputs) = (&plain_batch.labels, plain_batch.outputs());
        plain
            .run(&CrossEntropy {
                smoothing: 0.0,
                scale: 1.0 / BATCH as f32,
                logits: &plain_batch.logits,
                labels: labels_there,
                weights: None,
                outputs,
            })
            .unwrap();
        let predictions = plain.read(&plain_batch.predictions).unwrap();
        let attacked = groups.boundary.iter().chain(&groups.robust).map(|&place| place as usize);
        right = attacked.filter(|&place| predictions[place] == labels[place]).count();
        let (clean, perturbed) = (&plain_batch.images, &plain_batch.perturbed);
        let request = GradRequest::step(step, clean, perturbed).and_parameters();
        plain.backward(pass, &plain_batch.logit_gradient, request).unwrap();
        let moved = plain.read(perturbed).unwrap();
        let robust = if replay < robust_steps { &groups.robust[..] } else { &[] };
        for &place in groups.boundary.iter().chain(robust) {
            assert!(expected[pixels(place)] != moved[pixels(place)], "replay {replay}: place {place} stayed");
            expected[pixels(place)].copy_from_slice(&moved[pixels(place)]);
        }
        assert_eq!(
            engine.weights(WeightSet::Gradients).unwrap(),
            plain.weights(WeightSet::Gradients).unwrap(),
            "replay {replay}"
        );
    }
    assert!(engine.read(&batch.perturbed).unwrap() == expected, "after the last replay: other images");

    // The outliers' places sat out; the others carry on what they have now.
    let kept = free.state();
    let kept = kept.get("free.perturbation", &[BATCH, IMAGE_SIDE, IMAGE_SIDE, 3]).unwrap();
    for place in 0..BATCH as u32 {
        let now: Vec<f32> = pixels(place).map(|pixel| expected[pixel] - images[pixel]).collect();
        let outlier = groups.outliers.contains(&place);
        let expected = if outlier { &carried[pixels(place)] } else { &now };
        assert!(kept[pixels(place)] == *expected, "place {place}, outlier {outlier}");
    }
    let expected = 0.9 * accuracy + 0.1 * 0.8 * right as f32 / BATCH as f32;
    assert!(right > 0 && (accuracy_of(free.as_ref()) - expected).abs() < 1e-6, "expected {expected}");
}

#[test]
fn standard_training_has_groups_and_no_attack() {
    let accuracy = 0.5;
    // A start is no part of the method, whatever the recipe says.
    let recipe = of_method(Method::Standard, &[BULLET, "attack.start=uniform"]);
    let mut bench = Bench::new(&recipe);
    let Bench { engine, batch, labels, key } = &mut bench;
    let groups = groups_of(engine, batch, labels, accuracy);
    let mut standard = resumed(&recipe, accuracy, None);
    assert_eq!(standard.attack(engine, *key, batch).unwrap(), groups.work());
    assert!(engine.read(&batch.perturbed).unwrap() == engine.read(&batch.images).unwrap());
    // What is no outlier is predicted right, and nothing attacks it.
    let right = groups.boundary.len() + groups.robust.len();
    let expected = 0.9 * accuracy + 0.1 * 0.8 * right as f32 / BATCH as f32;
    assert!((accuracy_of(standard.as_ref()) - expected).abs() < 1e-6, "expected {expected}");
}

/// Full attacks on all images until the running mean of the clean accuracy has come to the wanted one, then the groups, even
/// where the accuracy falls again.
#[test]
fn the_warm_up_attacks_all_in_full_until_the_clean_accuracy() {
    let until = 0.15;
    let text = format!("accelerate.warmup_accuracy={until}");
    let recipe = of_method(Method::PgdAt, &[BULLET, &text, "accelerate.robust_steps=1"]);
    let plain = of_method(Method::PgdAt, &[]);
    let mut bench = Bench::new(&recipe);
    let Bench { engine, batch, labels, key } = &mut bench;
    let mut bullet = recipe.new_objective();
    let clean_labels = labels.clone();
    let wrong: Vec<u32> = labels.iter().map(|label| (label + 1) % 10).collect();
    let (mut clean, mut over) = (0.0, false);
    // The third batch has wrong labels: its clean accuracy is low, and the warm-up stays over.
    for (at, labels) in [&clean_labels, &clean_labels, &clean_labels, &wrong, &wrong].into_iter().enumerate()
    {
        engine.write(&batch.labels, labels).unwrap();
        engine.forward(Pass::Eval, &batch.images, &batch.clean_logits).unwrap();
        let logits = engine.read(&batch.clean_logits).unwrap();
        let best = |row: &[f32]| (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let right = logits.chunks_exact(10).zip(labels).filter(|(row, label)| best(row) == **label as usize);
        clean = 0.9 * clean + 0.1 * right.count() as f64 / BATCH as f64;
        over |= clean >= until;

        // A restored state goes on where it was.
        let state = bullet.state();
        bullet = recipe.new_objective();
        if at > 0 {
            bullet.restore(&state).unwrap();
        }
        let before = accuracy_of(bullet.as_ref());
        let work = bullet.attack(engine, *key, batch).unwrap();
        println!("batch {at}: clean {clean}, over {over}, {work:?}");
        if over {
            assert!(work.outliers > 0, "batch {at}: {work:?}");
            continue;
        }
        let count = BATCH as u64;
        let all = AttackWork { samples: count, steps: 2 * count, boundary: count, ..AttackWork::default() };
        assert_eq!(work, all, "batch {at}");
        let actual = engine.read(&batch.perturbed).unwrap();
        let now = accuracy_of(bullet.as_ref());
        assert!(now > before, "acc_ref learns during the warm-up");
        plain.new_objective().attack(engine, *key, batch).unwrap();
        assert!(actual == engine.read(&batch.perturbed).unwrap(), "batch {at}: not plain PGD");
    }
    assert!(over && clean < until, "the batches did not end the warm-up and fall below it again: {clean}");
}

/// A trained state, as that of a checkpoint, in the middle of a run with this acc_ref.
fn trained(recipe: &Recipe, accuracy: f32) -> (Weights, Weights) {
    let weights = Bench::new(recipe).engine.weights(WeightSet::Live).unwrap();
    let mut state = Weights::default();
    state.insert(ACCURACY, &[1], vec![accuracy]);
    (weights, state)
}

/// What an epoch in super-batches makes of the weights, by hand: the images and the weights at its end, and acc_ref. All images of
/// a super-batch are attacked both ways with the weights at its start.
fn scripted(recipe: &Recipe, set: &DataSet, order: &[u32], accuracy: f32, ahead: usize) -> Scripted {
    let (weights, _) = trained(recipe, accuracy);
    let mut engine = open(DeviceChoice::Cpu, train::network(recipe), order.len()).unwrap();
    let engine = &mut engine;
    engine.load_weights(&weights).unwrap();
    let images = ImageSet::upload(engine, &set.train.pixels, &set.train.labels).unwrap();
    let full = Pgd::from_config(&recipe.attack);
    let mut short = Pgd { steps: 1, ..full };
    short.step.step_size = 6.0 / 255.0;
    let key = Key { seed: recipe.seed, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
    let mut objective = of_method(Method::Trades, &[]).new_objective();
    let mut script = Scripted {
        perturbed: Vec::new(),
        weights: Weights::default(),
        accuracy,
        work: AttackWork::default(),
    };
    for samples in order.chunks(ahead * BATCH) {
        let all = Batch::alloc(engine, samples.len()).unwrap();
        engine.write(&all.samples, samples).unwrap();
        let augment = recipe.augmentation(recipe.seed, 0);
        engine.run(&all.gather(&images, augment)).unwrap();
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        let labels = engine.read(&all.labels).unwrap();
        let groups = groups_by_hand(engine, &all, &labels, script.accuracy);
        let mut moved = engine.read(&all.images).unwrap();
        for (pgd, places) in [(&full, &groups.boundary), (&short, &groups.robust)] {
            pgd.perturb(engine, AscentLoss::Divergence, key, &all).unwrap();
            let attacked = engine.read(&all.perturbed).unwrap();
            for &place in places {
                moved[pixels(place)].copy_from_slice(&attacked[pixels(place)]);
            }
        }
        engine.write(&all.perturbed, &moved).unwrap();
        engine.forward(Pass::Eval, &all.perturbed, &all.logits).unwrap();
        engine.run(&all.cross_entropy(1.0)).unwrap();
        let predictions = engine.read(&all.predictions).unwrap();
        let right = predictions.iter().zip(&labels).filter(|(actual, label)| actual == label).count();
        script.accuracy = 0.9 * script.accuracy + 0.1 * 0.8 * right as f32 / samples.len() as f32;
        script.work +=
            AttackWork { steps: (2 * groups.boundary.len() + groups.robust.len()) as u64, ..groups.work() };
        for batch in all.parts(BATCH) {
            objective.gradient(engine, &batch).unwrap();
            engine
                .step(&Sgd {
                    learning_rate: recipe.optimizer.learning_rate as f32,
                    momentum: recipe.optimizer.momentum as f32,
                    weight_decay: recipe.optimizer.weight_decay as f32,
                    ..Sgd::ZERO
                })
                .unwrap();
        }
        script.perturbed.extend(moved);
    }
    script.weights = engine.weights(WeightSet::Live).unwrap();
    script
}

struct Scripted {
    perturbed: Vec<f32>,
    weights: Weights,
    accuracy: f32,
    work: AttackWork,
}

fn distance(a: &Weights, b: &Weights) -> f64 {
    let pairs = a.tensors.iter().flat_map(|(name, tensor)| tensor.values.iter().zip(&b.tensors[name].values));
    pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn a_super_batch_is_attacked_with_the_weights_at_its_start() {
    // So low that of the few images that are right in a batch some are boundary and some robust.
    let (ahead, accuracy) = (3, 0.08);
    let text = format!("accelerate.super_batch={ahead}");
    let set = [BULLET, &text, "accelerate.robust_steps=1", "schedule.kind=constant"];
    let recipe = of_method(Method::Trades, &set);
    let data = DataSet::open(recipe.data.set, None, recipe.data.train_limit, Some(1)).unwrap();
    let split = Split { train: (0..data.train.len() as u32).collect(), ..Split::default() };
    let order = epoch_order(recipe.seed, 0, &split.train);
    let (weights, objective) = trained(&recipe, accuracy);

    let mut engine = open(DeviceChoice::Cpu, train::network(&recipe), recipe.batch).unwrap();
    let engine = &mut engine;
    engine.load_weights(&weights).unwrap();
    let images = ImageSet::upload(engine, &data.train.pixels, &data.train.labels).unwrap();
    let mut trainer = Trainer::new(engine, &recipe, &images, &split).unwrap();
    let fresh = trainer.checkpoint().unwrap();
    let mut start = fresh.clone();
    (start.weights, start.objective) = (weights.clone(), objective);
    trainer.restore(&start).unwrap();
    assert!(!trainer.begin_epoch(&mut |_, _| true).unwrap());
    // Interrupted after each step: what waits was attacked with the weights at the start.
    let expected = scripted(&recipe, &data, &order, accuracy, ahead);
    let mut end = None;
    for step in 1..=4 {
        let finished = trainer.epoch(&mut |_| false).unwrap();
        assert!(finished.is_none());
        let state = trainer.checkpoint().unwrap();
        assert_eq!(state.progress.step, step);
        let (from, to) = match step {
            1 | 2 => (step * BATCH, ahead * BATCH),
            _ => (0, 0),
        };
        let (actual, expected) =
            (&state.samples.adversarial, &expected.perturbed[from * IMAGE_LEN..to * IMAGE_LEN]);
        assert_eq!(actual.len(), expected.len(), "step {step}");
        // A gradient of nearly zero may change its sign with the size of the micro-batch: few pixels, whole steps.
        let off = actual
            .iter()
            .zip(expected)
            .filter(|(actual, expected)| (*actual - *expected).abs() > ROUNDING)
            .count();
        assert!(off * 1000 <= actual.len(), "step {step}: {off} of {} pixels differ", actual.len());
        trainer.accepts(&state).unwrap();
        let mut short = state.clone();
        short.samples.adversarial.truncate(IMAGE_LEN);
        if step < 3 {
            let error = trainer.accepts(&short).unwrap_err();
            assert!(error.contains("pixels of images attacked ahead"), "{error}");
        }
        // What a resumed run does: another state, then this one.
        trainer.restore(&fresh).unwrap();
        trainer.restore(&state).unwrap();
        end = Some(state);
    }
    let end = end.unwrap();
    let AttackWork { outliers, boundary, robust, .. } = expected.work;
    assert!(outliers > 0 && boundary > 0 && robust > 0, "{:?}", expected.work);
    assert_eq!(end.progress.epoch_attacks, expected.work);
    assert!((end.objective.get(ACCURACY, &[1]).unwrap()[0] - expected.accuracy).abs() < 1e-6);
    let moved = distance(&expected.weights, &weights);
    let apart = distance(&end.weights, &expected.weights) / moved;
    let minibatches = scripted(&recipe, &data, &order, accuracy, 1);
    let otherwise = distance(&end.weights, &minibatches.weights) / moved;
    println!("{apart:e} of the way apart; from minibatches {otherwise:e}");
    assert!(apart < 1e-3, "{apart} of the way apart");
    assert!(otherwise > 10.0 * apart, "{otherwise}: super-batches change nothing");
}

#[test]
fn a_run_in_super_batches_resumes_to_the_same_bits_at_every_step() {
    let set = [BULLET, "accelerate.super_batch=3", "epochs=2", "batch=8", "data.train_limit=30"];
    let recipe = of_method(Method::Trades, &set);
    let whole = tempfile::tempdir().unwrap();
    let lines = tiny::run(&recipe, whole.path(), None).unwrap();
    let last = |path: &std::path::Path| std::fs::read(path.join("last.safetensors")).unwrap();
    for stop_after in 1..8 {
        let broken = tempfile::tempdir().unwrap();
        tiny::run(&recipe, broken.path(), Some(stop_after)).unwrap_err();
        let resumed = tiny::run(&recipe, broken.path(), None).unwrap();
        assert!(last(broken.path()) == last(whole.path()), "stopped after question {stop_after}");
        for (actual, expected) in resumed.iter().zip(&lines) {
            assert_eq!(actual.attack_steps_per_sample, expected.attack_steps_per_sample);
            assert_eq!(
                (actual.boundary_share, actual.train_loss),
                (expected.boundary_share, expected.train_loss)
            );
        }
    }
}
