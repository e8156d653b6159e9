//! Whole runs on the reference engine: they learn, leave a whole folder, and resume to the same bits from anywhere.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use secateur::data::DataSet;
use secateur::engine::{DeviceChoice, StopFlag, open};
use secateur::model::Weights;
use secateur::progress::StopWhen;
use secateur::recipe::Recipe;
use secateur::train::checkpoint;
use secateur::train::metrics::EpochMetrics;
use secateur::train::result::Summary;
use secateur::train::run_folder::{RunFolder, RunFolderError};
use secateur::train::{self, TrainError, TrainingRun, TrainingSetup};
use tempfile::TempDir;

use crate::common::tiny::{metrics, timeless, train_in as run};

/// 100 training images in batches of 24: four steps and a smaller fifth. 20 for validation.
const RECIPE: &str = r#"
    seed = 5
    epochs = 3
    batch = 24
    [data]
    set = "generated"
    train_limit = 120
    test_limit = 40
    validation = 20
    [model]
    width = 16
    [objective]
    label_smoothing = 0.1
    [attack]
    steps = 2
    step_size = "4/255"
    [optimizer]
    learning_rate = 0.02
    average_decay = 0.8
    [schedule]
    kind = "one-cycle"
    [evaluation]
    protocols = ["clean", "pgd3"]
    best_by = "pgd2"
"#;
const STEPS_PER_EPOCH: usize = 5;
/// Batches of a validation: clean and robust, of the moving average and of the live weights.
const VALIDATION: usize = 4;

fn recipe() -> Recipe {
    Recipe::parse("test", RECIPE, &[]).unwrap()
}

fn data(recipe: &Recipe) -> DataSet {
    recipe.data.open(None).unwrap()
}

/// One run without a break, shared by the tests.
fn unbroken() -> &'static (TempDir, Summary) {
    static RUN: OnceLock<(TempDir, Summary)> = OnceLock::new();
    RUN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let summary = run(&recipe(), folder.path(), None).unwrap();
        (folder, summary)
    })
}

fn assert_same_run(folder: &Path) {
    let (whole, _) = unbroken();
    for name in ["last.safetensors", "best.safetensors"] {
        let (actual, expected) =
            (fs::read(folder.join(name)).unwrap(), fs::read(whole.path().join(name)).unwrap());
        assert!(actual == expected, "{name}: other bits than those of the unbroken run");
    }
    assert_eq!(timeless(folder), timeless(whole.path()));
    let newest = |folder: &Path| {
        let checkpoints = RunFolder::open(folder).checkpoints();
        checkpoint::load_newest(&checkpoints, &mut |error| panic!("{error}")).unwrap().unwrap().1
    };
    let (actual, expected) = (newest(folder), newest(whole.path()));
    assert!(actual.weights == expected.weights && actual.optimizer == expected.optimizer);
    assert_eq!(actual.progress.best, expected.progress.best);
    assert_eq!(actual.progress.optimizer_steps, expected.progress.optimizer_steps);
}

#[test]
fn a_run_learns() {
    let folder = tempfile::tempdir().unwrap();
    // A few images, always the same pixels: learned by heart, so that the fall of the loss is no matter of luck.
    let set = [
        "epochs=12",
        "data.train_limit=44",
        "data.augment=false",
        "objective.label_smoothing=0",
        "optimizer.average_decay=none",
        "schedule.kind=constant",
        "evaluation.every=0",
    ];
    let recipe = Recipe::parse("test", RECIPE, &set.map(String::from)).unwrap();
    println!("seed {}", recipe.seed);
    run(&recipe, folder.path(), None).unwrap();
    let losses: Vec<f64> = metrics(folder.path()).iter().map(|line| line.train_loss).collect();
    assert!(losses[11] < 0.6 * losses[0], "{losses:?}");
}

#[test]
fn a_run_leaves_a_whole_folder() {
    let (folder, summary) = unbroken();
    let (recipe, path) = (recipe(), folder.path());
    println!("seed {}", recipe.seed);

    let metrics = metrics(path);
    assert_eq!(metrics.iter().map(|line| line.epoch).collect::<Vec<_>>(), [1, 2, 3]);
    for line in &metrics {
        assert_eq!(line.images, 100);
        assert!(
            line.seconds_attack > 0.0 && line.seconds_train > 0.0 && line.seconds_evaluate > 0.0,
            "{line:?}"
        );
        let rate = 100.0 / (line.seconds_attack + line.seconds_train);
        assert!((line.images_per_second / rate - 1.0).abs() < 1e-9, "{line:?}");
        assert!(line.validation_clean.is_some() && line.validation_robust.is_some());
        // The recipe keeps a moving average: both sets of weights are evaluated.
        assert!(line.validation_live_clean.is_some() && line.validation_live_robust.is_some());
    }
    // The best is the first epoch with the highest robust accuracy on the validation images.
    let robust: Vec<f64> = metrics.iter().map(|line| line.validation_robust.unwrap()).collect();
    let top = robust.iter().cloned().fold(0.0, f64::max);
    let best = 1 + robust.iter().position(|&value| value == top).unwrap() as u32;
    assert_eq!(summary.best.unwrap().epoch, best);
    assert_eq!(metrics.iter().rposition(|line| line.best).unwrap() as u32 + 1, best);

    assert_eq!(fs::read_to_string(path.join("recipe.toml")).unwrap(), recipe.to_toml());
    let result = fs::read_to_string(path.join("result.json")).unwrap();
    assert_eq!(result, serde_json::to_string_pretty(summary).unwrap() + "\n");
    assert_eq!(summary.test.len(), 4);
    for row in &summary.test {
        assert_eq!(row.total, 40);
        assert_eq!(row.accuracy, row.correct as f64 / 40.0);
    }
    for name in ["last.safetensors", "best.safetensors"] {
        let (network, weights) = Weights::read_network(&path.join(name)).unwrap();
        assert_eq!(network, train::network(&recipe));
        weights.check(&network).unwrap();
    }
    // The last weights are the moving average that the recipe keeps, not the live ones.
    let last = Weights::read(&path.join("last.safetensors")).unwrap();
    let newest = path.join("checkpoints").join(checkpoint::name(3, 0));
    let state = checkpoint::load(&newest).unwrap();
    assert_eq!(Some(&last), state.optimizer.average.as_ref());
    assert_ne!(last, state.weights);
}

/// Validation of the live weights is that of a run that keeps no average: the average changes nothing in training.
#[test]
fn live_weights_are_validated_as_if_there_were_no_average() {
    let (folder, _) = unbroken();
    let plain = tempfile::tempdir().unwrap();
    let recipe = Recipe::parse("test", RECIPE, &["optimizer.average_decay=none".into()]).unwrap();
    println!("seed {}", recipe.seed);
    run(&recipe, plain.path(), None).unwrap();
    let live = |line: &EpochMetrics| (line.validation_live_clean, line.validation_live_robust);
    let only = |line: &EpochMetrics| (line.validation_clean, line.validation_robust);
    let (averaged, plain) = (metrics(folder.path()), metrics(plain.path()));
    assert_eq!(averaged.iter().map(live).collect::<Vec<_>>(), plain.iter().map(only).collect::<Vec<_>>());
    assert!(plain.iter().all(|line| live(line) == (None, None)));
}

/// Two steps, one of them the same run written in another way: what the schedule, the average and the padding say reaches
/// the step.
#[test]
fn momentum_decay_and_padding_of_the_recipe_reach_the_step() {
    let last = |set: &[&str]| {
        let common = ["epochs=1", "data.train_limit=68", "evaluation.every=0", "evaluation.protocols=[]"];
        let set: Vec<String> = common.iter().chain(set).map(|&text| text.into()).collect();
        let recipe = Recipe::parse("test", RECIPE, &set).unwrap();
        let folder = tempfile::tempdir().unwrap();
        run(&recipe, folder.path(), None).unwrap();
        fs::read(folder.path().join("last.safetensors")).unwrap()
    };
    let cyclic = ["schedule.kind=cyclic", "optimizer.average_decay=none"];
    let momentum = last(&[&cyclic[..], &["optimizer.momentum=0.5"]].concat());
    assert!(momentum == last(&[&cyclic[..], &["schedule.momentum_range=[0.5, 0.5]"]].concat()), "momentum");
    assert!(momentum != last(&cyclic), "momentum 0.9 and 0.5 give the same weights");

    // The first step starts the average, the second one has the decay (1 + 1) / (10 + 1).
    let decay = last(&["optimizer.average_decay=0.999"]);
    let as_plain = ["optimizer.average_decay=0.18181818181818182", "optimizer.average_warmup=false"];
    assert!(decay == last(&as_plain), "decay of the average");
    assert!(decay != last(&["optimizer.average_decay=0.999", "optimizer.average_warmup=false"]));

    let reflect = "data.padding=reflect";
    assert!(last(&[reflect]) != last(&[]), "padding");
    assert!(last(&[reflect, "data.augment=false"]) == last(&["data.augment=false"]), "padding without crops");
}

#[test]
fn a_run_broken_anywhere_resumes_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let progress = || {
        let newest = checkpoint::load_newest(&path.join("checkpoints"), &mut |error| panic!("{error}"));
        let progress = newest.unwrap().unwrap().1.progress;
        (progress.epoch, progress.step)
    };
    // In the middle of the first epoch; after its last step; in a validation of the average, in one of the live weights; in
    // the test of the end.
    let stops = [
        (3, (0, 3)),
        (2, (0, STEPS_PER_EPOCH)),
        (VALIDATION + STEPS_PER_EPOCH + 1, (1, STEPS_PER_EPOCH)),
        (3, (1, STEPS_PER_EPOCH)),
    ];
    for (questions, place) in stops {
        let error = run(&recipe(), path, Some(questions)).unwrap_err();
        assert!(matches!(error, TrainError::Interrupted { .. }), "{error}");
        assert_eq!(progress(), place);
        assert_eq!(metrics_or_none(path).len(), place.0 as usize);
    }
    // Two validations are left, five steps, and then the first batch of the test.
    let error = run(&recipe(), path, Some(2 * VALIDATION + STEPS_PER_EPOCH + 1)).unwrap_err();
    assert!(matches!(error, TrainError::Interrupted { .. }), "{error}");
    assert_eq!(progress(), (3, 0));
    assert!(!path.join("result.json").exists());
    run(&recipe(), path, None).unwrap();
    assert_same_run(path);
}

fn metrics_or_none(folder: &Path) -> Vec<EpochMetrics> {
    if folder.join("metrics.jsonl").exists() { metrics(folder) } else { Vec::new() }
}

#[test]
fn a_damaged_newest_checkpoint_costs_time_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    // After step 2 of epoch 3, with epochs 1 and 2 saved.
    let questions = 2 * (STEPS_PER_EPOCH + VALIDATION) + 2;
    run(&recipe(), path, Some(questions)).unwrap_err();
    let newest = path.join("checkpoints").join(checkpoint::name(2, 2));
    let weights = newest.join("weights.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&weights, bytes).unwrap();
    // What a power cut leaves of a line.
    let lines = fs::read_to_string(path.join("metrics.jsonl")).unwrap();
    fs::write(path.join("metrics.jsonl"), lines + "{\"epoch\": 3, \"learni").unwrap();
    run(&recipe(), path, None).unwrap();
    // The damaged one is still there under its name unless the run has cleared it away as old.
    assert_same_run(path);
}

/// Metrics as another build and an editor left them, and as a failing disk did.
#[test]
fn a_resumed_run_keeps_the_lines_that_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    // In the second epoch.
    run(&recipe(), path, Some(STEPS_PER_EPOCH + VALIDATION + 1)).unwrap_err();
    let file = path.join("metrics.jsonl");
    let line = fs::read_to_string(&file).unwrap();
    let rate = line.split("\"images_per_second\":").nth(1).unwrap().trim_end();
    let older = line.replace(rate, "null,\"of_a_later_build\":{\"a\":[1]}}");
    assert_ne!(older, line);
    let older = format!("\u{feff}{}\n\n", older.trim_end());
    let damaged = format!("{older}\0\0\0\0\n{{\"epoch\":2,\"learni");
    fs::write(&file, &damaged).unwrap();
    // Stopped at once: nothing is lost by trying.
    run(&recipe(), path, Some(1)).unwrap_err();
    assert_eq!(fs::read_to_string(&file).unwrap(), older);
    assert_eq!(fs::read_to_string(path.join("metrics.jsonl.damaged-1")).unwrap(), damaged);
    run(&recipe(), path, None).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with(&older), "{text}");
    assert_eq!(metrics(path).iter().map(|line| line.epoch).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(!path.join("metrics.jsonl.damaged-2").exists());
    let [first, ..] = &metrics(path)[..] else { panic!("no epoch") };
    assert!(first.images_per_second.is_nan() && first.train_loss > 0.0);
}

/// The engine stops within the attack of a step: the step is done again, with the same bits.
#[test]
fn a_stop_within_a_step_costs_that_step() {
    let folder = tempfile::tempdir().unwrap();
    let stop = StopFlag::default();
    let recipe = recipe();
    let data = data(&recipe);
    let mut engine = open(DeviceChoice::Cpu, train::network(&recipe), recipe.batch).unwrap();
    engine.stop_on(Some(stop.clone()));
    let asked = Cell::new(0);
    // Requested after the second step, and not by the result.
    let ask = StopWhen(|| {
        asked.set(asked.get() + 1);
        if asked.get() == 2 {
            stop.request();
        }
        false
    });
    let setup = TrainingSetup { recipe: &recipe, data: &data, data_path: None };
    let run_folder = RunFolder::create(folder.path()).unwrap();
    let mut first = TrainingRun::start(&mut engine, setup, run_folder).unwrap();
    let error = first.run(&ask).unwrap_err();
    assert!(matches!(error, TrainError::Interrupted { .. }), "{error}");
    let newest = checkpoint::load_newest(first.folder().checkpoints(), &mut |error| panic!("{error}"));
    let progress = newest.unwrap().unwrap().1.progress;
    assert_eq!((progress.epoch, progress.step, asked.get()), (0, 2, 2));
    drop(first);
    run(&recipe, folder.path(), None).unwrap();
    assert_same_run(folder.path());
}

#[test]
fn what_the_end_has_measured_is_not_measured_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    // Steps and validations of every epoch, and the first of the two protocols of the test, in two batches.
    let training = 3 * (STEPS_PER_EPOCH + VALIDATION);
    let error = run(&recipe(), path, Some(training + 2 + 1)).unwrap_err();
    assert!(matches!(error, TrainError::Interrupted { .. }), "{error}");
    let best = path.join("best.state");
    assert!(best.exists() && !path.join("result.json").exists());
    let finished = || {
        let text = fs::read_to_string(&best).unwrap();
        let state: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        state["finished"].as_array().unwrap().len()
    };
    assert_eq!(finished(), 1);
    // A damaged one counts for nothing: the third question is again about the second protocol.
    let whole = fs::read(&best).unwrap();
    fs::write(&best, &whole[..whole.len() / 2]).unwrap();
    run(&recipe(), path, Some(3)).unwrap_err();
    assert_eq!(finished(), 1);
    // A whole one does not: there the second protocol takes the first two questions.
    let ended = run(&recipe(), path, Some(3));
    assert!(ended.is_ok() || finished() == 2, "the first protocol was measured again");
    run(&recipe(), path, None).unwrap();
    assert_same_run(path);
    assert!(!best.exists() && !path.join("last.state").exists());
    let result: serde_json::Value =
        serde_json::from_slice(&fs::read(path.join("result.json")).unwrap()).unwrap();
    for (row, expected) in unbroken().1.test.iter().enumerate() {
        assert_eq!(result["test"][row]["correct"], expected.correct);
    }
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    // Each step turns a weight w into -99 w, whatever the gradient.
    let set = ["optimizer.learning_rate=100", "optimizer.weight_decay=1", "schedule.kind=constant"];
    let recipe = Recipe::parse("test", RECIPE, &set.map(String::from)).unwrap();
    let error = run(&recipe, folder.path(), None).unwrap_err();
    // Whichever is met first: the losses of an epoch, or the logits of its validation.
    assert!(matches!(error, TrainError::Diverged { .. } | TrainError::NonFinite { .. }), "{error}");
    assert!(error.to_string().contains("lower optimizer.learning_rate"), "{error}");
}

#[test]
fn a_checkpoint_of_another_recipe_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    run(&recipe(), folder.path(), Some(3)).unwrap_err();
    let longer = Recipe::parse("test", RECIPE, &["batch=50".into()]).unwrap();
    let error = run(&longer, folder.path(), None).unwrap_err();
    assert!(matches!(error, TrainError::Folder(RunFolderError::OtherRecipe { .. })), "{error}");
    assert!(error.to_string().contains("batch = 50, there batch = 24"), "{error}");
    // Nor is one accepted whose recipe was exchanged.
    fs::write(folder.path().join("recipe.toml"), longer.to_toml()).unwrap();
    let error = run(&longer, folder.path(), None).unwrap_err();
    assert!(matches!(error, TrainError::Mismatch { .. }), "{error}");
}

#[test]
fn a_folder_with_something_else_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("thesis.tex");
    fs::write(&file, "all of it").unwrap();
    let error = RunFolder::create(folder.path()).unwrap_err();
    assert!(matches!(error, RunFolderError::NotEmpty { .. }), "{error}");
    let error = RunFolder::state(folder.path()).unwrap_err();
    assert!(matches!(error, RunFolderError::NotARun { .. }), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "all of it");
}

#[test]
fn runs_without_a_name_get_the_next_free_number() {
    let folder = tempfile::tempdir().unwrap();
    for number in 1..=3 {
        let run = RunFolder::create_numbered(folder.path(), "quick").unwrap();
        assert_eq!(run.path(), folder.path().join(format!("quick-{number}")));
    }
}
