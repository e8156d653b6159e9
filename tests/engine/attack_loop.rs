//! The steps of an attack as one operation, on both engines: the same bits as by the operations that they are made of, whether
//! they are launched, recorded or replayed.

use secateur::batch::Batch;
use secateur::engine::{
    DeviceChoice, DeviceOptions, Engine, GradRequest, Pass, Sgd, SignStep, WeightSet, open_with,
};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ResNet, initialise};
use secateur::ops::{AscentLoss, AttackSteps, CrossEntropy, Divergence, Margin, MarginLoss};

use crate::common;

const NETWORK: ResNet = ResNet::resnet18(16, 10);
const BATCH: usize = 3;

/// An engine with weights, and a batch with everything that a loss may ask for.
fn ready(device: DeviceChoice) -> (Engine, Batch) {
    ready_with(device, true)
}

fn ready_with(device: DeviceChoice, graphs: bool) -> (Engine, Batch) {
    let options = DeviceOptions { graphs, ..DeviceOptions::default() };
    let mut engine = open_with(device, NETWORK, BATCH, options).unwrap();
    engine.load_weights(&initialise(NETWORK, common::SEED)).unwrap();
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    let batch = Batch::alloc(&engine, BATCH).unwrap();
    let mut random = common::Random::new(1);
    engine.write(&batch.images, &random.uniforms(BATCH * IMAGE_LEN, 0.0, 1.0)).unwrap();
    engine.write(&batch.labels, &(0..BATCH).map(|_| random.word() % 10).collect::<Vec<_>>()).unwrap();
    engine.write(&batch.clean_logits, &random.normals(BATCH * 10, 1.0)).unwrap();
    (engine, batch)
}

fn steps(pass: Pass, loss: AscentLoss, batch: &Batch) -> AttackSteps<'_> {
    AttackSteps {
        pass,
        loss,
        labels: &batch.labels,
        clean_logits: &batch.clean_logits,
        step: SignStep { step_size: 2.0 / 255.0, epsilon: 8.0 / 255.0 },
        steps: 2,
        images: &batch.images,
        perturbed: &batch.perturbed,
        logits: &batch.logits,
        outputs: batch.outputs(),
    }
}

const LOSSES: [AscentLoss; 3] = [AscentLoss::CrossEntropy, AscentLoss::Divergence, AscentLoss::Margin];

/// The same by passes and losses, one after another.
fn one_by_one(engine: &mut Engine, attack: &AttackSteps) -> secateur::engine::Result<()> {
    let AttackSteps { pass, loss, labels, clean_logits, step, steps, images, perturbed, logits, outputs } =
        *attack;
    for _ in 0..steps {
        engine.forward(pass, perturbed, logits)?;
        match loss {
            AscentLoss::CrossEntropy => engine.run(&CrossEntropy {
                smoothing: 0.0,
                scale: 1.0,
                logits,
                labels,
                weights: None,
                outputs,
            })?,
            AscentLoss::Divergence => {
                engine.run(&Divergence { scale: 1.0, target_logits: clean_logits, logits, outputs })?;
            }
            AscentLoss::Margin => {
                engine.run(&MarginLoss { margin: Margin::BestWrong, logits, labels, outputs })?;
            }
        }
        engine.backward(pass, outputs.logit_gradient, GradRequest::step(step, images, perturbed))?;
    }
    Ok(())
}

/// The images after the steps, as bits, from a start that differs from the clean images.
fn moved(
    engine: &mut Engine,
    batch: &Batch,
    ascend: impl FnOnce(&mut Engine) -> secateur::engine::Result<()>,
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
    for (device, graphs) in
        [(common::cuda_engine(), true), (common::cuda_engine(), false), (DeviceChoice::Cpu, true)]
    {
        let (mut engine, batch) = ready_with(device, graphs);
        let engine = &mut engine;
        // The whole batch, and a part of it that does not start where its tensors do.
        let part = batch.rows(1..BATCH);
        let whole = LOSSES.map(|loss| (&batch, loss));
        for (batch, loss) in whole.into_iter().chain([(&part, LOSSES[0])]) {
            let attack = steps(Pass::Eval, loss, batch);
            let expected = moved(engine, batch, |engine| one_by_one(engine, &attack));
            for time in 0..3 {
                let actual = moved(engine, batch, |engine| engine.run(&attack));
                assert!(
                    actual == expected,
                    "{device:?}, graphs {graphs}, {loss:?}, {} images, time {time}",
                    batch.len()
                );
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
            let attack = steps(pass, AscentLoss::CrossEntropy, &batch);
            let images = moved(&mut engine, &batch, |engine| match one {
                true => engine.run(&attack),
                false => one_by_one(engine, &attack),
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
            let attack = steps(pass, AscentLoss::Margin, &batch);
            moved(&mut engine, &batch, |engine| engine.run(&attack));
            assert!(
                engine.backward(pass, &batch.logit_gradient, GradRequest::images(&batch.images)).is_err(),
                "{device:?}"
            );
            engine.fold_batch_norm(WeightSet::Live).unwrap();
            engine.forward(Pass::Eval, &batch.perturbed, &batch.logits).unwrap();
            let actual = engine.read(&batch.logits).unwrap();
            let copy = engine.upload("copy", &engine.read(&batch.perturbed).unwrap()).unwrap();
            engine.forward(Pass::Eval, &copy, &batch.logits).unwrap();
            assert_eq!(actual, engine.read(&batch.logits).unwrap(), "{device:?}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    for device in [common::cuda_engine(), DeviceChoice::Cpu] {
        let (mut engine, batch) = ready(device);
        let mut refused = |attack: &AttackSteps| engine.run(attack).unwrap_err().to_string();
        let part = batch.rows(0..2);
        let attack = steps(Pass::Eval, AscentLoss::CrossEntropy, &batch);
        let error = refused(&AttackSteps { labels: &part.labels, ..attack });
        assert!(error.contains("labels") || error.contains("expected"), "{device:?}: {error}");
        let attack = steps(Pass::Eval, AscentLoss::Margin, &batch);
        refused(&AttackSteps { perturbed: &part.perturbed, ..attack });
        let sgd = Sgd { learning_rate: 0.1, ..Sgd::ZERO };
        engine.forward(Pass::Train { slot: 0 }, &batch.images, &batch.logits).unwrap();
        engine.backward(Pass::Train { slot: 0 }, &batch.clean_logits, GradRequest::PARAMETERS).unwrap();
        engine.step(&sgd).unwrap();
        let error = engine.run(&attack).unwrap_err().to_string();
        assert!(error.contains("fold_batch_norm"), "{device:?}: {error}");
    }
}
