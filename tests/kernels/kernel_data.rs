//! Gather, crop and flip: bit for bit what the documentation of `Augment` says, its padding that of PyTorch and numpy.
//!
//! The fixture is written by `scripts/make-padding-fixtures.py`.

use secateur::engine::{DeviceChoice, open};
use secateur::model::ResNet;
use secateur::model::layers::IMAGE_LEN;
use secateur::ops::gather_images::*;
use secateur::ops::{Augment, GatherImages, ImageSet, Padding};
use secateur::philox::{Key, Purpose};

use crate::common::*;

const COUNT: usize = 9;
const SAMPLES: [u32; 64] = {
    let mut samples = [0; 64];
    let mut i = 0;
    while i < 64 {
        samples[i] = (i * 7 % COUNT) as u32;
        i += 1;
    }
    samples
};

/// Element (row, column, channel) of the augmented sample.
fn expected(set: &[u8], sample: u32, at: [usize; 3], augment: Option<Augment>) -> f32 {
    let [row, column, channel] = at.map(|v| v as i32);
    let (mut source_row, mut source_column) = (row, column);
    if let Some(augment) = augment {
        let key = Key { seed: augment.seed, purpose: Purpose::Augment, epoch: augment.epoch, step: 0 };
        let words = key.block(sample, 0);
        if words[2] & 1 == 1 {
            source_column = 31 - column;
        }
        source_row += (words[0] % 9) as i32 - 4;
        source_column += (words[1] % 9) as i32 - 4;
    }
    let reflects = augment.is_some_and(|augment| augment.padding == Padding::Reflect);
    for source in [&mut source_row, &mut source_column] {
        match *source {
            0..32 => {}
            outside if reflects => *source = if outside < 0 { -outside } else { 62 - outside },
            _ => return 0.0,
        }
    }
    let at = ((sample as i32 * 3 + channel) * 32 + source_row) * 32 + source_column;
    f32::from(set[at as usize]) / 255.0
}

#[test]
fn batches_are_gathered_cropped_and_flipped() {
    let mut random = Random::new(1);
    let set: Vec<u8> = (0..COUNT * IMAGE_LEN).map(|_| random.word() as u8).collect();
    let set_labels: Vec<u32> = (0..COUNT as u32).map(|i| i * 3 % 10).collect();
    let augment = |seed, epoch, padding| Some(Augment { seed, epoch, padding });
    for augment in [
        None,
        augment(SEED, 0, Padding::Zero),
        augment(SEED, 0, Padding::Reflect),
        augment(u64::MAX, 199, Padding::Zero),
        augment(u64::MAX, 199, Padding::Reflect),
    ] {
        on_every_driver(&format!("gather, {augment:?}"), |driver| {
            let (set_at, labels_at) = (input(driver, "set", &set), input(driver, "set labels", &set_labels));
            let samples = input(driver, "samples", &SAMPLES);
            let images = Output::new::<f32>(driver, "images", SAMPLES.len() * IMAGE_LEN);
            let labels = Output::new::<u32>(driver, "labels", SAMPLES.len());
            let gather = Gather {
                set: set_at.address(),
                set_labels: labels_at.address(),
                samples: samples.address(),
                images: images.address(),
                labels: labels.address(),
            };
            gather_images(&**driver, augment, gather, [COUNT, SAMPLES.len()]).unwrap();
            let (images, labels) = (images.read::<f32>(), labels.read::<u32>());
            for (i, actual) in images.iter().enumerate() {
                let (sample, element) = (SAMPLES[i / IMAGE_LEN], i % IMAGE_LEN);
                let at = [element / 96, element / 3 % 32, element % 3];
                let expected = expected(&set, sample, at, augment);
                assert_eq!(actual.to_bits(), expected.to_bits(), "sample {sample} at {at:?}, seed {SEED}");
            }
            let expected: Vec<u32> = SAMPLES.iter().map(|s| set_labels[*s as usize]).collect();
            assert_eq!(labels, expected);
            [words(&images), labels].concat()
        });
    }
}

#[test]
fn an_unknown_sample_is_not_a_number() {
    on_every_driver("an unknown sample", |driver| {
        let (set, labels) = (input(driver, "set", &[7u8; IMAGE_LEN]), input(driver, "set labels", &[4u32]));
        let samples = input(driver, "samples", &[0u32, 1]);
        let images = Output::new::<f32>(driver, "images", 2 * IMAGE_LEN);
        let batch_labels = Output::new::<u32>(driver, "labels", 2);
        let gather = Gather {
            set: set.address(),
            set_labels: labels.address(),
            samples: samples.address(),
            images: images.address(),
            labels: batch_labels.address(),
        };
        gather_images(&**driver, None, gather, [1, 2]).unwrap();
        let images = images.read::<f32>();
        assert!(images[..IMAGE_LEN].iter().all(|v| *v == 7.0 / 255.0));
        assert!(images[IMAGE_LEN..].iter().all(|v| v.is_nan()));
        assert_eq!(batch_labels.read::<u32>(), [4, u32::MAX]);
        words(&images)
    });
}

/// Every crop of one image on both engines, out of the padded image that PyTorch and numpy make.
#[test]
fn crops_are_cut_from_the_image_that_pytorch_pads() {
    const BATCH: usize = 128;
    let file = std::fs::read("tests/fixtures/padding.safetensors").unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let bytes = |name: &str| tensors.tensor(name).unwrap().data().to_vec();
    let image = bytes("image");
    println!("seed {SEED}");
    for device in [DeviceChoice::Cpu, DeviceChoice::Emulated] {
        let mut engine = open(device, ResNet::resnet18(16, 10), BATCH).unwrap();
        let engine = &mut engine;
        let set = ImageSet::upload(engine, &image.repeat(BATCH), &[3; BATCH]).unwrap();
        let samples = engine.upload("samples", &(0..BATCH as u32).collect::<Vec<u32>>()).unwrap();
        let images = engine.alloc("images", BATCH * IMAGE_LEN).unwrap();
        let labels = engine.alloc("labels", BATCH).unwrap();
        for (padding, name) in [(Padding::Zero, "zero"), (Padding::Reflect, "reflect")] {
            let padded = bytes(name);
            let mut crops = std::collections::BTreeSet::new();
            for epoch in 0..12 {
                let augment = Some(Augment { seed: SEED, epoch, padding });
                engine
                    .run(&GatherImages {
                        set: &set,
                        samples: &samples,
                        augment,
                        images: &images,
                        labels: &labels,
                    })
                    .unwrap();
                let actual: Vec<f32> = engine.read(&images).unwrap();
                let key = Key { seed: SEED, purpose: Purpose::Augment, epoch, step: 0 };
                for (sample, actual) in actual.chunks_exact(IMAGE_LEN).enumerate() {
                    let words = key.block(sample as u32, 0);
                    let (top, left) = ((words[0] % 9) as usize, (words[1] % 9) as usize);
                    let flip = words[2] & 1 == 1;
                    crops.insert((top, left, flip));
                    for (at, actual) in actual.iter().enumerate() {
                        let (row, column, channel) = (at / 96, at / 3 % 32, at % 3);
                        let column = if flip { 31 - column } else { column };
                        let expected = padded[(channel * 40 + top + row) * 40 + left + column];
                        let expected = f32::from(expected) / 255.0;
                        assert_eq!(
                            *actual, expected,
                            "{device:?}, {name}, crop {top}, {left}, {flip}, at {at}"
                        );
                    }
                }
            }
            assert_eq!(crops.len(), 9 * 9 * 2, "{device:?}, {name}: crops that were never drawn");
        }
    }
}
