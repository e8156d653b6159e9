//! One step of every training method on the emulated engine beside the reference engine: the same attack, the same losses,
//! the same gradient.
//!
//! The network is a steady one (BatchNorm biases keep pre-activations away from zero), so that bf16 flips no ReLU and what
//! remains is rounding; tests/engine/engine_agreement.rs says why. The gradient is taken on the same adversarial images.

use std::sync::OnceLock;

use secateur::attack::AttackWork;
use secateur::batch::Batch;
use secateur::data::DataSet;
use secateur::engine::{DeviceChoice, Engine, GradRequest, Pass, SignStep, WeightSet, open};
use secateur::model::{ParameterKind, Weights, initialise};
use secateur::objective::Method;
use secateur::ops::ImageSet;
use secateur::philox::{Key, Purpose, unit};
use secateur::recipe::Recipe;
use secateur::train;

use crate::common;

const BATCH: usize = 8;
const RECIPE: &str = r#"
    seed = 11
    epochs = 1
    batch = 8
    [data]
    set = "generated"
    train_limit = 16
    test_limit = 1
    [model]
    width = 16
    [optimizer]
    learning_rate = 0.01
    [schedule]
    kind = "constant"
"#;

/// Initial weights with large BatchNorm biases, and running statistics that fit the images; the same for every method.
fn steady_weights() -> &'static Weights {
    static WEIGHTS: OnceLock<Weights> = OnceLock::new();
    WEIGHTS.get_or_init(|| fitted(&Recipe::parse("test", RECIPE, &[]).unwrap()))
}

fn fitted(recipe: &Recipe) -> Weights {
    let network = train::network(recipe);
    let mut weights = initialise(network, recipe.seed);
    let key = Key { seed: recipe.seed, purpose: Purpose::Generation, epoch: 1, step: 0 };
    for (stream, parameter) in (0..).zip(network.parameters()) {
        let (low, high) = match parameter.kind {
            ParameterKind::BnWeight => (0.4, 0.8),
            ParameterKind::BnBias => (2.2, 2.6),
            _ => continue,
        };
        let draw = |i: usize| low + (high - low) * unit(key.block(stream, i as u32)[0]);
        weights.insert(parameter.name.as_str(), &parameter.shape, (0..parameter.len()).map(draw).collect());
    }
    let mut bench = Bench::new(DeviceChoice::Cpu, recipe, &weights);
    for _ in 0..30 {
        let Bench { engine, batch } = &mut bench;
        engine.forward(Pass::Train { slot: 0 }, &batch.images, &batch.logits).unwrap();
    }
    bench.engine.weights(WeightSet::Live).unwrap()
}

struct Bench {
    engine: Engine,
    batch: Batch,
}

impl Bench {
    fn new(device: DeviceChoice, recipe: &Recipe, weights: &Weights) -> Self {
        let mut engine = open(device, train::network(recipe), BATCH).unwrap();
        let data = DataSet::open(recipe.data.set, None, recipe.data.train_limit, Some(1)).unwrap();
        let set = ImageSet::upload(&engine, &data.train.pixels, &data.train.labels).unwrap();
        let batch = Batch::alloc(&engine, BATCH).unwrap();
        engine.write(&batch.samples, &(0..BATCH as u32).collect::<Vec<_>>()).unwrap();
        engine.load_weights(weights).unwrap();
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        engine.run(&batch.gather(&set, None)).unwrap();
        Self { engine, batch }
    }
}

/// Norm of the difference over the norm, over all tensors together.
fn distance(actual: &Weights, expected: &Weights) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (name, expected) in &expected.tensors {
        let actual = actual.get(name, &expected.shape).unwrap();
        for (actual, expected) in actual.iter().zip(&expected.values) {
            difference += f64::from(actual - expected).powi(2);
            norm += f64::from(*expected).powi(2);
        }
    }
    (difference / norm).sqrt()
}

/// One step of a recipe on both engines; what its attack did.
fn compare(overrides: &[&str]) -> AttackWork {
    let text: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
    let recipe = Recipe::parse("test", RECIPE, &text).unwrap();
    let weights = steady_weights();
    let key = Key { seed: recipe.seed, purpose: Purpose::AttackStart, epoch: 0, step: 0 };
    let step = |bench: &mut Bench| {
        let mut objective = recipe.new_objective();
        let work = objective.attack(&mut bench.engine, key, &bench.batch).unwrap();
        (objective, work)
    };
    let mut reference = Bench::new(DeviceChoice::Cpu, &recipe, weights);
    let mut emulated = Bench::new(common::cuda_engine(), &recipe, weights);
    let (mut reference_objective, reference_work) = step(&mut reference);
    let (mut emulated_objective, emulated_work) = step(&mut emulated);
    assert_eq!(emulated_work, reference_work, "{overrides:?}");

    // A sign that differs moves a pixel by two steps; where the gradient is clear none does. The divergence is flat where
    // its ascent starts, so there rounding decides many signs, and only what the attack reaches can be compared.
    let images = reference.engine.read(&reference.batch.perturbed).unwrap();
    let actual = emulated.engine.read(&emulated.batch.perturbed).unwrap();
    let apart = images.iter().zip(&actual).filter(|(a, b)| (*a - *b).abs() > 1e-5).count();
    let share = apart as f64 / images.len() as f64;

    emulated.engine.write(&emulated.batch.perturbed, &images).unwrap();
    reference_objective.gradient(&mut reference.engine, &reference.batch).unwrap();
    emulated_objective.gradient(&mut emulated.engine, &emulated.batch).unwrap();
    let expected = reference.engine.read(&reference.batch.losses).unwrap();
    let losses = emulated.engine.read(&emulated.batch.losses).unwrap();
    let loss = expected.iter().zip(&losses).map(|(a, b)| (a - b).abs() / (1.0 + a.abs())).fold(0.0, f32::max);
    let gradient = distance(
        &emulated.engine.weights(WeightSet::Gradients).unwrap(),
        &reference.engine.weights(WeightSet::Gradients).unwrap(),
    );

    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / BATCH as f32;
    reference.engine.write(&reference.batch.perturbed, &actual).unwrap();
    reference_objective.gradient(&mut reference.engine, &reference.batch).unwrap();
    let reached = mean(&reference.engine.read(&reference.batch.losses).unwrap()) / mean(&expected);
    println!(
        "seed {}, {overrides:?}: pixels apart {share:.4}, loss reached {reached:.4}, worst loss {loss:.4}, \
         gradient {gradient:.4}",
        recipe.seed
    );
    let divergence = recipe.objective.method == Method::Trades;
    assert!(divergence || share < 0.02, "{overrides:?}: {share:.4} of the pixels differ");
    assert!((reached - 1.0).abs() < 0.01, "{overrides:?}: the attack reaches {reached:.4} of the loss");
    assert!(
        losses.iter().all(|loss| loss.is_finite()) && loss < 0.01,
        "{overrides:?}: losses differ by {loss:.4}"
    );
    assert!(gradient < 0.01, "{overrides:?}: gradients differ by {gradient:.4}");
    reference_work
}

#[test]
fn a_step_of_every_method_agrees_with_the_reference() {
    for method in [Method::Standard, Method::FgsmRs, Method::NFgsm] {
        compare(&[&format!("objective.method={method}")]);
    }
    for method in [Method::PgdAt, Method::Trades, Method::Mart] {
        compare(&[&format!("objective.method={method}"), "attack.steps=2"]);
    }
    compare(&["objective.method=free", "objective.replays=2"]);
}

#[test]
fn bullet_train_groups_and_attacks_alike() {
    for method in [Method::PgdAt, Method::Trades] {
        let method = format!("objective.method={method}");
        compare(&[&method, "attack.steps=2", "accelerate.method=bullet-train"]);
    }
    for method in [Method::Standard, Method::FgsmRs, Method::NFgsm] {
        let work = compare(&[&format!("objective.method={method}"), "accelerate.method=bullet-train"]);
        let steps = if method == Method::Standard { 0 } else { work.boundary + work.robust };
        assert_eq!((work.samples, work.steps), (BATCH as u64, steps), "{method}");
        assert!(work.outliers > 0 && work.outliers < work.samples, "{method}: {work:?}");
    }
    compare(&["objective.method=free", "objective.replays=2", "accelerate.method=bullet-train"]);
}

/// What Free-AT steps on: the two backward calls in one give the bits of the two.
#[test]
fn one_backward_pass_serves_weights_and_images() {
    let recipe = Recipe::parse("test", RECIPE, &[]).unwrap();
    println!("seed {}", recipe.seed);
    let weights = initialise(train::network(&recipe), recipe.seed);
    let step = SignStep { step_size: 2.0 / 255.0, epsilon: 8.0 / 255.0 };
    let pass = Pass::Train { slot: 0 };
    for device in [DeviceChoice::Cpu, common::cuda_engine()] {
        let results = [true, false].map(|in_one| {
            let Bench { mut engine, batch } = Bench::new(device, &recipe, &weights);
            let images = engine.read(&batch.images).unwrap();
            engine.write(&batch.perturbed, &images).unwrap();
            engine.forward(pass, &batch.perturbed, &batch.logits).unwrap();
            engine.run(&batch.cross_entropy(1.0 / BATCH as f32)).unwrap();
            let (gradient, images, perturbed) = (&batch.logit_gradient, &batch.images, &batch.perturbed);
            if in_one {
                engine
                    .backward(pass, gradient, GradRequest::step(step, images, perturbed).and_parameters())
                    .unwrap();
            } else {
                engine.backward(pass, gradient, GradRequest::PARAMETERS).unwrap();
                engine.backward(pass, gradient, GradRequest::step(step, images, perturbed)).unwrap();
            }
            (engine.weights(WeightSet::Gradients).unwrap(), engine.read(perturbed).unwrap())
        });
        let [(gradients, perturbed), (expected_gradients, expected_perturbed)] = results;
        assert_eq!(gradients, expected_gradients, "{device:?}");
        assert_eq!(perturbed, expected_perturbed, "{device:?}");
        assert!(
            gradients.tensors.values().any(|tensor| tensor.values.iter().any(|v| *v != 0.0)),
            "{device:?}"
        );
    }
}
