//! Training on subsets: the schedule's clock, the weights in the gradient and the metrics, what a run leaves behind, and
//! the same bits wherever it is broken off.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use secateur::batch::Batch;
use secateur::data::DataSet;
use secateur::data::order::{Split, epoch_order, split};
use secateur::engine::{DeviceChoice, Engine, GradRequest, Pass, Sgd, Tensor, WeightSet, open};
use secateur::measure::speedup::cost::Cost;
use secateur::model::{Weights, initialise};
use secateur::ops::ImageSet;
use secateur::philox::{Key, Purpose};
use secateur::recipe::Recipe;
use secateur::train::checkpoint::{self};
use secateur::train::metrics::EpochMetrics;
use secateur::train::run_folder::RunFolder;
use secateur::train::{self, TrainError, Trainer};
use tempfile::TempDir;

use crate::common::tiny::{metrics, newest, timeless, train_in as run, train_on};

/// 100 training images in batches of 24, 20 for validation. Subsets of half: two steps and a smaller third.
const RECIPE: &str = r#"
    seed = 5
    epochs = 6
    batch = 24
    [data]
    set = "generated"
    train_limit = 120
    test_limit = 10
    validation = 20
    [model]
    width = 16
    [attack]
    steps = 1
    step_size = "4/255"
    [optimizer]
    learning_rate = 0.02
    [schedule]
    kind = "cosine"
    [evaluation]
    every = 0
    protocols = ["clean"]
    best_by = "pgd1"
"#;
const TRAINED: usize = 100;

fn recipe(set: &[&str]) -> Recipe {
    let set: Vec<String> = set.iter().map(|&text| text.into()).collect();
    let recipe = Recipe::parse("test", RECIPE, &set).unwrap_or_else(|error| panic!("{error}"));
    println!("seed {}, {set:?}", recipe.seed);
    recipe
}

fn data(recipe: &Recipe) -> DataSet {
    recipe.data.open(None).unwrap()
}

fn split_of(recipe: &Recipe) -> Split {
    let data = data(recipe);
    let kept = &recipe.data;
    split(&data.train, data.classes, kept.validation, kept.validation_split, recipe.seed).unwrap()
}

/// The bytes of each kept selection, by file name.
fn selections(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let folder = folder.join("selection");
    if !folder.exists() {
        return BTreeMap::new();
    }
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

/// Indices and weights of the subset that was chosen for an epoch, counted from 1.
fn chosen(folder: &Path, epoch: u32) -> (Vec<u32>, Vec<f32>) {
    let bytes = &selections(folder)[&format!("epoch-{epoch:04}.safetensors")];
    let file = SafeTensors::deserialize(bytes).unwrap();
    let data = |name: &str| file.tensor(name).unwrap().data().to_vec();
    let indices = data("indices").as_chunks().0.iter().map(|&word| i64::from_le_bytes(word) as u32).collect();
    let weights = data("weights").as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect();
    (indices, weights)
}

/// Breaks a run off again and again, a little later each time, until it is whole; compares it with an unbroken one. Half of the
/// images in half as large batches: as many steps. On the device that a user gets, often the CPU in bf16.
fn assert_resumes_to_the_same_bits(set: &[&str]) {
    let recipe = recipe(&[&["batch=12", "data.train_limit=70"], set].concat());
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = |folder: &TempDir, stop_after| train_on(DeviceChoice::Auto, &recipe, folder.path(), stop_after);
    run(&whole, None).unwrap();
    let (mut in_selection, mut in_interval) = (0, 0);
    for stop_after in 2.. {
        match run(&broken, Some(stop_after)) {
            Ok(_) => break,
            Err(TrainError::Interrupted { .. }) => {
                let state = newest(broken.path());
                let selected = state.progress.selection.map(|last| last.epoch);
                if state.progress.step > 0 && selected.is_some_and(|epoch| epoch < state.progress.epoch) {
                    in_interval += 1;
                }
                let done = state.progress.epoch as usize == recipe.epoch_schedule().epochs();
                in_selection += usize::from(state.progress.step == 0 && !done);
            }
            Err(error) => panic!("{error}"),
        }
    }
    println!("{in_selection} stops in a selection, {in_interval} in the middle of an interval");
    let attacks = recipe.selection.attacks_candidates(true);
    assert!(!attacks || in_selection > 0, "no stop in a selection");
    assert!(recipe.selection.every == 1 || in_interval > 0, "no stop in the middle of an interval");
    let last = |folder: &Path| fs::read(folder.join("last.safetensors")).unwrap();
    assert!(last(broken.path()) == last(whole.path()), "{set:?}: other weights");
    assert_eq!(timeless(broken.path()), timeless(whole.path()), "{set:?}");
    assert!(selections(broken.path()) == selections(whole.path()), "{set:?}: other subsets");
    assert!(!selections(whole.path()).is_empty());
    let (actual, expected) = (newest(broken.path()), newest(whole.path()));
    assert_eq!(actual.selection, expected.selection);
    assert_eq!(actual.progress.run_images, expected.progress.run_images);
    assert!(actual.optimizer == expected.optimizer && actual.objective == expected.objective);
}

#[test]
fn a_broken_run_with_random_subsets_resumes_to_the_same_bits() {
    assert_resumes_to_the_same_bits(&["selection.method=random-online", "selection.fraction=0.5"]);
}

#[test]
fn a_broken_run_that_ranks_losses_resumes_to_the_same_bits() {
    let set = ["selection.method=loss-rank", "selection.fraction=0.3", "selection.every=2"];
    assert_resumes_to_the_same_bits(&set);
}

#[test]
fn a_broken_run_with_mean_scores_resumes_to_the_same_bits() {
    for method in ["el2n", "grand"] {
        let method = format!("selection.method={method}");
        let set =
            ["objective.method=trades", "epochs=4", &method, "selection.fraction=0.4", "selection.every=2"];
        assert_resumes_to_the_same_bits(&set);
    }
    let set = ["selection.method=easy-core", "epochs=4", "selection.fraction=0.4", "selection.every=2"];
    assert_resumes_to_the_same_bits(&set);
}

#[test]
fn a_broken_run_in_super_batches_resumes_to_the_same_bits() {
    let set = [
        "accelerate.method=bullet-train",
        "accelerate.super_batch=2",
        "accelerate.warmup_accuracy=0.12",
        "optimizer.average_decay=0.9",
        "selection.method=adv-grad-match",
        "selection.fraction=0.3",
        "selection.weights=average",
        "selection.random_share=0.3",
        "selection.target_draws=2",
        "selection.full_share=0.3",
        "selection.every=2",
        "epochs=5",
    ];
    assert_resumes_to_the_same_bits(&set);
}

#[test]
fn a_broken_run_with_weights_resumes_to_the_same_bits() {
    assert_resumes_to_the_same_bits(&["selection.method=info-batch", "selection.every=2"]);
}

#[test]
fn a_broken_run_that_takes_last_layer_gradients_resumes_to_the_same_bits() {
    let set = [
        "objective.method=trades",
        "accelerate.method=bullet-train",
        "selection.method=adv-glister",
        "epochs=8",
        "selection.fraction=0.4",
        "selection.every=3",
        "selection.warm_start=0.25",
        "selection.rounds=3",
    ];
    assert_resumes_to_the_same_bits(&set);
}

#[test]
fn a_broken_run_that_matches_gradients_resumes_to_the_same_bits() {
    let set = ["selection.method=adv-grad-match", "selection.fraction=0.3", "selection.every=3", "epochs=5"];
    assert_resumes_to_the_same_bits(&set);
}

#[test]
fn a_run_that_matches_gradients_tells_its_residual_and_trains_with_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let set = [
        "selection.method=adv-grad-match",
        "selection.fraction=0.3",
        "selection.every=2",
        "selection.holdout_draw=true",
        "epochs=3",
    ];
    run(&recipe(&set), folder.path(), None).unwrap();
    let lines = metrics(folder.path());
    assert_eq!(lines.iter().map(|line| line.selected).collect::<Vec<_>>(), [true, false, true]);
    for line in &lines {
        assert!(line.residual.is_some_and(|residual| residual > 0.0 && residual < 1.0), "{line:?}");
        assert_eq!(line.seconds_select > 0.0, line.selected);
        assert!(line.residual_holdout_draw > line.residual, "{line:?}");
        let entropy = line.subset_class_entropy.unwrap();
        assert!(entropy > 0.9 && entropy <= 1.0, "{entropy}");
        let weights = chosen(folder.path(), if line.epoch < 3 { 1 } else { 3 }).1;
        let squares: f64 = weights.iter().map(|&weight| f64::from(weight).powi(2)).sum();
        let size = (weights.len() as f64).powi(2) / squares;
        assert!((line.subset_effective_size.unwrap() / size - 1.0).abs() < 1e-5);
        assert!((0.0..=1.0).contains(&line.subset_wrong.unwrap()) && line.subset_accuracy_gap.is_some());
        assert_eq!(line.subset_missing_classes, Some(0));
    }
    assert_eq!(lines[0].residual, lines[1].residual);
    let file = &selections(folder.path())["epoch-0001.safetensors"];
    let file = SafeTensors::deserialize(file).unwrap();
    let figure = |name: &str| f64::from_le_bytes(file.tensor(name).unwrap().data().try_into().unwrap());
    assert_eq!(Some(figure("residual")), lines[0].residual);
    assert_eq!(Some(figure("residual_holdout_draw")), lines[0].residual_holdout_draw);
    assert_eq!(Some(figure("class_entropy")), lines[0].subset_class_entropy);
    assert_eq!(Some(figure("wrong")), lines[0].subset_wrong);
    let (_, weights) = chosen(folder.path(), 1);
    assert!(weights.len() <= 30 && weights.iter().any(|&weight| (weight - 1.0).abs() > 1e-3), "{weights:?}");
    assert_eq!(newest(folder.path()).selection.weights, chosen(folder.path(), 3).1);
}

/// One step of a run on weighted samples is a step along the explicitly weighted gradient.
#[test]
fn weights_enter_the_gradient() {
    // All of a subset in one batch, plain SGD: the change of the weights is the gradient.
    let set = [
        "batch=100",
        "data.augment=false",
        "optimizer.momentum=0",
        "optimizer.weight_decay=0",
        "schedule.kind=constant",
        "selection.method=info-batch",
    ];
    let recipe = recipe(&set);
    let (data, split) = (data(&recipe), split_of(&recipe));
    let network = train::network(&recipe);
    let mut engine = open(DeviceChoice::Cpu, network, recipe.batch).unwrap();
    engine.load_weights(&initialise(network, recipe.seed)).unwrap();
    let set = ImageSet::upload(&engine, &data.train.pixels, &data.train.labels).unwrap();
    let mut trainer = Trainer::new(&mut engine, &recipe, &set, &split).unwrap();
    assert!(!trainer.begin_epoch(&mut |_, _| true).unwrap());
    assert!(trainer.epoch(&mut |_| true).unwrap().unwrap().weights.is_none());
    // The loop over epochs does this.
    let mut state = trainer.checkpoint().unwrap();
    state.progress.epoch = 1;
    state.progress.step = 0;
    state.samples = Default::default();
    trainer.accepts(&state).unwrap();
    trainer.restore(&state).unwrap();
    assert!(trainer.begin_epoch(&mut |_, _| true).unwrap());
    assert!(!trainer.begin_epoch(&mut |_, _| true).unwrap(), "selected twice for one epoch");
    let subset = trainer.subset().unwrap().clone();
    let outcome = trainer.epoch(&mut |_| true).unwrap().unwrap();
    let after = trainer.checkpoint().unwrap().weights;
    drop(trainer);
    assert_eq!(outcome.order, epoch_order(recipe.seed, 1, &subset.samples));
    let weights = outcome.weights.unwrap();
    for (sample, weight) in outcome.order.iter().zip(&weights) {
        assert_eq!(*weight, subset.weights[subset.samples.binary_search(sample).unwrap()]);
    }
    let (low, high) = weights.iter().fold((f32::MAX, 0.0f32), |(low, high), &w| (low.min(w), high.max(w)));
    assert!(high / low > 1.9, "InfoBatch weighs the easy samples twice: {low} to {high}");

    // The same by hand: the logit gradient of each sample, times its weight, through the backward pass.
    let by_hand = |engine: &mut Engine, weights: &[f32]| -> Weights {
        engine.load_weights(&state.weights).unwrap();
        let batch = Batch::alloc(engine, outcome.order.len()).unwrap();
        engine.write(&batch.samples, &outcome.order).unwrap();
        engine.run(&batch.gather(&set, None)).unwrap();
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        let key = Key { seed: recipe.seed, purpose: Purpose::AttackStart, epoch: 1, step: 0 };
        recipe.new_objective().attack(engine, key, &batch).unwrap();
        engine.forward(Pass::Train { slot: 0 }, &batch.perturbed, &batch.logits).unwrap();
        engine.run(&batch.cross_entropy(1.0)).unwrap();
        let mut gradient = engine.read(&batch.logit_gradient).unwrap();
        for (row, weight) in gradient.chunks_exact_mut(network.classes).zip(weights) {
            row.iter_mut().for_each(|value| *value *= weight / weights.len() as f32);
        }
        engine.write(&batch.logit_gradient, &gradient).unwrap();
        engine.backward(Pass::Train { slot: 0 }, &batch.logit_gradient, GradRequest::PARAMETERS).unwrap();
        let learning_rate = recipe.optimizer.learning_rate as f32;
        let sgd = Sgd { learning_rate, momentum: 0.0, weight_decay: 0.0, ..Sgd::ZERO };
        engine.step(&sgd).unwrap();
        engine.weights(WeightSet::Live).unwrap()
    };
    // Of how far the step went, how far the two are apart.
    let distance = |a: &Weights, b: &Weights| -> f64 {
        let pairs =
            a.tensors.iter().flat_map(|(name, tensor)| tensor.values.iter().zip(&b.tensors[name].values));
        pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    };
    let step = distance(&after, &state.weights);
    let weighted = distance(&after, &by_hand(&mut engine, &weights)) / step;
    let unweighted = distance(&after, &by_hand(&mut engine, &vec![1.0; weights.len()])) / step;
    assert!(weighted < 1e-4, "{weighted} of the step apart");
    assert!(unweighted > 0.01, "{unweighted}: the weights change nothing");
}

#[test]
fn the_losses_of_training_are_remembered_and_ranked() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(&[
        "selection.method=loss-rank",
        "selection.fraction=0.3",
        "selection.warm_start=0.5",
        "selection.temperature=0",
        "selection.class_quotas=false",
    ]);
    let split = split_of(&recipe);
    // kappa 0.5 of 6 epochs at 0.3: one epoch on all samples. Broken off after its last step.
    let error = run(&recipe, folder.path(), Some(5)).unwrap_err();
    assert!(matches!(error, TrainError::Interrupted { .. }), "{error}");
    let state = newest(folder.path());
    assert_eq!((state.progress.epoch, state.progress.step), (0, 5));
    let order = epoch_order(recipe.seed, 0, &split.train);
    for (sample, loss) in order.iter().zip(&state.samples.losses) {
        let place = split.train.binary_search(sample).unwrap();
        assert_eq!(state.selection.losses[place].to_bits(), loss.to_bits(), "image {sample}");
    }
    run(&recipe, folder.path(), None).unwrap();
    let mut ranked: Vec<usize> = (0..TRAINED).collect();
    ranked.sort_by(|&a, &b| state.selection.losses[b].total_cmp(&state.selection.losses[a]));
    let mut expected: Vec<u32> = ranked[..30].iter().map(|&place| split.train[place]).collect();
    expected.sort_unstable();
    assert_eq!(chosen(folder.path(), 2), (expected, vec![1.0; 30]));
}

#[test]
fn a_warm_start_is_on_all_samples_and_goes_faster_through_the_schedule() {
    let folder = tempfile::tempdir().unwrap();
    let set = [
        "epochs=8",
        "selection.method=random-online",
        "selection.fraction=0.5",
        "selection.warm_start=0.5",
        "selection.every=3",
        "schedule.kind=step",
        "schedule.drops=[2, 6]",
        "attack.phases=[{from_epoch=1, steps=2}, {from_epoch=5, steps=3}]",
        "evaluation.every=4",
    ];
    let recipe = recipe(&set);
    let summary = run(&recipe, folder.path(), None).unwrap();
    let lines = metrics(folder.path());
    // Two whole epochs stand for four of the schedule; then four on subsets.
    assert_eq!(lines.iter().map(|line| line.images).collect::<Vec<_>>(), [100, 100, 50, 50, 50, 50]);
    let subset = |line: &EpochMetrics| (line.subset_size, line.subset_fraction, line.selected);
    let (new, old) = ((Some(50), Some(0.5), true), (Some(50), Some(0.5), false));
    let none = (None, None, false);
    assert_eq!(lines.iter().map(subset).collect::<Vec<_>>(), [none, none, new, old, old, new]);
    // At the last step of each epoch.
    let rates: Vec<i32> =
        lines.iter().map(|line| (line.learning_rate / 0.02).log10().round() as i32).collect();
    assert_eq!(rates, [0, -1, -1, -1, -2, -2]);
    // The phases begin at 2 (of 1), and at 5.
    let steps: Vec<f64> = lines.iter().map(|line| line.attack_steps_per_sample).collect();
    assert_eq!(steps, [1.0, 2.0, 2.0, 3.0, 3.0, 3.0]);
    // Validated every four epochs of the schedule.
    let validated: Vec<bool> = lines.iter().map(|line| line.validation_robust.is_some()).collect();
    assert_eq!(validated, [false, true, false, false, false, true]);
    let seconds = summary.seconds;
    assert!((summary.images_per_second * (seconds.attack + seconds.train) - 400.0).abs() < 1e-6);
    assert_eq!(selections(folder.path()).len(), 2);
}

#[test]
fn short_is_all_samples_under_the_same_rates() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(&["epochs=10", "selection.method=short", "selection.fraction=0.3"]);
    run(&recipe, folder.path(), None).unwrap();
    let lines = metrics(folder.path());
    assert_eq!(lines.iter().map(|line| line.images).collect::<Vec<_>>(), [100, 100, 100]);
    for (epoch, line) in lines.iter().enumerate() {
        let share = (5.0 * epoch as f64 + 4.0) / 15.0;
        let expected = 0.02 * (1.0 + (std::f64::consts::PI * share).cos()) / 2.0;
        assert!((line.learning_rate - expected).abs() < 1e-12, "{line:?}");
        assert!(!line.selected && line.subset_size.is_none());
    }
    assert!(selections(folder.path()).is_empty());
    assert_eq!(newest(folder.path()).selection, Default::default());
}

#[test]
fn random_is_drawn_once_and_random_online_each_time() {
    let subsets = |method: &str, every: &str| {
        let folder = tempfile::tempdir().unwrap();
        let method = format!("selection.method={method}");
        let recipe = recipe(&["epochs=3", "attack.steps=0", &method, "selection.fraction=0.37", every]);
        run(&recipe, folder.path(), None).unwrap();
        let lines = metrics(folder.path());
        let epochs = lines.iter().filter(|line| line.selected).map(|line| line.epoch);
        let subsets: Vec<_> = epochs.map(|epoch| chosen(folder.path(), epoch)).collect();
        assert_eq!(subsets.len(), selections(folder.path()).len());
        let train = split_of(&recipe).train;
        for (indices, weights) in &subsets {
            assert_eq!((indices.len(), weights), (37, &vec![1.0; 37]));
            assert!(indices.is_sorted_by(|a, b| a < b));
            assert!(indices.iter().all(|index| train.binary_search(index).is_ok()));
        }
        subsets
    };
    let once = subsets("random", "selection.every=0");
    let online = subsets("random-online", "selection.every=1");
    assert_eq!((once.len(), online.len()), (1, 3));
    assert_eq!(once[0], online[0]);
    assert!(online[0] != online[1] && online[1] != online[2] && online[0] != online[2]);
    assert_eq!(subsets("random-online", "selection.every=2").len(), 2);
    let balanced = &subsets("class-balanced", "selection.every=0")[0].0;
    assert_ne!(balanced, &once[0].0);
}

/// RS2 without replacement through a run: four subsets of a quarter are all samples, and so are the next four.
#[test]
fn random_online_walks_through_all_samples() {
    let folder = tempfile::tempdir().unwrap();
    let set = ["epochs=10", "attack.steps=0", "selection.method=random-online", "selection.fraction=0.25"];
    let recipe = recipe(&[&set[..], &["selection.warm_start=0.2"]].concat());
    run(&recipe, folder.path(), None).unwrap();
    let warm = recipe.epoch_schedule().first_selection().unwrap() as u32;
    assert_eq!((warm, recipe.epoch_schedule().epochs()), (1, 9));
    for round in [warm + 1..warm + 5, warm + 5..warm + 9] {
        let mut all: Vec<u32> = round.flat_map(|epoch| chosen(folder.path(), epoch).0).collect();
        all.sort_unstable();
        assert_eq!(all, split_of(&recipe).train);
    }
    let folder = tempfile::tempdir().unwrap();
    let recipe = self::recipe(&[&set[..], &["epochs=4", "selection.sampling=independent"]].concat());
    run(&recipe, folder.path(), None).unwrap();
    let mut all: Vec<u32> = (1..=4).flat_map(|epoch| chosen(folder.path(), epoch).0).collect();
    all.sort_unstable();
    all.dedup();
    assert!(all.len() < TRAINED, "independent draws missed none of {TRAINED}");
}

/// EL2N and last-layer GraNd of every step by hand, added up over two epochs: all samples, then a subset.
#[test]
fn mean_scores_are_those_of_every_train_pass() {
    for (objective, method) in [("trades", "grand"), ("trades", "el2n"), ("pgd-at", "grand")] {
        let folder = tempfile::tempdir().unwrap();
        let set = [
            &format!("objective.method={objective}"),
            &format!("selection.method={method}"),
            "attack.steps=1",
            "epochs=4",
            "selection.fraction=0.5",
            "selection.warm_start=0.5",
            "selection.temperature=0",
            "selection.class_quotas=false",
            "schedule.kind=constant",
            "checkpoint.keep=9",
        ];
        let recipe = recipe(&set);
        assert_eq!((recipe.selection.every, recipe.epoch_schedule().first_selection()), (1, Some(1)));
        run(&recipe, folder.path(), None).unwrap();
        let state = |epoch: u32| {
            let name = checkpoint::name(epoch, 0);
            checkpoint::load(RunFolder::open(folder.path()).checkpoints().folder(name))
                .unwrap()
                .selection
                .scores
        };
        let (data, split) = (data(&recipe), split_of(&recipe));
        let network = train::network(&recipe);
        let mut engine = open(DeviceChoice::Cpu, network, recipe.batch).unwrap();
        let engine = &mut engine;
        engine.load_weights(&initialise(network, recipe.seed)).unwrap();
        let set = ImageSet::upload(engine, &data.train.pixels, &data.train.labels).unwrap();
        let mut by_hand = recipe.new_objective();
        let mut scores: Vec<Vec<f64>> = vec![Vec::new(); TRAINED];
        for epoch in 0..2u32 {
            let samples = if epoch == 0 { split.train.clone() } else { chosen(folder.path(), 2).0 };
            for part in epoch_order(recipe.seed, epoch, &samples).chunks(recipe.batch) {
                let batch = Batch::alloc(engine, part.len()).unwrap();
                engine.write(&batch.samples, part).unwrap();
                let augment = recipe.augmentation(recipe.seed, epoch);
                engine.run(&batch.gather(&set, augment)).unwrap();
                engine.fold_batch_norm(WeightSet::Live).unwrap();
                let key = Key { seed: recipe.seed, purpose: Purpose::AttackStart, epoch, step: 0 };
                by_hand.attack(engine, key, &batch).unwrap();
                // What the train pass sees of x', on a copy of the state: its own statistics, nothing moved.
                let (weights, optimizer) =
                    (engine.weights(WeightSet::Live).unwrap(), engine.optimizer().unwrap());
                let pass = Pass::Train { slot: 0 };
                engine.forward(pass, &batch.perturbed, &batch.logits).unwrap();
                let features: Tensor<f32> =
                    engine.alloc("features", part.len() * network.features()).unwrap();
                engine.features(pass, 0, &features).unwrap();
                let (logits, features) =
                    (engine.read(&batch.logits).unwrap(), engine.read(&features).unwrap());
                engine.load_weights(&weights).unwrap();
                engine.load_optimizer(&optimizer).unwrap();
                for (at, sample) in part.iter().enumerate() {
                    let row = &logits[at * network.classes..][..network.classes];
                    let total: f64 = row.iter().map(|&z| f64::from(z).exp()).sum();
                    let label = data.train.labels[*sample as usize] as usize;
                    let error = |(class, &z): (usize, &f32)| {
                        (f64::from(z).exp() / total - if class == label { 1.0 } else { 0.0 }).powi(2)
                    };
                    let error = row.iter().enumerate().map(error).sum::<f64>().sqrt();
                    let h = &features[at * network.features()..][..network.features()];
                    let h: f64 = h.iter().map(|&h| f64::from(h).powi(2)).sum();
                    let score = if method == "el2n" { error } else { error * (1.0 + h).sqrt() };
                    scores[split.train.binary_search(sample).unwrap()].push(score);
                }
                by_hand.gradient(engine, &batch).unwrap();
                engine
                    .step(&Sgd {
                        learning_rate: recipe.optimizer.learning_rate as f32,
                        momentum: recipe.optimizer.momentum as f32,
                        weight_decay: recipe.optimizer.weight_decay as f32,
                        ..Sgd::ZERO
                    })
                    .unwrap();
            }
            let actual = state(epoch + 1);
            for (at, expected) in scores.iter().enumerate() {
                let mean = expected.iter().sum::<f64>() / expected.len() as f64;
                let apart = (f64::from(actual.means[at]) / mean - 1.0).abs();
                assert!(
                    apart < 1e-3,
                    "{objective}, {method}, epoch {epoch}: {} and {mean}",
                    actual.means[at]
                );
                assert_eq!(actual.counts[at] as usize, expected.len());
            }
            if epoch == 0 {
                // The subset of the second epoch has the largest means of the first.
                let mut ranked: Vec<usize> = (0..TRAINED).collect();
                ranked.sort_by(|&a, &b| actual.means[b].total_cmp(&actual.means[a]));
                let mut expected: Vec<u32> = ranked[..50].iter().map(|&at| split.train[at]).collect();
                expected.sort_unstable();
                assert_eq!(chosen(folder.path(), 2).0, expected);
            }
        }
    }
}

/// Without a trained epoch EL2N is measured once, and that is the first score of every mean; EasyCore's are all measured.
#[test]
fn scores_that_training_does_not_give_are_measured() {
    for (method, counts) in [("el2n", [1.0, 2.0]), ("easy-core", [3.0, 3.0])] {
        let folder = tempfile::tempdir().unwrap();
        let method_text = format!("selection.method={method}");
        let set = ["epochs=3", "attack.steps=0", &method_text, "selection.fraction=0.3", "selection.every=1"];
        run(&recipe(&set), folder.path(), None).unwrap();
        let scores = newest(folder.path()).selection.scores;
        let low = scores.counts.iter().copied().fold(f32::MAX, f32::min);
        assert_eq!(low, counts[0], "{method}");
        assert!(scores.counts.iter().all(|&count| count >= counts[0]), "{method}");
        assert!(scores.counts.iter().any(|&count| count >= counts[1]), "{method}");
        assert!(scores.means.iter().all(|mean| mean.is_finite()), "{method}");
        let folder = tempfile::tempdir().unwrap();
        run(&recipe(&[&set[..], &["selection.scores=snapshot"]].concat()), folder.path(), None).unwrap();
        assert_eq!(newest(folder.path()).selection.scores, Default::default(), "{method}");
    }
}

/// A selection on the moving average uses its weights and statistics, and trains the live ones.
#[test]
fn a_selection_may_use_the_moving_average() {
    let set = [
        "epochs=2",
        "attack.steps=0",
        "optimizer.average_decay=0.9",
        "optimizer.learning_rate=0.1",
        "selection.method=easy-core",
        "selection.scores=snapshot",
        "selection.temperature=0",
        "selection.class_quotas=false",
        "selection.fraction=0.3",
        "selection.warm_start=0.5",
    ];
    let mut subsets = Vec::new();
    for weights in ["live", "average"] {
        let folder = tempfile::tempdir().unwrap();
        let recipe = recipe(&[&set[..], &[&format!("selection.weights={weights}")]].concat());
        run(&recipe, folder.path(), None).unwrap();
        let checkpoints = RunFolder::open(folder.path()).checkpoints();
        let state = checkpoint::load(checkpoints.folder(checkpoint::name(1, 0))).unwrap();
        let (data, split) = (data(&recipe), split_of(&recipe));
        let mut engine = open(DeviceChoice::Cpu, train::network(&recipe), TRAINED).unwrap();
        let engine = &mut engine;
        let average = state.optimizer.average.unwrap();
        engine.load_weights(if weights == "live" { &state.weights } else { &average }).unwrap();
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        let set = ImageSet::upload(engine, &data.train.pixels, &data.train.labels).unwrap();
        let batch = Batch::alloc(engine, TRAINED).unwrap();
        engine.write(&batch.samples, &split.train).unwrap();
        engine.run(&batch.gather(&set, None)).unwrap();
        engine.forward(Pass::Eval, &batch.images, &batch.logits).unwrap();
        engine.run(&batch.cross_entropy(1.0)).unwrap();
        engine.backward(Pass::Eval, &batch.logit_gradient, GradRequest::images(&batch.perturbed)).unwrap();
        let gradients = engine.read(&batch.perturbed).unwrap();
        let norms: Vec<f64> = gradients
            .chunks_exact(gradients.len() / TRAINED)
            .map(|image| image.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>())
            .collect();
        let mut ranked: Vec<usize> = (0..TRAINED).collect();
        ranked.sort_by(|&a, &b| norms[a].total_cmp(&norms[b]));
        let mut expected: Vec<u32> = ranked[..30].iter().map(|&at| split.train[at]).collect();
        expected.sort_unstable();
        let (actual, _) = chosen(folder.path(), 2);
        assert_eq!(actual, expected, "{weights}");
        subsets.push(actual);
    }
    assert_ne!(subsets[0], subsets[1], "both sets of weights choose alike");
}

#[test]
fn the_last_epochs_may_be_on_all_samples() {
    let folder = tempfile::tempdir().unwrap();
    let set = ["epochs=8", "attack.steps=0", "selection.method=random-online", "selection.fraction=0.25"];
    let recipe = recipe(&[&set[..], &["selection.full_share=0.3", "selection.every=2"]].concat());
    run(&recipe, folder.path(), None).unwrap();
    let lines = metrics(folder.path());
    // 0.7 of 8 epochs are 5.6: the earlier epoch.
    assert_eq!(lines.iter().map(|line| line.images).collect::<Vec<_>>(), [25, 25, 25, 25, 25, 100, 100, 100]);
    assert_eq!(selections(folder.path()).len(), 3);
    let predicted = Cost::predicted(&recipe);
    assert_eq!((predicted.images, predicted.epochs), (425.0, 8));
}

#[test]
fn info_batch_prunes_between_first_and_last_epochs_and_its_metrics_are_weighted() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(&["selection.method=info-batch", "selection.full_share=0.3"]);
    // Behind the last step of the second epoch. The first has five steps, the second as many as its subset needs.
    let mut questions = 5;
    let state = loop {
        questions += 1;
        assert!(questions < 12, "the end of the second epoch was not met");
        let part = tempfile::tempdir().unwrap();
        run(&recipe, part.path(), Some(questions)).unwrap_err();
        let state = newest(part.path());
        if state.progress.epoch == 1 && state.samples.losses.len() == state.selection.samples.len() {
            break state;
        }
    };
    let summary = run(&recipe, folder.path(), None).unwrap();
    let lines = metrics(folder.path());
    let pruned: Vec<bool> = lines.iter().map(|line| line.images < TRAINED).collect();
    // 0.7 of 6 epochs are 4.2: rounded down.
    assert_eq!(pruned, [false, true, true, true, false, false]);
    assert_eq!(selections(folder.path()).len(), 3);
    for line in &lines[1..4] {
        let (indices, weights) = chosen(folder.path(), line.epoch);
        assert_eq!((indices.len(), line.subset_size), (line.images, Some(line.images)));
        // As published, and not divided by their mean.
        assert!(weights.iter().all(|&weight| weight == 1.0 || weight == 2.0) && weights.contains(&2.0));
        assert_eq!(line.images_per_second, line.images as f64 / (line.seconds_attack + line.seconds_train));
    }
    let total: usize = lines.iter().map(|line| line.images).sum();
    assert!((summary.images_per_second * summary.seconds.training() / total as f64 - 1.0).abs() < 1e-9);

    let (indices, weights) = chosen(folder.path(), 2);
    assert_eq!((&indices, &weights), (&state.selection.samples, &state.selection.weights));
    let labels = data(&recipe).train.labels;
    let (mut sum, mut loss, mut right, mut plain) = (0.0, 0.0, 0.0, 0.0);
    for (place, sample) in epoch_order(recipe.seed, 1, &indices).iter().enumerate() {
        let weight = f64::from(weights[indices.binary_search(sample).unwrap()]);
        sum += weight;
        loss += weight * f64::from(state.samples.losses[place]);
        plain += f64::from(state.samples.losses[place]);
        right += weight * f64::from(u8::from(state.samples.predictions[place] == labels[*sample as usize]));
    }
    assert!((lines[1].train_loss - loss / sum).abs() < 1e-9, "{} and {}", lines[1].train_loss, loss / sum);
    assert!((lines[1].train_robust - right / sum).abs() < 1e-9);
    assert!((plain / indices.len() as f64 - loss / sum).abs() > 1e-4, "the weights change nothing");
}

#[test]
fn a_subset_smaller_than_a_batch_is_one_step() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(&["epochs=2", "selection.method=random-online", "selection.fraction=0.01"]);
    run(&recipe, folder.path(), None).unwrap();
    assert!(metrics(folder.path()).iter().all(|line| line.images == 1 && line.train_loss.is_finite()));
}

#[test]
fn a_checkpoint_of_other_pruning_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let pruned = recipe(&["selection.method=random-online", "selection.fraction=0.5"]);
    run(&pruned, folder.path(), Some(2)).unwrap_err();
    // The recipe of the folder is exchanged too: it is refused otherwise, before the checkpoint is read.
    let resume = |other: &Recipe| {
        fs::write(folder.path().join("recipe.toml"), other.to_toml()).unwrap();
        run(other, folder.path(), None).unwrap_err()
    };
    let error = resume(&recipe(&[]));
    assert!(matches!(error, TrainError::Mismatch { .. }), "{error}");
    assert!(error.to_string().contains("last losses of 100 samples, expected 0"), "{error}");
    let error = resume(&recipe(&["selection.method=random-online", "selection.fraction=0.5", "seed=6"]));
    assert!(error.to_string().contains("not a training image of this run"), "{error}");
}
