//! The first stage of an evaluation pass, taken part by part: the same bits as in one piece.

use std::num::NonZeroUsize;

use secateur::batch::Batch;
use secateur::engine::{DeviceChoice, DeviceOptions, GradRequest, Pass, SignStep, WeightSet, open_with};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ResNet, initialise};
use secateur::ops::{AscentLoss, AttackSteps};

use crate::common::{Random, SEED, cuda_engine};

/// Two parts of the size that is tried most, and one that is shorter.
const BATCH: usize = 5;

/// Logits, input gradients and images after `steps` steps of an attack, as bits.
fn results(device: DeviceChoice, network: ResNet, part: usize, steps: u32) -> [Vec<u32>; 3] {
    let options = DeviceOptions { first_stage_images: NonZeroUsize::new(part), ..DeviceOptions::default() };
    let mut engine = open_with(device, network, BATCH, options).unwrap();
    let engine = &mut engine;
    engine.load_weights(&initialise(network, SEED)).unwrap();
    engine.fold_batch_norm(WeightSet::Live).unwrap();
    let batch = Batch::alloc(engine, BATCH).unwrap();
    let mut random = Random::new(3);
    let images = random.uniforms(BATCH * IMAGE_LEN, 0.0, 1.0);
    engine.write(&batch.images, &images).unwrap();
    engine.write(&batch.labels, &(0..BATCH).map(|_| random.word() % 10).collect::<Vec<_>>()).unwrap();
    engine.write(&batch.logit_gradient, &random.normals(BATCH * 10, 1.0)).unwrap();

    engine.forward(Pass::Eval, &batch.images, &batch.logits).unwrap();
    let logits = engine.read(&batch.logits).unwrap();
    engine.write(&batch.perturbed, &vec![f32::NAN; BATCH * IMAGE_LEN]).unwrap();
    engine.backward(Pass::Eval, &batch.logit_gradient, GradRequest::images(&batch.perturbed)).unwrap();
    let gradient = engine.read(&batch.perturbed).unwrap();
    engine.write(&batch.perturbed, &images).unwrap();
    let attack = AttackSteps {
        pass: Pass::Eval,
        loss: AscentLoss::CrossEntropy,
        labels: &batch.labels,
        clean_logits: &batch.clean_logits,
        step: SignStep { step_size: 2.0 / 255.0, epsilon: 8.0 / 255.0 },
        steps,
        images: &batch.images,
        perturbed: &batch.perturbed,
        logits: &batch.logits,
        outputs: batch.outputs(),
    };
    engine.run(&attack).unwrap();
    let moved = engine.read(&batch.perturbed).unwrap();
    assert_ne!(moved, images);
    [logits, gradient, moved].map(|values| values.iter().map(|value| value.to_bits()).collect())
}

/// The bits in parts of these sizes are those of the whole.
fn agree(device: DeviceChoice, network: ResNet, parts: &[usize], steps: u32) {
    let whole = results(device, network, BATCH, steps);
    assert!(whole[1].iter().all(|value| f32::from_bits(*value).is_finite()), "every gradient is written");
    for &part in parts {
        let actual = results(device, network, part, steps);
        for (at, name) in ["logits", "input gradient", "attacked images"].into_iter().enumerate() {
            assert!(actual[at] == whole[at], "{device:?}, parts of {part}: {name}");
        }
    }
}

#[test]
fn parts_give_the_bits_of_the_whole() {
    agree(cuda_engine(), ResNet::resnet18(16, 10), &[2, 100], 2);
}

/// Its first stage ends in another buffer than that of ResNet-18.
#[test]
fn parts_give_the_bits_of_the_whole_of_three_blocks() {
    agree(cuda_engine(), ResNet::resnet34(16, 10), &[2], 1);
}

#[test]
fn parts_give_the_bits_of_the_whole_on_wgmma() {
    let device = match cuda_engine() {
        DeviceChoice::Emulated => DeviceChoice::EmulatedHopper,
        device => device,
    };
    agree(device, ResNet::resnet18(64, 10), &[2], 1);
}
