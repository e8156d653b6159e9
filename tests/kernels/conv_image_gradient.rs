//! The stem's input gradient, and the attack step that ends in it, against an f64 oracle and exact f32 arithmetic.

use half::bf16;
use secateur::cuda::launch::conv::{ConvShape, ImageEpilogue, image_gradient};
use secateur::engine::SignStep;

use crate::common::conv::*;

const BATCH: usize = 3;

struct Case {
    shape: ConvShape,
    output_gradient: Vec<bf16>,
    /// All eight columns differ: only the first three may count.
    weights: Vec<bf16>,
    /// pixels x 3, and its bound.
    gradient: Vec<f64>,
    error: Vec<f64>,
}

impl Case {
    fn new(width: usize) -> Self {
        let shape = shapes(width, BATCH)[0];
        assert!(shape.is_stem());
        let mut output_gradient = halves(21, shape.output_len(), 1.0);
        // The middle image has no gradient at all: sign(0) = 0.
        let image = shape.output_len() / BATCH;
        output_gradient[image..2 * image].fill(bf16::ZERO);
        let weights = weights(22, &shape);
        let sums = input_gradient(&shape, &output_gradient, &weights);
        let colours = || (0..shape.input_len()).filter(|i| i % 8 < 3);
        Self {
            gradient: colours().map(|i| sums.value[i]).collect(),
            error: colours().map(|i| sums.error(i)).collect(),
            shape,
            output_gradient,
            weights,
        }
    }
}

#[test]
fn the_gradient_agrees_with_the_oracle() {
    println!("seed {SEED}");
    for width in [16, 64] {
        let case = Case::new(width);
        for (name, driver) in drivers() {
            let output_gradient = upload(&driver, "output gradient", &case.output_gradient);
            let weights = upload(&driver, "weights", &case.weights);
            let run = || {
                let gradient = poisoned::<f32>(&driver, "gradient", case.gradient.len());
                let epilogue = ImageEpilogue::Gradient { gradient: gradient.address() };
                let (from, with) = (output_gradient.address(), weights.address());
                image_gradient(&*driver, &case.shape, from, with, &epilogue).unwrap();
                gradient.to_vec::<f32>().unwrap()
            };
            let actual = run();
            let what = format!("width {width}, {name}");
            check(&what, &from_floats(&actual), &case.gradient, |i| case.error[i], WHOLE_F32);
            assert!(run() == actual, "{what}: the second run differs");
        }
    }
}

/// One element of the step in the f32 arithmetic of its definition.
fn step_of(step: &SignStep, x: f32, moved: f32, sign: f32) -> f32 {
    (moved + step.step_size * sign).max(x - step.epsilon).min(x + step.epsilon).clamp(0.0, 1.0)
}

#[test]
fn the_sign_step_is_exact() {
    println!("seed {SEED}");
    for width in [16, 64] {
        let case = Case::new(width);
        let len = case.gradient.len();
        // Clean images that reach 0 and 1, perturbed ones inside the ball, on its rim and beyond it.
        let clean: Vec<f32> = numbers(23, len, 0.6).iter().map(|v| (0.5 + v).clamp(0.0, 1.0)).collect();
        let noise = numbers(24, len, 10.0 / 255.0);
        let start: Vec<f32> = clean.iter().zip(noise).map(|(x, n)| (x + n).clamp(0.0, 1.0)).collect();
        let steps = [
            SignStep { step_size: 2.0 / 255.0, epsilon: 8.0 / 255.0 },
            SignStep { step_size: 10.0 / 255.0, epsilon: f32::INFINITY },
            SignStep { step_size: 0.0, epsilon: 8.0 / 255.0 },
        ];
        for (step, (name, driver)) in
            steps.iter().flat_map(|step| drivers().into_iter().map(move |d| (step, d)))
        {
            let what = format!("width {width}, {step:?}, {name}");
            let output_gradient = upload(&driver, "output gradient", &case.output_gradient);
            let weights = upload(&driver, "weights", &case.weights);
            let images = upload(&driver, "images", &clean);
            let perturbed = upload(&driver, "perturbed", &start);
            let packed = poisoned::<bf16>(&driver, "packed", case.shape.input_len());
            let epilogue = ImageEpilogue::SignStep {
                step: *step,
                images: images.address(),
                perturbed: perturbed.address(),
                packed: packed.address(),
            };
            let (from, with) = (output_gradient.address(), weights.address());
            image_gradient(&*driver, &case.shape, from, with, &epilogue).unwrap();
            let moved = perturbed.to_vec::<f32>().unwrap();
            let packed = packed.to_vec::<u16>().unwrap();

            let (mut at_zero, mut at_rim, mut unsure) = (0, 0, 0);
            for i in 0..len {
                let (gradient, error) = (case.gradient[i], case.error[i]);
                let expected = |sign| step_of(step, clean[i], start[i], sign);
                if error == 0.0 {
                    assert_eq!(moved[i], expected(0.0), "{what}, seed {SEED}: element {i} without gradient");
                    at_zero += 1;
                } else if gradient.abs() > error {
                    let expected = expected(gradient.signum() as f32);
                    assert_eq!(moved[i], expected, "{what}, seed {SEED}: element {i}, gradient {gradient}");
                    at_rim += usize::from((expected - clean[i]).abs() >= step.epsilon);
                } else {
                    unsure += 1;
                    assert!([-1.0, 0.0, 1.0].map(expected).contains(&moved[i]), "{what}: element {i}");
                }
            }
            assert_eq!(at_zero, len / BATCH, "{what}");
            assert!(unsure < len / 1000, "{what}: {unsure} signs undecided");
            assert!(at_rim > 0 || step.epsilon.is_infinite(), "{what}: no element reaches the ball's rim");

            for (pixel, stored) in packed.chunks(8).enumerate() {
                let colours = &moved[3 * pixel..3 * pixel + 3];
                let hi = |c: usize| bf16::from_f32(colours[c]);
                for c in 0..3 {
                    let lo = bf16::from_f32(colours[c] - hi(c).to_f32());
                    let expected = (hi(c).to_bits(), lo.to_bits());
                    assert_eq!((stored[c], stored[3 + c]), expected, "{what}: packed pixel {pixel}");
                }
                assert_eq!(stored[6..], [0, 0], "{what}: padding of pixel {pixel}");
            }
        }
    }
}
