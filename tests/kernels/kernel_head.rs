//! Average pool and linear layer, forward and backward, against f64 oracles at widths 16, 32 and 64, 10 and 100 classes.

use half::bf16;
use secateur::cuda::launch::head::*;
use secateur::model::layers::WIDTHS;

use crate::common::*;

/// Batch, features, classes.
fn shapes() -> Vec<(usize, usize, usize)> {
    let mut shapes = Vec::new();
    for width in WIDTHS {
        for classes in [10, 100] {
            for batch in [1, 7, 33] {
                shapes.push((batch, 8 * width, classes));
            }
        }
    }
    shapes
}

#[test]
fn forward_pools_and_multiplies() {
    for (batch, features, classes) in shapes() {
        let mut random = Random::new(1);
        let activation: Vec<bf16> =
            random.bf16s(batch * 16 * features, 1.0).into_iter().map(|v| v.max(bf16::ZERO)).collect();
        let (weight, bias) = (random.normals(classes * features, 0.1), random.normals(classes, 0.5));
        on_every_driver(&format!("head forward {batch} x {features} to {classes}"), |driver| {
            let activation_at = input(driver, "activation", &activation);
            let (weight_at, bias_at) = (input(driver, "weight", &weight), input(driver, "bias", &bias));
            let pooled = Output::new::<f32>(driver, "pooled", batch * features);
            let logits = Output::new::<f32>(driver, "logits", batch * classes);
            let params = HeadForwardParams {
                activation: activation_at.address(),
                weight: weight_at.address(),
                bias: bias_at.address(),
                pooled: pooled.address(),
                logits: logits.address(),
                features: features as u32,
                classes: classes as u32,
            };
            head_forward(&**driver, batch, &params).unwrap();

            let (pooled, logits) = (pooled.read::<f32>(), logits.read::<f32>());
            let mut mean = vec![0.0; batch * features];
            for (i, value) in activation.iter().enumerate() {
                mean[i / (16 * features) * features + i % features] += f64::from(*value) / 16.0;
            }
            assert_close("pooled", &pooled, &mean, F32);
            let expected: Vec<f64> = (0..batch * classes)
                .map(|i| {
                    let (image, class) = (i / classes, i % classes);
                    let products = (0..features)
                        .map(|f| mean[image * features + f] * f64::from(weight[class * features + f]));
                    products.sum::<f64>() + f64::from(bias[class])
                })
                .collect();
            assert_close("logits", &logits, &expected, Bound { absolute: 1e-5, relative: 1e-5, whole: 1e-6 });
            [words(&pooled), words(&logits)].concat()
        });
    }
}

#[test]
fn backward_spreads_over_pixels_under_the_mask() {
    for (batch, features, classes) in shapes() {
        let mut random = Random::new(2);
        let logit_gradient = random.normals(batch * classes, 0.1);
        let weight = random.normals(classes * features, 0.1);
        let mask = random.mask(batch * 16 * features);
        on_every_driver(&format!("head input gradient {batch} x {features} from {classes}"), |driver| {
            let dz = input(driver, "logit gradient", &logit_gradient);
            let (weight_at, mask_at) = (input(driver, "weight", &weight), input(driver, "mask", &mask));
            let gradient = Output::new::<bf16>(driver, "gradient", batch * 16 * features);
            let params = HeadBackwardParams {
                logit_gradient: dz.address(),
                weight: weight_at.address(),
                mask: mask_at.address(),
                gradient: gradient.address(),
                features: features as u32,
                classes: classes as u32,
            };
            head_input_gradient(&**driver, batch, &params).unwrap();

            let gradient = gradient.read::<bf16>();
            let feature_gradient: Vec<f64> = (0..batch * features)
                .map(|i| {
                    let (image, f) = (i / features, i % features);
                    let product = |c: usize| {
                        f64::from(logit_gradient[image * classes + c]) * f64::from(weight[c * features + f])
                    };
                    (0..classes).map(product).sum::<f64>() / 16.0
                })
                .collect();
            let expected: Vec<f64> = (0..gradient.len())
                .map(|i| match bit(&mask, i) {
                    true => feature_gradient[i / (16 * features) * features + i % features],
                    false => 0.0,
                })
                .collect();
            assert_close("gradient", &gradient, &expected, ROUNDED_TO_BF16);
            words(&gradient)
        });
    }
}

#[test]
fn weight_gradient_sums_over_the_batch() {
    // The bias takes 256 images at a time, the weight eight.
    for (batch, features, classes) in shapes().into_iter().chain([(777, 64, 3)]) {
        let mut random = Random::new(3);
        let logit_gradient = random.normals(batch * classes, 0.1);
        let pooled = random.uniforms(batch * features, 0.0, 2.0);
        let before = random.normals(classes * (features + 1), 1.0);
        for accumulate in [false, true] {
            let name =
                format!("head weight gradient {batch} x {features} x {classes}, accumulate {accumulate}");
            on_every_driver(&name, |driver| {
                let dz = input(driver, "logit gradient", &logit_gradient);
                let pooled_at = input(driver, "pooled", &pooled);
                let (old_weight, old_bias) = before.split_at(classes * features);
                let weight = Output::holding(driver, "weight gradient", old_weight);
                let bias = Output::holding(driver, "bias gradient", old_bias);
                let params = HeadWeightGradientParams {
                    logit_gradient: dz.address(),
                    pooled: pooled_at.address(),
                    weight_gradient: weight.address(),
                    bias_gradient: bias.address(),
                    batch: batch as u32,
                    features: features as u32,
                    classes: classes as u32,
                    accumulate: accumulate.into(),
                };
                head_weight_gradient(&**driver, &params).unwrap();

                let old = |value: f32| if accumulate { f64::from(value) } else { 0.0 };
                let column = |c: usize| (0..batch).map(move |image| (image, image * classes + c));
                let expected: Vec<f64> = (0..classes * features)
                    .map(|i| {
                        let (c, f) = (i / features, i % features);
                        let product = |(image, at): (usize, usize)| {
                            f64::from(logit_gradient[at]) * f64::from(pooled[image * features + f])
                        };
                        old(old_weight[i]) + column(c).map(product).sum::<f64>()
                    })
                    .collect();
                let (weight, bias) = (weight.read::<f32>(), bias.read::<f32>());
                let bound = Bound { absolute: 1e-6 + 1e-8 * batch as f64, ..F32 };
                assert_close("weight gradient", &weight, &expected, bound);
                let sum = |c| column(c).map(|(_, at)| f64::from(logit_gradient[at])).sum::<f64>();
                let expected: Vec<f64> = (0..classes).map(|c| old(old_bias[c]) + sum(c)).collect();
                assert_close("bias gradient", &bias, &expected, bound);
                [words(&weight), words(&bias)].concat()
            });
        }
    }
}
