//! The steps of an attack as one operation, on both engines: the same bits as by the operations that they are made of, whether
//! they are launched, recorded or replayed.

mod common;

use secateur::batch::Batch;
use secateur::engine::{
    AscentLoss, AttackSteps, DeviceChoice, Engine, Pass, SignStep, WeightSet, ascend_step_by_step, open,
};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ResNet, initialise};

const NETWORK: ResNet = ResNet::resnet18(16, 10);
const BATCH: usize = 3;

/// An engine with weights, and a batch with everything that a loss may ask for.
fn ready(device: DeviceChoice) -> (Box<dyn Engine>, Batch) {
    let mut engine = open(device, NETWORK, BATCH).unwrap();
    engine.load_weights(&initialise(NETWORK, common::SEED)).unwrap();
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    let batch = Batch::alloc(engine.as_ref(), BATCH).unwrap();
    let mut random = common::Random::new(1);
    engine.write(&batch.images, &random.uniforms(BATCH * IMAGE_LEN, 0.0, 1.0)).unwrap();
    engine.write(&batch.labels, &(0..BATCH).map(|_| random.word() % 10).collect::<Vec<_>>()).unwrap();
    engine.write(&batch.clean_logits, &random.normals(BATCH * 10, 1.0)).unwrap();
    (engine, batch)
}

fn steps<'a>(pass: Pass, loss: AscentLoss<'a>, batch: &'a Batch) -> AttackSteps<'a> {
    AttackSteps {
        pass,
        loss,
        step: SignStep { step_size: 2.0 / 255.0, epsilon: 8.0 / 255.0 },
        steps: 2,
        images: &batch.images,
        perturbed: &batch.perturbed,
        logits: &batch.logits,
        outputs: batch.outputs(),
    }
}

fn losses(batch: &Batch) -> [AscentLoss<'_>; 3] {
    [
        AscentLoss::CrossEntropy { labels: &batch.labels },
        AscentLoss::Divergence { target_logits: &batch.clean_logits },
        AscentLoss::Margin { labels: &batch.labels },
    ]
}

/// The images after the steps, as bits, from a start that differs from the clean images.
fn moved(
    engine: &mut dyn Engine,
    batch: &Batch,
    ascend: impl FnOnce(&mut dyn Engine) -> secateur::engine::Result<()>,
) -> Vec<u32> {
    let clean = engine.read(&batch.images).unwrap();
    let start: Vec<f32> = clean.iter().map(|x| (x + 0.01).min(1.0)).collect();
    engine.write(&batch.perturbed, &start).unwrap();
    ascend(engine).unwrap();
    let moved = engine.read(&batch.perturbed).unwrap();
    assert_ne!(moved, start);
    moved.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn one_operation_gives_the_bits_of_its_parts() {
    for device in [common::cuda_engine(), DeviceChoice::Cpu] {
        let (mut engine, batch) = ready(device);
        let engine = engine.as_mut();
        // The whole batch, and a part of it that does not start where its tensors do.
        let part = batch.rows(1..BATCH);
        let whole = losses(&batch).map(|loss| (&batch, loss));
        for (batch, loss) in whole.into_iter().chain([(&part, losses(&part)[0])]) {
            let attack = steps(Pass::Eval, loss, batch);
            let wanted = moved(engine, batch, |engine| ascend_step_by_step(engine, &attack));
            engine.replay_graphs(true);
            for time in 0..4 {
                if time == 3 {
                    engine.replay_graphs(false);
                }
                let met = moved(engine, batch, |engine| engine.ascend(&attack));
                assert!(met == wanted, "{device:?}, {loss:?}, {} images, time {time}", batch.len());
            }
        }
    }
}

#[test]
fn batch_statistics_are_those_of_the_parts_too() {
    for device in [common::cuda_engine(), DeviceChoice::Cpu] {
        let pass = Pass::Train { slot: 0 };
        let by_parts = |one: bool| {
            let (mut engine, batch) = ready(device);
            let attack = steps(pass, AscentLoss::CrossEntropy { labels: &batch.labels }, &batch);
            let images = moved(engine.as_mut(), &batch, |engine| match one {
                true => engine.ascend(&attack),
                false => ascend_step_by_step(engine, &attack),
            });
            (images, engine.weights(WeightSet::Live).unwrap())
        };
        assert!(by_parts(true) == by_parts(false), "{device:?}");
    }
}

#[test]
fn what_an_attack_leaves_cannot_go_backward_and_is_seen_by_the_next_forward() {
    for device in [common::cuda_engine(), DeviceChoice::Cpu] {
        let (mut engine, batch) = ready(device);
        for pass in [Pass::Eval, Pass::Train { slot: 1 }] {
            let attack = steps(pass, AscentLoss::Margin { labels: &batch.labels }, &batch);
            moved(engine.as_mut(), &batch, |engine| engine.ascend(&attack));
            assert!(engine.input_gradient(pass, &batch.logit_gradient, &batch.images).is_err(), "{device:?}");
            engine.fold_batch_norm(WeightSet::Live).unwrap();
            engine.forward(Pass::Eval, &batch.perturbed, &batch.logits).unwrap();
            let met = engine.read(&batch.logits).unwrap();
            let copy = engine.upload("copy", &engine.read(&batch.perturbed).unwrap()).unwrap();
            engine.forward(Pass::Eval, &copy, &batch.logits).unwrap();
            assert_eq!(met, engine.read(&batch.logits).unwrap(), "{device:?}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    for device in [common::cuda_engine(), DeviceChoice::Cpu] {
        let (mut engine, batch) = ready(device);
        let mut refused = |attack: &AttackSteps| engine.ascend(attack).unwrap_err().to_string();
        let part = batch.rows(0..2);
        let labels = AscentLoss::CrossEntropy { labels: &part.labels };
        let error = refused(&steps(Pass::Eval, labels, &batch));
        assert!(error.contains("labels") || error.contains("expected"), "{device:?}: {error}");
        let attack = steps(Pass::Eval, AscentLoss::Margin { labels: &batch.labels }, &batch);
        refused(&AttackSteps { perturbed: &part.perturbed, ..attack });
        let sgd = secateur::engine::Sgd {
            learning_rate: 0.1,
            momentum: 0.0,
            weight_decay: 0.0,
            average_decay: None,
        };
        engine.forward(Pass::Train { slot: 0 }, &batch.images, &batch.logits).unwrap();
        engine.parameter_gradient(Pass::Train { slot: 0 }, &batch.clean_logits, false).unwrap();
        engine.sgd_step(&sgd).unwrap();
        let error = engine.ascend(&attack).unwrap_err().to_string();
        assert!(error.contains("fold_batch_norm"), "{device:?}: {error}");
    }
}
