//! Random starts and the stem's packed input.

use half::bf16;
use secateur::cuda::launch::attack::image_pack;
use secateur::model::layers::IMAGE_LEN;
use secateur::ops::Noise;
use secateur::ops::perturb::perturb;
use secateur::philox::{Key, Purpose, symmetric, unit};

use crate::common::*;

const SAMPLES: [u32; 3] = [7, 49_999, 0];

fn key() -> Key {
    Key { seed: SEED << 20 | 5, purpose: Purpose::AttackStart, epoch: 3, step: 17 }
}

/// Images that reach both ends of [0, 1].
fn images() -> Vec<f32> {
    Random::new(1).uniforms(SAMPLES.len() * IMAGE_LEN, -0.2, 1.2).iter().map(|v| v.clamp(0.0, 1.0)).collect()
}

/// The start of every driver has these bits, apart from the images and in their place.
fn expect_start(what: &str, noise: Noise, images: &[f32], expected: &[f32]) {
    for in_place in [false, true] {
        on_every_driver(&format!("{what}, in place {in_place}"), |driver| {
            let (samples, clean) = (input(driver, "samples", &SAMPLES), input(driver, "images", images));
            let perturbed = Output::holding(driver, "perturbed", images);
            let from = if in_place { perturbed.address() } else { clean.address() };
            perturb(&**driver, noise, key(), 3, samples.address(), from, perturbed.address()).unwrap();

            let actual = perturbed.read::<f32>();
            assert_eq!(actual.len(), expected.len());
            for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
                assert_eq!(
                    actual.to_bits(),
                    expected.to_bits(),
                    "image {}, element {}: {actual}, expected {expected}, seed {SEED}",
                    i / IMAGE_LEN,
                    i % IMAGE_LEN
                );
            }
            words(&actual)
        });
    }
}

/// The word that an element of each sample's noise is drawn from, sample after sample.
fn drawn() -> impl Iterator<Item = u32> {
    let of = |sample: u32| (0..IMAGE_LEN).map(move |e| key().block(sample, e as u32 / 4)[e % 4]);
    SAMPLES.into_iter().flat_map(of)
}

#[test]
fn a_uniform_start_has_the_bits_of_the_specification() {
    let (images, radius) = (images(), 8.0 / 255.0);
    let expected: Vec<f32> =
        images.iter().zip(drawn()).map(|(x, word)| (x + symmetric(word, radius)).clamp(0.0, 1.0)).collect();
    for (i, (moved, x)) in expected.iter().zip(&images).enumerate() {
        assert!((moved - x).abs() <= radius + 1e-7, "element {i} left the ball");
    }
    expect_start("uniform start", Noise::Uniform { radius }, &images, &expected);
}

#[test]
fn the_start_of_apgd_reaches_the_surface_of_the_ball() {
    let (images, radius) = (images(), 8.0 / 255.0);
    let noise: Vec<f32> = drawn().map(|word| 2.0 * unit(word) - 1.0).collect();
    let mut expected = Vec::new();
    for (x, noise) in images.chunks_exact(IMAGE_LEN).zip(noise.chunks_exact(IMAGE_LEN)) {
        let largest = noise.iter().fold(0.0f32, |largest, t| largest.max(t.abs()));
        expected.extend(x.iter().zip(noise).map(|(x, t)| (x + radius * (t / largest)).clamp(0.0, 1.0)));
    }
    expect_start("start on the surface", Noise::Surface { radius }, &images, &expected);
}

#[test]
fn a_normal_start_is_box_muller() {
    // Black, grey and white: the sum with the noise is not clipped.
    let images: Vec<f32> = (0..SAMPLES.len() * IMAGE_LEN).map(|i| (i % 3) as f32 / 2.0).collect();
    let deviation = 0.001;
    on_every_driver("normal start", |driver| {
        let (samples, clean) = (input(driver, "samples", &SAMPLES), input(driver, "images", &images));
        let perturbed = Output::new::<f32>(driver, "perturbed", images.len());
        let noise = Noise::Normal { deviation };
        perturb(&**driver, noise, key(), 3, samples.address(), clean.address(), perturbed.address()).unwrap();

        let actual = perturbed.read::<f32>();
        let expected: Vec<f64> = (0..actual.len())
            .map(|i| {
                let (sample, element) = (SAMPLES[i / IMAGE_LEN], i % IMAGE_LEN);
                let words = key().block(sample, element as u32 / 4);
                let pair = element % 4 / 2 * 2;
                let [u, v] = [pair, pair + 1].map(|word| f64::from(unit(words[word])));
                let radius = (-2.0 * (1.0 - u).ln()).sqrt();
                let angle = std::f64::consts::TAU * v;
                let normal = radius * if element % 2 == 0 { angle.cos() } else { angle.sin() };
                f64::from(images[i]) + f64::from(deviation) * normal
            })
            .collect();
        assert_close("perturbed", &actual, &expected, Bound { absolute: 1.3e-7, relative: 0.0, whole: 6e-8 });
        let count = actual.len() as f64;
        let moved: Vec<f64> =
            actual.iter().zip(&images).map(|(v, x)| f64::from(*v) - f64::from(*x)).collect();
        let mean = moved.iter().sum::<f64>() / count;
        let spread = (moved.iter().map(|v| v.powi(2)).sum::<f64>() / count).sqrt();
        // Five standard errors of 9,216 draws.
        assert!(mean.abs() < 5.0 * 0.001 / count.sqrt(), "mean {mean}, seed {SEED}");
        assert!((spread / 0.001 - 1.0).abs() < 5.0 / (2.0 * count).sqrt(), "deviation {spread}, seed {SEED}");
        words(&actual)
    });
}

#[test]
fn packed_images_keep_sixteen_bits() {
    let images = images();
    on_every_driver("pack", |driver| {
        let clean = input(driver, "images", &images);
        let packed = Output::new::<bf16>(driver, "packed", images.len() / 3 * 8);
        image_pack(&**driver, SAMPLES.len(), clean.address(), packed.address()).unwrap();
        let packed = packed.read::<bf16>();
        for (pixel, lanes) in packed.chunks_exact(8).enumerate() {
            for c in 0..3 {
                let x = images[pixel * 3 + c];
                let hi = bf16::from_f32(x);
                let lo = bf16::from_f32(x - hi.to_f32());
                assert_eq!([lanes[c], lanes[c + 3]], [hi, lo], "pixel {pixel}, channel {c}, seed {SEED}");
                let error = (hi.to_f32() + lo.to_f32() - x).abs();
                assert!(error <= x * 2f32.powi(-16), "pixel {pixel}, channel {c}: {error} of {x}");
            }
            assert_eq!(lanes[6..], [bf16::ZERO; 2], "padding of pixel {pixel}");
        }
        words(&packed)
    });
}
