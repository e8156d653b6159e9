//! What the tests of evaluation attacks share: a network after a short training on some engine, and what it makes of images.

use std::sync::OnceLock;

use secateur::batch::Batch;
use secateur::data::generated::{self, Part};
use secateur::engine::{DeviceChoice, Engine, GradRequest, Pass, Sgd, WeightSet, open};
use secateur::model::layers::IMAGE_LEN;
use secateur::model::{ResNet, Weights, initialise};
use secateur::ops::ImageSet;

pub const EPSILON: f32 = 8.0 / 255.0;
const NETWORK: ResNet = ResNet::resnet18(16, 10);
/// Training images, and the size and number of its minibatches.
const TRAINED: usize = 600;
const MINIBATCH: usize = 25;
const STEPS: usize = 8 * TRAINED / MINIBATCH;

/// Weights that are often right: plain training is enough here, and quick. Once a test binary.
fn weights() -> &'static Weights {
    static WEIGHTS: OnceLock<Weights> = OnceLock::new();
    WEIGHTS.get_or_init(|| {
        let mut engine = open(DeviceChoice::Cpu, NETWORK, MINIBATCH).unwrap();
        let engine = &mut engine;
        engine.load_weights(&initialise(NETWORK, super::SEED)).unwrap();
        let train = generated::images(Part::Train, TRAINED);
        let set = ImageSet::upload(engine, &train.pixels, &train.labels).unwrap();
        let batch = Batch::alloc(engine, MINIBATCH).unwrap();
        let pass = Pass::Train { slot: 0 };
        for step in 0..STEPS {
            // A stride without common factors visits every image of an epoch once, classes mixed.
            let sample = |i: usize| ((step * MINIBATCH + i) * 7 % TRAINED) as u32;
            let samples: Vec<u32> = (0..MINIBATCH).map(sample).collect();
            engine.write(&batch.samples, &samples).unwrap();
            engine.run(&batch.gather(&set, None)).unwrap();
            engine.forward(pass, &batch.images, &batch.logits).unwrap();
            engine.run(&batch.cross_entropy(1.0 / MINIBATCH as f32)).unwrap();
            engine.backward(pass, &batch.logit_gradient, GradRequest::PARAMETERS).unwrap();
            let sgd = Sgd { learning_rate: 0.05, momentum: 0.9, weight_decay: 5e-4, ..Sgd::ZERO };
            engine.step(&sgd).unwrap();
        }
        engine.weights(WeightSet::Live).unwrap()
    })
}

/// The trained network, ready for evaluation, and test images.
pub struct Evaluated {
    pub engine: Engine,
    pub labels: Vec<u32>,
    /// Positions of the images that the network predicts right.
    pub right: Vec<u32>,
    set: ImageSet,
}

impl Evaluated {
    /// The first `count` test images on `device`.
    pub fn open(device: DeviceChoice, count: usize) -> Self {
        let mut engine = open(device, NETWORK, count).unwrap();
        engine.load_weights(weights()).unwrap();
        engine.fold_batch_norm(WeightSet::Live).unwrap();
        let test = generated::images(Part::Test, count);
        let set = ImageSet::upload(&engine, &test.pixels, &test.labels).unwrap();
        let mut evaluated = Self { engine, labels: test.labels, right: Vec::new(), set };
        let all: Vec<u32> = (0..count as u32).collect();
        let batch = evaluated.gather(&all);
        let clean = evaluated.engine.read(&batch.images).unwrap();
        let margins = evaluated.margins(&all, &clean);
        evaluated.right = all.into_iter().filter(|&i| margins[i as usize] > 0.0).collect();
        let (right, quarter) = (evaluated.right.len(), count.div_ceil(4));
        assert!(right >= quarter, "the network is right on {right} of {count} images only");
        evaluated
    }

    /// A batch of these images; its adversarial images are NaN.
    pub fn gather(&mut self, positions: &[u32]) -> Batch {
        let engine = &mut self.engine;
        let batch = Batch::alloc(engine, positions.len()).unwrap();
        engine.write(&batch.samples, positions).unwrap();
        engine.run(&batch.gather(&self.set, None)).unwrap();
        engine.write(&batch.perturbed, &vec![f32::NAN; batch.perturbed.len()]).unwrap();
        batch
    }

    /// For each image, made from that at its position: the label's logit less the largest other one.
    pub fn margins(&mut self, positions: &[u32], images: &[f32]) -> Vec<f32> {
        let engine = &mut self.engine;
        let images = engine.upload("images", images).unwrap();
        let logits = engine.alloc("logits", positions.len() * NETWORK.classes).unwrap();
        engine.forward(Pass::Eval, &images, &logits).unwrap();
        let logits = engine.read(&logits).unwrap();
        let margin = |(row, &position): (&[f32], &u32)| {
            let label = self.labels[position as usize] as usize;
            let others = (0..NETWORK.classes).filter(|&c| c != label).map(|c| row[c]);
            row[label] - others.fold(f32::NEG_INFINITY, f32::max)
        };
        logits.chunks_exact(NETWORK.classes).zip(positions).map(margin).collect()
    }

    /// Panics unless every image is in [0, 1] and in the ball of this radius around its clean one, and is predicted wrongly exactly
    /// where it is said to be broken; returns how many are.
    pub fn check(&mut self, epsilon: f32, positions: &[u32], perturbed: &[f32], broken: &[bool]) -> usize {
        let batch = self.gather(positions);
        let clean = self.engine.read(&batch.images).unwrap();
        for (i, (x, moved)) in clean.iter().zip(perturbed).enumerate() {
            let position = positions[i / IMAGE_LEN];
            assert!((0.0..=1.0).contains(moved), "image {position}: {moved}");
            let inside = *moved >= x - epsilon && *moved <= x + epsilon;
            assert!(inside, "image {position}: {x} to {moved}");
        }
        let margins = self.margins(positions, perturbed);
        for ((position, margin), broken) in positions.iter().zip(margins).zip(broken) {
            assert_eq!(margin < 0.0, *broken, "image {position}: margin {margin}");
        }
        broken.iter().filter(|broken| **broken).count()
    }
}
