//! Tiny trainings on generated images, for the tests of methods: a recipe, a whole run, and one batch on an engine.

use std::cell::Cell;
use std::path::Path;
use std::sync::OnceLock;

use secateur::batch::Batch;
use secateur::data::DataSet;
use secateur::engine::{DeviceChoice, Engine, GradRequest, Pass, Sgd, Tensor, WeightSet, open};
use secateur::model::{Weights, initialise};
use secateur::objective::Method;
use secateur::ops::ImageSet;
use secateur::philox::{Key, Purpose};
use secateur::progress::StopWhen;
use secateur::recipe::Recipe;
use secateur::train::checkpoint::{self, Checkpoint};
use secateur::train::metrics::EpochMetrics;
use secateur::train::result::Summary;
use secateur::train::run_folder::RunFolder;
use secateur::train::{self, TrainError, TrainingRun, TrainingSetup};

/// 60 images in batches of 16: three steps and a smaller fourth.
pub const RECIPE: &str = r#"
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
pub const BATCH: usize = 16;
/// Rounding of a pixel in [0, 1] through a few additions.
pub const ROUNDING: f32 = 1e-6;
pub const METHODS: [Method; 7] = [
    Method::Standard,
    Method::PgdAt,
    Method::Trades,
    Method::Mart,
    Method::FgsmRs,
    Method::NFgsm,
    Method::Free,
];

pub fn recipe(overrides: &[&str]) -> Recipe {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
    let recipe = Recipe::parse("test", RECIPE, &overrides).unwrap();
    println!("seed {}, {overrides:?}", recipe.seed);
    recipe
}

/// The recipe of a method, two attack steps where it is free to choose.
pub fn of_method(method: Method, overrides: &[&str]) -> Recipe {
    let method_text = format!("objective.method={method}");
    let mut all = vec![method_text.as_str()];
    if method.row().attack.fixed_steps().is_none() {
        all.push("attack.steps=2");
    }
    if method == Method::Free {
        all.push("objective.replays=3");
    }
    all.extend(overrides);
    recipe(&all)
}

/// Starts or resumes the run in `path` on the CPU in f32; it is asked to stop at its `stop_after`-th check.
pub fn train_in(recipe: &Recipe, path: &Path, stop_after: Option<usize>) -> Result<Summary, TrainError> {
    train_on(DeviceChoice::Cpu, recipe, path, stop_after)
}

/// The same on another device.
pub fn train_on(
    device: DeviceChoice,
    recipe: &Recipe,
    path: &Path,
    stop_after: Option<usize>,
) -> Result<Summary, TrainError> {
    let data = recipe.data.open(None).unwrap();
    let mut engine = open(device, train::network(recipe), recipe.batch).unwrap();
    let asked = Cell::new(0);
    let stop = StopWhen(|| {
        asked.set(asked.get() + 1);
        stop_after == Some(asked.get())
    });
    let setup = TrainingSetup { recipe, data: &data, data_path: None };
    TrainingRun::start_or_resume(&mut engine, setup, path)?.run(&stop)
}

/// What [`train_in`] leaves in metrics.jsonl.
pub fn run(recipe: &Recipe, path: &Path, stop_after: Option<usize>) -> Result<Vec<EpochMetrics>, TrainError> {
    train_in(recipe, path, stop_after)?;
    Ok(metrics(path))
}

pub fn metrics(path: &Path) -> Vec<EpochMetrics> {
    RunFolder::open(path).read_metrics().unwrap()
}

/// All metrics of a run that must not depend on when it was interrupted.
pub fn timeless(path: &Path) -> Vec<EpochMetrics> {
    let without_times = |line: EpochMetrics| EpochMetrics {
        seconds_attack: 0.0,
        seconds_train: 0.0,
        seconds_select: 0.0,
        seconds_evaluate: 0.0,
        seconds_cpu: 0.0,
        images_per_second: 0.0,
        ..line
    };
    metrics(path).into_iter().map(without_times).collect()
}

/// The newest state that a run saved.
pub fn newest(path: &Path) -> Checkpoint {
    let checkpoints = RunFolder::open(path).checkpoints();
    checkpoint::load_newest(&checkpoints, &mut |error| panic!("{error}")).unwrap().unwrap().1
}

/// Weights of a short plain training, until most images of the first batch are right under the running statistics, and some are
/// not. Methods share them: they depend on network, seed and images alone.
fn trained() -> &'static Weights {
    static WEIGHTS: OnceLock<Weights> = OnceLock::new();
    WEIGHTS.get_or_init(|| {
        let (mut engine, batch, labels) = gathered(&recipe(&[]));
        let engine = &mut engine;
        engine.load_weights(&initialise(engine.network(), recipe(&[]).seed)).unwrap();
        let sgd = Sgd { learning_rate: 0.02, momentum: 0.5, weight_decay: 0.0, ..Sgd::ZERO };
        for _ in 0..100 {
            engine.fold_batch_norm(WeightSet::Live).unwrap();
            engine.forward(Pass::Eval, &batch.images, &batch.logits).unwrap();
            engine.run(&batch.cross_entropy(1.0 / BATCH as f32)).unwrap();
            let actual = engine.read(&batch.predictions).unwrap();
            if actual.iter().zip(&labels).filter(|(actual, label)| actual == label).count() >= 10 {
                break;
            }
            let pass = Pass::Train { slot: 0 };
            engine.forward(pass, &batch.images, &batch.logits).unwrap();
            engine.run(&batch.cross_entropy(1.0 / BATCH as f32)).unwrap();
            engine.backward(pass, &batch.logit_gradient, GradRequest::PARAMETERS).unwrap();
            engine.step(&sgd).unwrap();
        }
        engine.weights(WeightSet::Live).unwrap()
    })
}

/// An engine, the first batch of the recipe's images on it, and their labels.
fn gathered(recipe: &Recipe) -> (Engine, Batch, Vec<u32>) {
    let mut engine = open(DeviceChoice::Cpu, train::network(recipe), recipe.batch).unwrap();
    let data = DataSet::open(recipe.data.set, None, recipe.data.train_limit, Some(1)).unwrap();
    let set = ImageSet::upload(&engine, &data.train.pixels, &data.train.labels).unwrap();
    let batch = Batch::alloc(&engine, BATCH).unwrap();
    engine.write(&batch.samples, &(0..BATCH as u32).collect::<Vec<_>>()).unwrap();
    engine.run(&batch.gather(&set, None)).unwrap();
    let labels = engine.read(&batch.labels).unwrap();
    (engine, batch, labels)
}

/// An engine with the weights of a short training, and a batch of images.
pub struct Bench {
    pub engine: Engine,
    pub batch: Batch,
    pub labels: Vec<u32>,
    pub key: Key,
}

impl Bench {
    pub fn new(recipe: &Recipe) -> Self {
        let plain = self::recipe(&[]);
        let of = |recipe: &Recipe| (train::network(recipe), recipe.seed, recipe.data.set);
        assert_eq!(of(recipe), of(&plain), "the weights are trained for these");
        let (mut engine, batch, labels) = gathered(recipe);
        engine.load_weights(trained()).unwrap();
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        let key = Key { seed: recipe.seed, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
        Self { engine, batch, labels, key }
    }

    pub fn read(&self, tensor: &Tensor<f32>) -> Vec<f32> {
        self.engine.read(tensor).unwrap()
    }
}

pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().cloned().fold(f32::MIN, f32::max);
    let terms: Vec<f64> = logits.iter().map(|&z| f64::from(z - top).exp()).collect();
    let sum: f64 = terms.iter().sum();
    terms.iter().map(|term| term / sum).collect()
}
