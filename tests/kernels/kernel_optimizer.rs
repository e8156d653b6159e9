//! The optimizer step over the whole arena against an f64 oracle, at widths 16 and 64, 10 and 100 classes.

use half::bf16;
use secateur::cuda::driver::Address;
use secateur::cuda::layout::{Layout, STEM_CHANNELS, packed_len, packed_offset, shape};
use secateur::model::ResNet;
use secateur::ops::sgd::*;

use crate::common::*;

/// An arena with its room: zero after the last element.
fn arena(mut values: Vec<f32>) -> Vec<f32> {
    values.resize(arena_room(values.len()), 0.0);
    values
}

/// The bf16 arena must hold exactly the rounded weights, the stem packed.
fn assert_copies(layout: &Layout, weights: &[f32], copies: &[bf16]) {
    for (at, slot) in layout.convs.iter().enumerate() {
        let (shape, first) = (shape(layout, at, 1), packed_offset(layout, at));
        for i in 0..shape.weight_len() {
            let expected = match (shape.in_channels, i % STEM_CHANNELS) {
                (STEM_CHANNELS, 6..) => bf16::ZERO,
                (STEM_CHANNELS, lane) => {
                    bf16::from_f32(weights[slot.weight + i / STEM_CHANNELS * 3 + lane % 3])
                }
                _ => bf16::from_f32(weights[slot.weight + i]),
            };
            let actual = copies[first + i];
            assert_eq!(actual.to_bits(), expected.to_bits(), "{}: copy {i}, seed {SEED}", slot.conv.name);
        }
    }
}

#[test]
fn two_steps_move_weights_velocity_average_and_copies() {
    for (width, classes) in [(16, 10), (16, 100), (64, 10)] {
        let layout = Layout::new(ResNet::resnet18(width, classes));
        let mut random = Random::new(1);
        let (trainable, total) = (layout.trainable, layout.total);
        let weights = arena(random.normals(total, 0.1));
        let gradients = arena(random.normals(trainable, 0.05));
        let velocity = arena(random.normals(trainable, 0.2));
        let average = arena(random.normals(total, 0.1));
        // The wide network is here for its layout; one variant is enough.
        let variants = [(true, false), (false, true), (false, false)];
        for (keeps_average, nesterov) in variants.into_iter().filter(|variant| variant.0 || width == 16) {
            let wide = |values: &[f32], len: usize| values[..len].iter().map(|v| f64::from(*v)).collect();
            let mut w: Vec<f64> = wide(&weights, total);
            let mut v: Vec<f64> = wide(&velocity, trainable);
            let mut a: Vec<f64> = wide(&average, total);
            for _ in 0..2 {
                for i in 0..total {
                    if i < trainable {
                        let g = f64::from(gradients[i]) + 5e-4 * w[i];
                        v[i] = 0.9 * v[i] + g;
                        w[i] -= 0.1 * if nesterov { g + 0.9 * v[i] } else { v[i] };
                    }
                    if keeps_average {
                        a[i] = 0.99 * a[i] + 0.01 * w[i];
                    }
                }
            }
            let name = format!(
                "SGD, width {width}, {classes} classes, average {keeps_average}, nesterov {nesterov}"
            );
            on_every_driver(&name, |driver| {
                let weights_at = Output::holding(driver, "weights", &weights);
                let velocity_at = Output::holding(driver, "velocity", &velocity);
                let average_at = Output::holding(driver, "average", &average);
                let gradients_at = input(driver, "gradients", &gradients);
                let copies_at = Output::new::<bf16>(driver, "copies", packed_len(&layout));
                let arenas = SgdArenas {
                    weights: weights_at.address(),
                    velocity: velocity_at.address(),
                    gradients: gradients_at.address(),
                    average: if keeps_average { average_at.address() } else { Address::NULL },
                    displacement: Address::NULL,
                    copies: copies_at.address(),
                    extents: ArenaExtents::from(&layout),
                };
                let params = SgdParams {
                    arenas,
                    learning_rate: 0.1,
                    momentum: 0.9,
                    weight_decay: 5e-4,
                    average_decay: 0.99,
                    nesterov: nesterov.into(),
                    padding: 0,
                };
                sgd_step(&**driver, &params).unwrap();
                sgd_step(&**driver, &params).unwrap();

                let actual = weights_at.read::<f32>();
                let (actual_v, actual_a) = (velocity_at.read::<f32>(), average_at.read::<f32>());
                let bound = Bound { absolute: 2e-7, relative: 1e-6, whole: 2e-7 };
                assert_close("weights", &actual[..total], &w, bound);
                assert_close("velocity", &actual_v[..trainable], &v, bound);
                assert_close("average", &actual_a[..total], &a, bound);
                assert_eq!(actual[trainable..], weights[trainable..], "running statistics and room stay");
                let copies = copies_at.read::<bf16>();
                assert_copies(&layout, &actual, &copies);
                [words(&actual), words(&actual_v), words(&actual_a), words(&copies)].concat()
            });
        }
    }
}

#[test]
fn loaded_weights_are_copied() {
    for width in [16, 64] {
        let layout = Layout::new(ResNet::resnet18(width, 10));
        let weights = arena(Random::new(2).normals(layout.total, 0.1));
        on_every_driver(&format!("bf16 copies, width {width}"), |driver| {
            let weights_at = input(driver, "weights", &weights);
            let copies = Output::new::<bf16>(driver, "copies", packed_len(&layout));
            let extents = ArenaExtents::from(&layout);
            weights_to_bf16(&**driver, extents, weights_at.address(), copies.address()).unwrap();
            let copies = copies.read::<bf16>();
            assert_copies(&layout, &weights, &copies);
            words(&copies)
        });
    }
}
