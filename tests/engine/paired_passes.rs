//! A clean and an adversarial pass as one operation, on every engine: what two passes in the train slots give, one after the other,
//! in half of the launches.
//!
//! Where a launch of twice the images sums in the same order, it is the same to the bit: everywhere but in the gradients of the
//! convolutions' weights, whose sums are cut by the number of images. A Hopper may choose other tiles for twice the images, which
//! moves the last bits of a statistic.

use std::collections::BTreeMap;

use secateur::batch::Batch;
use secateur::engine::{
    DeviceChoice, Engine, Error, GradRequest, Pass, Record, Recording, Result, Sgd, WeightSet, open,
    open_dry, open_recorded,
};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ParameterKind, ResNet, Weights, initialise};

use crate::common::{Random, SEED, cuda_engine};

const NETWORK: ResNet = ResNet::resnet18(16, 10);
const MAX_BATCH: usize = 16;
const SLOTS: [Pass; 2] = [Pass::Train { slot: 0 }, Pass::Train { slot: 1 }];

/// Both host engines, the emulator as a Hopper, or what SECATEUR_TEST_DEVICE names.
fn devices() -> Vec<DeviceChoice> {
    match cuda_engine() {
        DeviceChoice::Emulated => {
            vec![DeviceChoice::Cpu, DeviceChoice::Emulated, DeviceChoice::EmulatedHopper]
        }
        named => vec![named],
    }
}

/// Initial weights, their BatchNorm moved away from its start.
fn weights() -> Weights {
    let (mut weights, mut random) = (initialise(NETWORK, SEED), Random::new(1));
    for parameter in NETWORK.parameters() {
        let (low, high) = match parameter.kind {
            ParameterKind::BnWeight => (0.6, 1.4),
            ParameterKind::BnBias => (-0.2, 0.2),
            _ => continue,
        };
        let moved = random.uniforms(parameter.len(), low, high);
        weights.insert(parameter.name.as_str(), &parameter.shape, moved);
    }
    weights
}

/// Two sets of images whose statistics have little in common, and gradients of their logits.
fn batch(engine: &Engine, len: usize) -> Batch {
    let (batch, mut random) = (Batch::alloc(engine, len).unwrap(), Random::new(2));
    engine.write(&batch.images, &random.uniforms(len * IMAGE_LEN, 0.0, 1.0)).unwrap();
    engine.write(&batch.perturbed, &random.uniforms(len * IMAGE_LEN, 0.4, 0.6)).unwrap();
    engine.write(&batch.clean_gradient, &random.normals(len * NETWORK.classes, 0.1)).unwrap();
    engine.write(&batch.logit_gradient, &random.normals(len * NETWORK.classes, 0.1)).unwrap();
    for logits in [&batch.clean_logits, &batch.logits] {
        engine.write(logits, &vec![f32::NAN; logits.len()]).unwrap();
    }
    batch
}

fn forward_pair(engine: &mut Engine, batch: &Batch) -> Result<()> {
    engine.forward(Pass::Pair, [&batch.images, &batch.perturbed], [&batch.clean_logits, &batch.logits])
}

fn pair_gradient(engine: &mut Engine, batch: &Batch) -> Result<()> {
    engine.backward(Pass::Pair, [&batch.clean_gradient, &batch.logit_gradient], GradRequest::PARAMETERS)
}

fn as_a_pair(engine: &mut Engine, batch: &Batch) {
    forward_pair(engine, batch).unwrap();
    pair_gradient(engine, batch).unwrap();
}

fn one_by_one(engine: &mut Engine, batch: &Batch) {
    engine.forward(SLOTS[0], &batch.images, &batch.clean_logits).unwrap();
    engine.forward(SLOTS[1], &batch.perturbed, &batch.logits).unwrap();
    engine.backward(SLOTS[0], &batch.clean_gradient, GradRequest::PARAMETERS).unwrap();
    engine.backward(SLOTS[1], &batch.logit_gradient, GradRequest::ADD_PARAMETERS).unwrap();
}

/// Every number that a training step takes from its passes: logits, features, running statistics, gradients.
fn results(device: DeviceChoice, len: usize, passes: fn(&mut Engine, &Batch)) -> BTreeMap<String, Vec<f32>> {
    let mut engine = open(device, NETWORK, MAX_BATCH).unwrap();
    engine.load_weights(&weights()).unwrap();
    let batch = batch(&engine, len);
    passes(&mut engine, &batch);
    let mut results = BTreeMap::new();
    results.insert("clean logits".into(), engine.read(&batch.clean_logits).unwrap());
    results.insert("adversarial logits".into(), engine.read(&batch.logits).unwrap());
    for (set, slot) in SLOTS.into_iter().enumerate() {
        let features = engine.upload("features", &vec![f32::NAN; len * NETWORK.features()]).unwrap();
        match engine.features(Pass::Pair, set, &features) {
            Ok(()) => {}
            Err(_) => engine.features(slot, 0, &features).unwrap(),
        }
        results.insert(format!("features of set {set}"), engine.read(&features).unwrap());
    }
    for (name, tensor) in engine.weights(WeightSet::Live).unwrap().tensors {
        results.insert(name, tensor.values);
    }
    for (name, tensor) in engine.weights(WeightSet::Gradients).unwrap().tensors {
        results.insert(format!("gradient of {name}"), tensor.values);
    }
    results
}

/// Norm of the difference over the norm of what is wanted.
fn distance(actual: &[f32], expected: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let apart =
        square(&mut actual.iter().zip(expected).map(|(actual, expected)| f64::from(actual - expected)));
    (apart / square(&mut expected.iter().map(|v| f64::from(*v)))).sqrt()
}

#[test]
fn a_pair_gives_what_two_passes_give() {
    println!("seed {SEED}");
    let convolutions: Vec<String> =
        NETWORK.convs().iter().map(|conv| format!("gradient of {}.weight", conv.name)).collect();
    for device in devices() {
        let exact = matches!(device, DeviceChoice::Cpu | DeviceChoice::Emulated);
        // Sets that fill every tile, that share tiles in the later stages, and single images.
        for len in [MAX_BATCH, 3, 1] {
            let (actual, expected) = (results(device, len, as_a_pair), results(device, len, one_by_one));
            assert_eq!(actual.len(), 4 + 62 + NETWORK.parameters().len());
            for (name, expected) in &expected {
                let (what, actual) = (format!("{device:?}, {len} images, {name}"), &actual[name]);
                assert!(expected.iter().all(|value| value.is_finite()), "{what}");
                let apart = distance(actual, expected);
                let bound = match (exact, device, convolutions.contains(name)) {
                    (true, DeviceChoice::Emulated, true) => 1e-6,
                    (true, ..) => 0.0,
                    (false, ..) => 0.01,
                };
                assert!(apart <= bound, "{what}: distance {apart:e}, bound {bound:e}");
            }
        }
    }
}

#[test]
fn each_set_has_statistics_of_its_own() {
    for device in devices() {
        // Which set comes first changes no logit: neither sees the other.
        let mut engine = open(device, NETWORK, MAX_BATCH).unwrap();
        let engine = &mut engine;
        engine.load_weights(&weights()).unwrap();
        let batch = batch(engine, MAX_BATCH);
        forward_pair(engine, &batch).unwrap();
        let [clean, adversarial] =
            [&batch.clean_logits, &batch.logits].map(|logits| engine.read(logits).unwrap());
        assert_ne!(clean, adversarial, "{device:?}");
        let swapped = [&batch.perturbed, &batch.images];
        engine.forward(Pass::Pair, swapped, [&batch.clean_logits, &batch.logits]).unwrap();
        assert_eq!(engine.read(&batch.clean_logits).unwrap(), adversarial, "{device:?}, seed {SEED}");
        assert_eq!(engine.read(&batch.logits).unwrap(), clean, "{device:?}, seed {SEED}");
    }
}

#[test]
fn a_pair_stands_beside_the_train_slots() {
    for device in devices() {
        let mut engine = open(device, NETWORK, MAX_BATCH).unwrap();
        let engine = &mut engine;
        engine.load_weights(&weights()).unwrap();
        let (batch, other) = (batch(engine, 4), batch(engine, 2));
        engine.forward(SLOTS[0], &other.perturbed, &other.logits).unwrap();
        engine.backward(SLOTS[0], &other.logit_gradient, GradRequest::PARAMETERS).unwrap();
        let of_slot = engine.weights(WeightSet::Gradients).unwrap();
        as_a_pair(engine, &batch);
        let of_pair = engine.weights(WeightSet::Gradients).unwrap();
        assert_ne!(of_pair, of_slot, "{device:?}");
        engine.backward(SLOTS[0], &other.logit_gradient, GradRequest::PARAMETERS).unwrap();
        assert_eq!(
            engine.weights(WeightSet::Gradients).unwrap(),
            of_slot,
            "{device:?}: the slot, seed {SEED}"
        );
        engine.forward(SLOTS[1], &other.images, &other.logits).unwrap();
        pair_gradient(engine, &batch).unwrap();
        assert_eq!(
            engine.weights(WeightSet::Gradients).unwrap(),
            of_pair,
            "{device:?}: the pair, seed {SEED}"
        );
    }
}

#[test]
fn what_cannot_be_is_refused() {
    for device in devices() {
        let mut engine = open(device, NETWORK, 4).unwrap();
        let engine = &mut engine;
        engine.load_weights(&weights()).unwrap();
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        let batch = batch(engine, 4);
        let invalid = |what: &str, result: Result<()>| match result {
            Err(Error::Invalid(message)) => println!("{device:?}, {what}: {message}"),
            other => panic!("{device:?}, {what}: {other:?}, expected Error::Invalid"),
        };
        invalid("backward before forward", pair_gradient(engine, &batch));
        engine.forward(SLOTS[0], &batch.images, &batch.clean_logits).unwrap();
        engine.forward(SLOTS[1], &batch.perturbed, &batch.logits).unwrap();
        invalid("backward after the slots' forward", pair_gradient(engine, &batch));

        as_a_pair(engine, &batch);
        invalid(
            "evaluation on the statistics of before",
            engine.forward(Pass::Eval, &batch.images, &batch.clean_logits),
        );
        assert!(pair_gradient(engine, &batch.rows(0..2)).is_err(), "{device:?}: backward of another batch");
        let sgd = Sgd { learning_rate: 0.1, momentum: 0.0, weight_decay: 0.0, ..Sgd::ZERO };
        engine.step(&sgd).unwrap();
        invalid("backward after a step", pair_gradient(engine, &batch));
        forward_pair(engine, &batch).unwrap();
        engine.load_weights(&weights()).unwrap();
        invalid("backward after other weights", pair_gradient(engine, &batch));

        let part = batch.rows(0..3);
        for (images, logits) in [
            ([&batch.images, &part.perturbed], [&batch.clean_logits, &batch.logits]),
            ([&batch.images, &batch.perturbed], [&part.clean_logits, &batch.logits]),
            ([&batch.images, &batch.perturbed], [&batch.clean_logits, &part.logits]),
        ] {
            let error = engine.forward(Pass::Pair, images, logits).unwrap_err();
            assert!(matches!(error, Error::Length { .. }), "{device:?}: {error}");
        }
        forward_pair(engine, &batch).unwrap();
        let error = engine
            .backward(Pass::Pair, [&batch.clean_gradient, &part.logit_gradient], GradRequest::PARAMETERS)
            .unwrap_err();
        assert!(matches!(error, Error::Length { .. }), "{device:?}: {error}");
        let many = Batch::alloc(engine, 5).unwrap();
        invalid("more images than there is room for", forward_pair(engine, &many));
    }
}

/// How often each layer is in a launch of a kernel whose name begins like this, sums of parts aside.
fn launches(record: &Record, kernel: &str) -> Vec<usize> {
    let of = |layer: usize| {
        let names =
            record.launches.iter().filter(|launch| launch.layer == Some(layer)).map(|launch| launch.kernel);
        names.filter(|name| name.starts_with(kernel) && !name.contains("_reduce")).count()
    };
    (0..NETWORK.convs().len()).map(of).collect()
}

fn recorded(
    (mut engine, mut recording): (Engine, Recording),
    len: usize,
    passes: fn(&mut Engine, &Batch),
) -> Record {
    engine.load_weights(&initialise(engine.network(), SEED)).unwrap();
    let batch = Batch::alloc(&engine, len).unwrap();
    recording.start(false).unwrap();
    passes(&mut engine, &batch);
    recording.stop().unwrap()
}

#[test]
fn a_convolution_of_a_pair_is_one_launch() {
    let once = vec![1; 20];
    let behind_the_stem: Vec<usize> = (0..20).map(|layer| usize::from(layer > 0)).collect();
    let check = |record: &Record, forward: Vec<usize>| {
        assert_eq!(launches(record, "conv_forward"), forward);
        assert_eq!(launches(record, "conv_weight_gradient"), once);
        assert_eq!(launches(record, "conv_input_gradient"), behind_the_stem);
        for kernel in ["batch_norm_statistics", "batch_norm_backward_sums", "batch_norm_backward_apply"] {
            assert_eq!(launches(record, kernel), once, "{kernel}");
        }
    };
    let products = |record: &Record| -> u64 {
        let products = record.launches.iter().filter(|launch| launch.kernel.starts_with("conv_"));
        products.filter(|launch| !launch.kernel.contains("_reduce")).map(|launch| launch.flops).sum()
    };
    // What a GPU would launch for the recipes' batch, and for a last one that shares tiles in some layer.
    let network = ResNet::resnet18(64, 10);
    let dry = |len, passes| recorded(open_dry(network, 128).unwrap(), len, passes);
    let full = dry(128, as_a_pair);
    check(&full, once.clone());
    let apart = dry(128, one_by_one);
    assert_eq!(products(&full), products(&apart));
    assert!(full.launches.len() * 10 < apart.launches.len() * 6, "{}", full.launches.len());

    // On the emulator a tile has 128 pixels: 3 images of 16 x 16 fill tiles, 3 of 8 x 8 do not.
    let twice = NETWORK.convs().iter().map(|conv| if conv.out_side() > 8 { 1 } else { 2 }).collect();
    check(&recorded(open_recorded(DeviceChoice::Emulated, NETWORK, 3).unwrap(), 3, as_a_pair), twice);
}
