//! Adversarial weight perturbation on both engines: against PyTorch, against each other, and what its calls need.
//!
//! The fixture was computed in f64 by `scripts/make-awp-fixtures.py`; weights and images are those of reference_pytorch.rs.

use secateur::batch::Batch;
use secateur::engine::{DeviceChoice, Engine, Error, GradRequest, Pass, Sgd, WeightSet, open};
use secateur::model::{ParameterKind, Weights};
use secateur::ops::{KeepStatistics, PerturbWeights};
use secateur::recipe::Recipe;

use super::engine_agreement::{self, Comparison, Kind};
use super::reference_pytorch::{self, Bound, Fixture, NETWORK, SEED};
use crate::common;

const GAMMA: f32 = 0.005;
const SGD: Sgd =
    Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 5e-4, average_decay: Some(0.75), ..Sgd::ZERO };
const OBJECTIVES: [(&str, &str); 2] = [
    ("pgd-at", "objective.method = 'pgd-at'\nobjective.label_smoothing = 0.1"),
    ("trades", "objective.method = 'trades'"),
];

fn recipe(objective: &str, gamma: f32) -> Recipe {
    let text = format!(
        "epochs = 1\nbatch = 8\ndata.set = 'generated'\nmodel.width = 16\noptimizer.learning_rate = 0.1\n\
         schedule.kind = 'constant'\nobjective.awp = {gamma}\n{objective}"
    );
    Recipe::parse("test", &text, &[]).unwrap()
}

/// Clean images, as many adversarial ones, labels.
struct Images([Vec<f32>; 2], Vec<u32>);

/// An engine with these weights, and a batch.
fn ready(
    device: DeviceChoice,
    weights: &Weights,
    Images([clean, moved], labels): &Images,
) -> (Engine, Batch) {
    let mut engine = open(device, NETWORK, labels.len()).unwrap();
    engine.load_weights(weights).unwrap();
    let batch = Batch::alloc(&engine, labels.len()).unwrap();
    engine.write(&batch.images, clean).unwrap();
    engine.write(&batch.perturbed, moved).unwrap();
    engine.write(&batch.labels, labels).unwrap();
    (engine, batch)
}

/// The fixture's weights: BatchNorm's keep nearly all that a ReLU sees above zero.
fn steady_weights() -> Weights {
    let mut weights = reference_pytorch::weights(SEED);
    for parameter in NETWORK.parameters() {
        let (end, begin) = match parameter.kind {
            ParameterKind::BnWeight => (0.6, 1.0),
            ParameterKind::BnBias => (2.4, 0.0),
            _ => continue,
        };
        let values = &weights.tensors[&parameter.name].values;
        let moved = values.iter().map(|value| end + 0.8 * (value - begin)).collect();
        weights.insert(parameter.name, &parameter.shape, moved);
    }
    weights
}

/// Of how far two steps move the weights: what f32 rounds are the weights.
const WAY: Bound = Bound { element: 5e-3, whole: 1e-3 };

#[test]
fn two_steps_go_where_pytorch_goes() {
    println!("seed {SEED}");
    let (fixture, start) = (Fixture::load("awp", 61), steady_weights());
    let (batch, labels) = (reference_pytorch::BATCH, reference_pytorch::labels());
    let images = Images([0, batch].map(|first| reference_pytorch::images(SEED, first)), labels);
    for (name, objective) in OBJECTIVES {
        let (mut engine, batch) = ready(DeviceChoice::Cpu, &start, &images);
        let mut objective = recipe(objective, GAMMA).new_objective();
        for _ in 0..2 {
            let displacement = objective.gradient(&mut engine, &batch).unwrap();
            engine.step(&Sgd { displacement: displacement.as_ref(), ..SGD }).unwrap();
        }
        for (set, tag) in [(WeightSet::Live, "live"), (WeightSet::Average, "average")] {
            for (tensor, actual) in engine.weights(set).unwrap().tensors {
                let start = &start.tensors[&tensor].values;
                let way: Vec<f32> =
                    actual.values.iter().zip(start).map(|(actual, start)| actual - start).collect();
                fixture.check(&format!("{name}.{tag}.{tensor}"), &way, &WAY);
            }
        }
    }
}

fn devices() -> Vec<DeviceChoice> {
    match common::cuda_engine() {
        DeviceChoice::Emulated => {
            vec![DeviceChoice::Cpu, DeviceChoice::Emulated, DeviceChoice::EmulatedHopper]
        }
        named => vec![DeviceChoice::Cpu, named],
    }
}

/// The engine agreement's batch; its images in another order stand for the adversarial ones.
fn steady_images() -> Images {
    let (clean, labels) = engine_agreement::batch();
    let mut moved = clean.clone();
    moved.rotate_left(clean.len() / labels.len());
    Images([clean, moved], labels)
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

/// The gradient is, to the bit, that of the plain objective at the moved weights, and so are losses and running statistics; the moves
/// are gamma times the norm of each tensor, and point the same way on every engine.
#[test]
fn the_gradient_is_taken_at_moved_weights() {
    let (start, images) = (engine_agreement::weights(Kind::Steady), steady_images());
    let mut comparison = Comparison::default();
    for (name, objective) in OBJECTIVES {
        let mut expected: Option<Weights> = None;
        for device in devices() {
            let (mut engine, batch) = ready(device, &start, &images);
            let mut awp = recipe(objective, GAMMA).new_objective();
            let displacement = awp.gradient(&mut engine, &batch).unwrap().expect("a displacement");
            let moved = engine.weights(WeightSet::Live).unwrap();

            let mut before = moved.clone();
            for parameter in NETWORK.parameters().iter().filter(|parameter| !parameter.kind.trainable()) {
                let values = start.tensors[&parameter.name].values.clone();
                before.insert(parameter.name.as_str(), &parameter.shape, values);
            }
            let (mut plain_engine, plain_batch) = ready(device, &before, &images);
            let plain = recipe(objective, 0.0).new_objective().gradient(&mut plain_engine, &plain_batch);
            assert!(plain.unwrap().is_none(), "no displacement without perturbation");
            for set in [WeightSet::Live, WeightSet::Gradients] {
                assert!(
                    engine.weights(set).unwrap() == plain_engine.weights(set).unwrap(),
                    "{device:?}, {set:?}"
                );
            }
            let losses = engine.read(&batch.losses).unwrap();
            assert_eq!(losses, plain_engine.read(&plain_batch.losses).unwrap(), "{device:?}");

            let mut moves = Weights::default();
            for parameter in NETWORK.parameters() {
                let [actual, start] =
                    [&moved, &start].map(|weights| &weights.tensors[&parameter.name].values);
                let way: Vec<f32> = actual.iter().zip(start).map(|(actual, start)| actual - start).collect();
                match parameter.kind {
                    ParameterKind::ConvWeight | ParameterKind::LinearWeight => {
                        let share = norm(&way) / norm(start) / f64::from(GAMMA);
                        assert!((share - 1.0).abs() < 1e-4, "{device:?}, {}: {share}", parameter.name);
                        moves.insert(parameter.name, &parameter.shape, way);
                    }
                    kind if kind.trainable() => assert!(norm(&way) == 0.0, "{}", parameter.name),
                    _ => assert!(norm(&way) > 0.0, "{}: the second pass moves it", parameter.name),
                }
            }
            match &expected {
                None => expected = Some(moves),
                Some(expected) => {
                    for (tensor, expected) in &expected.tensors {
                        let (what, actual) =
                            (format!("{device:?}, {name}, {tensor}"), &moves.tensors[tensor].values);
                        comparison.direction(&what, actual, &expected.values, 0.985);
                    }
                }
            }

            // A step of nothing but the way back.
            engine
                .step(&Sgd { displacement: Some(&displacement), average_decay: Some(0.5), ..Sgd::ZERO })
                .unwrap();
            let [live, average] =
                [WeightSet::Live, WeightSet::Average].map(|set| engine.weights(set).unwrap());
            assert!(live == average, "{device:?}: the average is of the weights without displacement");
            for parameter in NETWORK.parameters().iter().filter(|parameter| parameter.kind.trainable()) {
                let [actual, start] = [&live, &start].map(|weights| &weights.tensors[&parameter.name].values);
                for (actual, start) in actual.iter().zip(start) {
                    // Two roundings, of w + v and of what is left; v is smaller than any weight that matters.
                    assert!(
                        (actual - start).abs() <= 2e-7 * start.abs().max(0.1),
                        "{actual}, expected {start}"
                    );
                }
            }
        }
    }
    comparison.finish();
}

#[test]
fn calls_in_the_wrong_order_are_refused_alike() {
    let (start, images) = (engine_agreement::weights(Kind::Steady), steady_images());
    let said = [DeviceChoice::Cpu, common::cuda_engine()].map(|device| {
        let (mut engine, batch) = ready(device, &start, &images);
        let count = |trainable: bool| NETWORK.elements(|kind: ParameterKind| kind.trainable() == trainable);
        let statistics = engine.alloc("statistics", count(false)).unwrap();
        let displacement = engine.alloc("displacement", count(true)).unwrap();
        let perturb = PerturbWeights { gamma: GAMMA, statistics: &statistics, displacement: &displacement };
        let refused = |result: Result<(), Error>| result.unwrap_err().to_string();
        let mut said = vec![refused(engine.run(&perturb))];
        assert!(said[0].contains("no parameter gradients"), "{}", said[0]);

        let pass = Pass::Train { slot: 0 };
        engine.run(&KeepStatistics { to: &statistics }).unwrap();
        engine.forward(pass, &batch.images, &batch.logits).unwrap();
        engine.write(&batch.logit_gradient, &vec![0.1; batch.logits.len()]).unwrap();
        engine.backward(pass, &batch.logit_gradient, GradRequest::PARAMETERS).unwrap();
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        engine.forward(Pass::Eval, &batch.images, &batch.logits).unwrap();
        engine.run(&perturb).unwrap();
        said.push(refused(engine.forward(Pass::Eval, &batch.images, &batch.logits)));
        for pass in [pass, Pass::Eval] {
            let request = GradRequest::images(&batch.perturbed);
            said.push(refused(engine.backward(pass, &batch.logit_gradient, request)));
        }
        let before = engine.weights(WeightSet::Live).unwrap();
        said.push(refused(engine.run(&KeepStatistics { to: &displacement })));
        said.push(refused(engine.run(&PerturbWeights { statistics: &displacement, ..perturb })));
        said.push(refused(engine.run(&PerturbWeights { displacement: &statistics, ..perturb })));
        said.push(refused(engine.step(&Sgd { displacement: Some(&statistics), ..SGD })));
        assert!(
            engine.weights(WeightSet::Live).unwrap() == before,
            "{device:?}: a refused call writes nothing"
        );
        said
    });
    println!("{}", said[0].join("\n"));
    assert_eq!(said[1], said[0]);
}
