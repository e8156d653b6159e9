//! Adversarial weight perturbation over the whole arena against an f64 oracle, at widths 16 and 64, 10 and 100 classes.

use std::iter;
use std::ops::Range;

use secateur::cuda::layout::Layout;
use secateur::model::ResNet;
use secateur::ops::awp::*;

use crate::common::*;

/// Where the tensors lie that are moved.
fn tensors(layout: &Layout) -> Vec<Range<usize>> {
    let convs = layout.convs.iter().map(|slot| slot.weight..slot.weight + slot.conv.weight_len());
    convs.chain(iter::once(layout.linear_weight..layout.linear_bias)).collect()
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn each_tensor_moves_by_a_share_of_its_norm() {
    const GAMMA: f32 = 5e-3;
    for (width, classes) in [(16, 10), (16, 100), (64, 10)] {
        let layout = Layout::new(ResNet::resnet18(width, classes));
        let mut random = Random::new(1);
        let weights = random.normals(layout.total, 0.1);
        let mut gradients = random.normals(layout.trainable, 0.05);
        let tensors = tensors(&layout);
        // Norms whose squares are no f32, a gradient of zero, and one of a single element.
        gradients[tensors[1].clone()].iter_mut().for_each(|g| *g *= 1e-30);
        gradients[tensors[2].clone()].iter_mut().for_each(|g| *g *= 1e30);
        gradients[tensors[3].clone()].fill(0.0);
        gradients[tensors[4].clone()].fill(0.0);
        gradients[tensors[4].end - 1] = -3.0;
        let mut expected = vec![0.0f64; layout.trainable];
        for tensor in &tensors {
            let factor = f64::from(GAMMA) * norm(&weights[tensor.clone()])
                / (norm(&gradients[tensor.clone()]) + 1e-20);
            for i in tensor.clone() {
                expected[i] = factor * f64::from(gradients[i]);
            }
        }
        on_every_driver(&format!("weight perturbation, width {width}, {classes} classes"), |driver| {
            let weights_at = Output::holding(driver, "weights", &weights);
            let gradients_at = input(driver, "gradients", &gradients);
            let displacement = Output::new::<f32>(driver, "displacement", layout.trainable);
            let squares = Output::new::<f64>(driver, "squares", squares_len(&layout));
            let arenas = AwpArenas {
                weights: weights_at.address(),
                gradients: gradients_at.address(),
                displacement: displacement.address(),
                squares: squares.address(),
            };
            perturb_weights(&**driver, &layout, arenas, GAMMA).unwrap();

            let (moved, displacement) = (weights_at.read::<f32>(), displacement.read::<f32>());
            assert!(squares.read::<f64>().iter().all(|square| square.is_finite()));
            // Tensor by tensor: the norms lie far apart.
            for (number, tensor) in tensors.iter().enumerate() {
                let bound = Bound { absolute: 0.0, relative: 2e-7, whole: 1e-7 };
                let (actual, expected) = (&displacement[tensor.clone()], &expected[tensor.clone()]);
                assert_close(&format!("displacement of tensor {number}"), actual, expected, bound);
            }
            for i in 0..layout.total {
                let v = displacement.get(i).copied().unwrap_or(0.0);
                assert_eq!(moved[i].to_bits(), (weights[i] + v).to_bits(), "weight {i}, seed {SEED}");
                let still = !tensors.iter().any(|tensor| tensor.contains(&i));
                assert!(!still || v.to_bits() == 0, "element {i} is of one dimension, seed {SEED}");
            }
            [words(&moved), words(&displacement)].concat()
        });
    }
}
