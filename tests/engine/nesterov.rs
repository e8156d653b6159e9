//! Nesterov momentum on both engines against PyTorch's formula in f64, on the gradients that the engine has.

use secateur::batch::Batch;
use secateur::engine::{DeviceChoice, GradRequest, Pass, WeightSet, open};
use secateur::model::Weights;
use secateur::ops::Sgd;

use super::reference_pytorch::{BATCH, NETWORK, SEED, images, weights};
use crate::common;

const SGD: Sgd = Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 5e-3, nesterov: true, ..Sgd::ZERO };

#[test]
fn three_steps_are_pytorchs() {
    for device in [DeviceChoice::Cpu, common::cuda_engine()] {
        let mut engine = open(device, NETWORK, BATCH).unwrap();
        engine.load_weights(&weights(SEED)).unwrap();
        let batch = Batch::alloc(&engine, BATCH).unwrap();
        engine.write(&batch.images, &images(SEED, 0)).unwrap();
        let pass = Pass::Train { slot: 0 };
        for step in 0..3 {
            engine.forward(pass, &batch.images, &batch.logits).unwrap();
            let slope: Vec<f32> =
                (0..batch.logits.len()).map(|i| 0.1 * (i % 7 + step) as f32 - 0.3).collect();
            engine.write(&batch.logit_gradient, &slope).unwrap();
            engine.backward(pass, &batch.logit_gradient, GradRequest::PARAMETERS).unwrap();
            let read = |engine: &secateur::engine::Engine| -> [Weights; 2] {
                [WeightSet::Live, WeightSet::Momentum].map(|set| engine.weights(set).unwrap())
            };
            let (before, gradients) = (read(&engine), engine.weights(WeightSet::Gradients).unwrap());
            engine.step(&SGD).unwrap();
            let after = read(&engine);
            for (name, gradient) in &gradients.tensors {
                let [[w, v], [actual_w, actual_v]] =
                    [&before, &after].map(|sets| sets.each_ref().map(|set| &set.tensors[name].values));
                for (i, g) in gradient.values.iter().enumerate() {
                    let wide = |values: &[f32]| f64::from(values[i]);
                    let g = f64::from(*g) + 5e-3 * wide(w);
                    let expected_v = 0.9 * wide(v) + g;
                    let expected_w = wide(w) - 0.1 * (g + 0.9 * expected_v);
                    for (what, actual, expected) in
                        [("v", wide(actual_v), expected_v), ("w", wide(actual_w), expected_w)]
                    {
                        let scale = wide(w).abs() + wide(v).abs() + g.abs();
                        let holds = (actual - expected).abs() <= 5e-7 * scale + 1e-12;
                        assert!(
                            holds,
                            "{device:?}, step {step}, {what} of {name}[{i}]: {actual}, expected {expected}"
                        );
                    }
                }
            }
        }
    }
}
