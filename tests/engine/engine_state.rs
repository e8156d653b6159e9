//! What the cuda engine keeps and what it refuses: weights and optimizer state there and back, and calls in the wrong
//! order or of the wrong size, each an error that names the matter.

use secateur::engine::{DeviceChoice, Engine, Error, GradRequest, Pass, Sgd, SignStep, WeightSet, open};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ResNet, initialise};
use secateur::ops::{CrossEntropy, LossOutputs, SelectTopK};

use crate::common;

const SEED: u64 = 20_261_121;
const NETWORK: ResNet = ResNet::resnet18(16, 10);
const BATCH: usize = 2;
const SGD: Sgd =
    Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 5e-4, average_decay: Some(0.9), ..Sgd::ZERO };

fn emulated() -> Engine {
    open(common::cuda_engine(), NETWORK, BATCH).unwrap()
}

/// One training step on grey images.
fn train(engine: &mut Engine) {
    let images = engine.upload("images", &[0.25f32; BATCH * IMAGE_LEN]).unwrap();
    let labels = engine.upload("labels", &[3u32, 8]).unwrap();
    let logits = engine.alloc("logits", BATCH * 10).unwrap();
    let (losses, predictions) =
        (engine.alloc("losses", BATCH).unwrap(), engine.alloc("predictions", BATCH).unwrap());
    let logit_gradient = engine.alloc("logit gradient", BATCH * 10).unwrap();
    let pass = Pass::Train { slot: 0 };
    engine.forward(pass, &images, &logits).unwrap();
    let outputs = LossOutputs { losses: &losses, predictions: &predictions, logit_gradient: &logit_gradient };
    engine
        .run(&CrossEntropy {
            smoothing: 0.0,
            scale: 0.5,
            logits: &logits,
            labels: &labels,
            weights: None,
            outputs,
        })
        .unwrap();
    engine.backward(pass, &logit_gradient, GradRequest::PARAMETERS).unwrap();
    engine.step(&SGD).unwrap();
}

#[test]
fn state_goes_there_and_back() {
    println!("seed {SEED}");
    let weights = initialise(NETWORK, SEED);
    let mut engine = emulated();
    engine.load_weights(&weights).unwrap();
    assert_eq!(engine.weights(WeightSet::Live).unwrap(), weights);
    let fresh = engine.optimizer().unwrap();
    assert!(fresh.average.is_none());
    assert!(fresh.momentum.tensors.values().all(|tensor| tensor.values.iter().all(|v| *v == 0.0)));

    // A run that stops after one step and goes on in another engine has the same bits as one that never stopped.
    train(&mut engine);
    let (live, state) = (engine.weights(WeightSet::Live).unwrap(), engine.optimizer().unwrap());
    assert_ne!(live, weights);
    assert_eq!(state.average.as_ref(), Some(&engine.weights(WeightSet::Average).unwrap()));
    let mut resumed = emulated();
    resumed.load_weights(&live).unwrap();
    resumed.load_optimizer(&state).unwrap();
    for engine in [&mut engine, &mut resumed] {
        train(&mut *engine);
    }
    assert_eq!(engine.weights(WeightSet::Live).unwrap(), resumed.weights(WeightSet::Live).unwrap());
    assert_eq!(engine.optimizer().unwrap(), resumed.optimizer().unwrap());

    // Loading weights starts over.
    engine.load_weights(&weights).unwrap();
    assert_eq!(engine.weights(WeightSet::Live).unwrap(), weights);
    assert_eq!(engine.optimizer().unwrap(), fresh);
}

#[test]
fn calls_in_the_wrong_order_are_refused() {
    let mut engine = emulated();
    engine.load_weights(&initialise(NETWORK, SEED)).unwrap();
    let images = engine.upload("images", &[0.5f32; BATCH * IMAGE_LEN]).unwrap();
    let gradient = engine.alloc("gradient", BATCH * IMAGE_LEN).unwrap();
    let logits = engine.alloc("logits", BATCH * 10).unwrap();
    let dz = engine.upload("logit gradient", &[0.1f32; BATCH * 10]).unwrap();
    let step = SignStep { step_size: 0.01, epsilon: 0.03 };
    let train = Pass::Train { slot: 0 };

    let invalid = |what: &str, result: Result<(), Error>| match result {
        Err(Error::Invalid(message)) => println!("{what}: {message}"),
        other => panic!("{what}: {other:?}, expected Error::Invalid"),
    };
    invalid("evaluation without a fold", engine.forward(Pass::Eval, &images, &logits));
    invalid("the average without one", engine.fold_batch_norm(WeightSet::Average));
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    invalid("backward before forward", engine.backward(Pass::Eval, &dz, GradRequest::images(&gradient)));
    invalid(
        "a step before forward",
        engine.backward(Pass::Eval, &dz, GradRequest::step(step, &images, &gradient)),
    );
    invalid("train backward before forward", engine.backward(train, &dz, GradRequest::PARAMETERS));
    invalid("a third slot", engine.forward(Pass::Train { slot: 2 }, &images, &logits));

    engine.forward(Pass::Eval, &images, &logits).unwrap();
    invalid("parameter gradients in evaluation", engine.backward(Pass::Eval, &dz, GradRequest::PARAMETERS));
    let (one, one_dz) = (gradient.rows(0..1, IMAGE_LEN), dz.rows(0..1, 10));
    let error = engine.backward(Pass::Eval, &one_dz, GradRequest::images(&one)).unwrap_err();
    assert!(matches!(error, Error::Length { tensor: "logit gradient", actual: 10, expected: 20 }), "{error}");
    engine.forward(train, &images, &logits).unwrap();
    invalid("a fold that the train pass outdated", engine.forward(Pass::Eval, &images, &logits));
}

#[test]
fn wrong_sizes_and_foreign_tensors_are_refused() {
    let mut engine = emulated();
    engine.load_weights(&initialise(NETWORK, SEED)).unwrap();
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    let images = engine.upload("images", &[0.5f32; BATCH * IMAGE_LEN]).unwrap();
    let logits = engine.alloc("logits", BATCH * 10).unwrap();

    let short = engine.alloc("short logits", BATCH * 10 - 1).unwrap();
    let error = engine.forward(Pass::Eval, &images, &short).unwrap_err();
    assert!(matches!(error, Error::Length { tensor: "short logits", actual: 19, expected: 20 }), "{error}");
    let many = engine.alloc("many images", (BATCH + 1) * IMAGE_LEN).unwrap();
    let error = engine.forward(Pass::Eval, &many, &logits).unwrap_err();
    assert!(error.to_string().contains("many images"), "{error}");

    let other = emulated();
    let foreign = other.upload("foreign images", &[0.5f32; BATCH * IMAGE_LEN]).unwrap();
    let error = engine.forward(Pass::Eval, &foreign, &logits).unwrap_err();
    assert!(matches!(error, Error::ForeignTensor { tensor: "foreign images" }), "{error}");

    let values = engine.upload("values", &[1.0f32, f32::NAN, 2.0]).unwrap();
    let top = engine.alloc("top", 2).unwrap();
    let error = engine.run(&SelectTopK { values: &values, top: &top }).unwrap_err();
    assert!(matches!(error, Error::NotANumber { tensor: "values", position: 1 }), "{error}");
    let too_many = engine.alloc("top", 4).unwrap();
    assert!(engine.run(&SelectTopK { values: &values, top: &too_many }).is_err());

    let Err(error) = open(common::cuda_engine(), ResNet::resnet18(48, 10), 4) else {
        panic!("width 48 has no kernels");
    };
    assert_eq!(error.to_string(), "width 48: the kernels are built for widths [16, 32, 64]");
    let stageless = ResNet { blocks: [2, 0, 2, 2], ..ResNet::resnet18(16, 10) };
    for device in [common::cuda_engine(), DeviceChoice::Cpu] {
        let Err(error) = open(device, stageless, 4) else { panic!("a stage without blocks on {device:?}") };
        assert_eq!(error.to_string(), "blocks [2, 0, 2, 2]: expected at least 1 in each stage");
    }
}
