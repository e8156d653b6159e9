//! Generated images: ten classes of coloured shapes among clutter, for a run without any files.
//!
//! Class `2 h + s` is hue h (of five) in shape s (of two), at a random place, size, orientation and contrast, on a
//! shaded background with blobs and noise. The contrast runs from faint to plain, so that a perturbation of 8/255 hides
//! the faintest hues and robust accuracy stays well below clean accuracy. An image is a pure function of (part, index)
//! by Philox and uses only + - * / and square roots, whose results IEEE 754 fixes: the same bytes on every machine.

use std::ops::Range;

use rayon::prelude::*;

use super::{IMAGE_BYTES, Images};
use crate::model::layers::IMAGE_SIDE;
use crate::philox::{Key, Purpose, symmetric, unit};

/// Images made where nobody says how many.
pub const GENERATED_TRAIN: usize = 2000;
pub const GENERATED_TEST: usize = 500;
/// The most images of a part.
pub const MAX_GENERATED: usize = 1_000_000;

/// Hue and shape of each class.
pub const CLASS_NAMES: [&str; 10] = [
    "red disc",
    "red cross",
    "yellow disc",
    "yellow cross",
    "green disc",
    "green cross",
    "blue disc",
    "blue cross",
    "violet disc",
    "violet cross",
];

/// Directions of five hues in RGB, 72 degrees apart: (cos t, cos(t - 120), cos(t + 120)) for t = 0, 72, ... They sum to
/// zero, so that a hue says nothing about brightness.
const HUES: [[f32; 3]; 5] = [
    [1.0, -0.5, -0.5],
    [0.309_017, 0.669_131, -0.978_148],
    [-0.809_017, 0.913_545, -0.104_528],
    [-0.809_017, -0.104_528, 0.913_545],
    [0.309_017, -0.978_148, 0.669_131],
];

/// One seed for all: the images belong to the program, as CIFAR-10's belong to its files, and not to a run.
const SEED: u64 = 0x5eca_7eb0_0d5e_ed01;

/// Training or test images, or others besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Part {
    Train = 0,
    Test = 1,
    Extra = 2,
}

/// The first `count` images of a part; ten in a row hold one of each class.
pub fn images(part: Part, count: usize) -> Images {
    images_in(part, 0..count as u32)
}

/// The images of a part at these indices.
pub fn images_in(part: Part, indices: Range<u32>) -> Images {
    let labels: Vec<u32> = indices.clone().map(|index| class_of(part, index)).collect();
    let mut pixels = vec![0; labels.len() * IMAGE_BYTES];
    let painted = pixels.par_chunks_exact_mut(IMAGE_BYTES).zip(indices).zip(&labels);
    painted.for_each(|((pixels, index), &label)| paint(part, index, label, pixels));
    Images { pixels, labels }
}

/// Philox steps: pixels and classes never share a number.
const PAINT_STEP: u32 = 0;
const CLASS_STEP: u32 = 1;

/// Ten images in a row are a random permutation of the classes.
fn class_of(part: Part, index: u32) -> u32 {
    let classes = CLASS_NAMES.len() as u32;
    let mut draw = Draw::new(part, index / classes, CLASS_STEP);
    let mut order: Vec<(u32, u32)> = (0..classes).map(|class| (draw.word(), class)).collect();
    order.sort_unstable();
    order[(index % classes) as usize].1
}

/// A stream of random numbers of one image.
struct Draw {
    key: Key,
    sample: u32,
    block: u32,
    words: [u32; 4],
    used: usize,
}

impl Draw {
    fn new(part: Part, sample: u32, step: u32) -> Self {
        let key = Key { seed: SEED, purpose: Purpose::Generation, epoch: part as u32, step };
        Self { key, sample, block: 0, words: [0; 4], used: 4 }
    }
    fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.words = self.key.block(self.sample, self.block);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }
    /// Uniform on [low, high).
    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * unit(self.word())
    }
    fn symmetric(&mut self, radius: f32) -> f32 {
        symmetric(self.word(), radius)
    }
    /// A uniform direction: a point of the unit disc, scaled to length 1.
    fn direction(&mut self) -> (f32, f32) {
        loop {
            let (x, y) = (self.symmetric(1.0), self.symmetric(1.0));
            let square = x * x + y * y;
            if (0.01..=1.0).contains(&square) {
                let length = square.sqrt();
                return (x / length, y / length);
            }
        }
    }
    /// An arbitrary colour offset.
    fn colour(&mut self, radius: f32) -> [f32; 3] {
        [self.symmetric(radius), self.symmetric(radius), self.symmetric(radius)]
    }
}

/// Contrast of the shape's hue, faint to plain; 8/255 is 0.031.
const CONTRAST: (f32, f32) = (0.06, 0.40);
/// Blobs of arbitrary colour behind the shape.
const BLOBS: usize = 3;

/// Paints one planar image.
fn paint(part: Part, index: u32, label: u32, pixels: &mut [u8]) {
    let mut draw = Draw::new(part, index, PAINT_STEP);
    let mut canvas = [[[0f32; 3]; IMAGE_SIDE]; IMAGE_SIDE];
    shade(&mut draw, &mut canvas);
    for _ in 0..BLOBS {
        blob(&mut draw, &mut canvas);
    }
    shape(&mut draw, label, &mut canvas);
    for (channel, plane) in pixels.chunks_exact_mut(IMAGE_SIDE * IMAGE_SIDE).enumerate() {
        for (position, byte) in plane.iter_mut().enumerate() {
            let value = canvas[position / IMAGE_SIDE][position % IMAGE_SIDE][channel] + draw.symmetric(0.05);
            *byte = (value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
        }
    }
}

type Canvas = [[[f32; 3]; IMAGE_SIDE]; IMAGE_SIDE];

/// Calls `at` for each pixel with its centre, in pixels.
fn each_pixel(canvas: &mut Canvas, mut at: impl FnMut(f32, f32, &mut [f32; 3])) {
    for (row, line) in canvas.iter_mut().enumerate() {
        for (column, pixel) in line.iter_mut().enumerate() {
            at(column as f32 + 0.5, row as f32 + 0.5, pixel);
        }
    }
}

/// A background of one colour with a linear shade across it.
fn shade(draw: &mut Draw, canvas: &mut Canvas) {
    let grey = draw.between(0.3, 0.7);
    let base = draw.colour(0.08).map(|offset| grey + offset);
    let slope = draw.colour(0.15);
    let (dx, dy) = draw.direction();
    each_pixel(canvas, |x, y, pixel| {
        let along = (dx * (x - 16.0) + dy * (y - 16.0)) / 16.0;
        for channel in 0..3 {
            pixel[channel] = base[channel] + slope[channel] * along;
        }
    });
}

/// A soft round spot, (1 - r^2)^2 of an arbitrary colour.
fn blob(draw: &mut Draw, canvas: &mut Canvas) {
    let (cx, cy) = (draw.between(0.0, 32.0), draw.between(0.0, 32.0));
    let radius = draw.between(3.0, 9.0);
    let colour = draw.colour(0.2);
    each_pixel(canvas, |x, y, pixel| {
        let (u, v) = ((x - cx) / radius, (y - cy) / radius);
        let inside = (1.0 - u * u - v * v).max(0.0);
        for channel in 0..3 {
            pixel[channel] += colour[channel] * inside * inside;
        }
    });
}

/// The shape that the class names, coloured and smoothed over one pixel at its edge.
fn shape(draw: &mut Draw, label: u32, canvas: &mut Canvas) {
    let (cx, cy) = (draw.between(12.0, 20.0), draw.between(12.0, 20.0));
    let radius = draw.between(9.0, 12.0);
    let (cos, sin) = draw.direction();
    let contrast = draw.between(CONTRAST.0, CONTRAST.1);
    let light = draw.symmetric(0.12);
    let colour = HUES[(label / 2) as usize].map(|part| light + contrast * part);
    each_pixel(canvas, |x, y, pixel| {
        let (x, y) = ((x - cx) / radius, (y - cy) / radius);
        let (u, v) = (cos * x + sin * y, cos * y - sin * x);
        let cover = (0.5 - radius * outside(label % 2, u, v)).clamp(0.0, 1.0);
        for channel in 0..3 {
            pixel[channel] += colour[channel] * cover;
        }
    });
}

/// About the distance from the edge of a disc (0) or a cross (1) of radius 1; negative inside.
fn outside(shape: u32, u: f32, v: f32) -> f32 {
    let (u, v) = (u.abs(), v.abs());
    match shape {
        0 => (u * u + v * v).sqrt() - 0.75,
        _ => (u - 1.0).max(v - 0.26).min((v - 1.0).max(u - 0.26)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_a_pure_function_of_part_and_index() {
        let train = images(Part::Train, 120);
        let mut head = train.clone();
        head.truncate(50);
        assert_eq!(head, images(Part::Train, 50));
        assert_ne!(train.pixels, images(Part::Test, 120).pixels);
        assert_ne!(train.pixels, images(Part::Extra, 120).pixels);
        assert_eq!(images_in(Part::Train, 17..50), train.select(&(17..50).collect::<Vec<_>>()));
        assert_eq!(train.class_counts(10), [12; 10]);
        assert_ne!(train.labels[..10], train.labels[10..20]);
    }

    #[test]
    fn pixels_use_the_range_without_clipping_much() {
        let train = images(Part::Train, 200);
        let clipped = train.pixels.iter().filter(|&&byte| byte == 0 || byte == 255).count();
        assert!(clipped * 50 < train.pixels.len(), "{clipped} of {} clipped", train.pixels.len());
        let mean = train.pixels.iter().map(|&byte| f64::from(byte)).sum::<f64>() / train.pixels.len() as f64;
        assert!((118.0..138.0).contains(&mean), "mean {mean}");
    }

    #[test]
    fn the_bytes_are_the_same_everywhere() {
        let images = images(Part::Test, 50);
        assert_eq!(
            crate::digest::sha256(&images.pixels),
            "ecb0e126366464bd35c09e5aa249ffc0e3c27bcbc202dd8ef65a6d0ea74881b0"
        );
    }

    /// Mean colour of the middle less that of the frame: the simplest feature that carries the hue.
    fn middle_less_frame(pixels: &[u8]) -> [f32; 3] {
        let side = IMAGE_SIDE;
        let mean = |channel: usize, inside: &dyn Fn(usize, usize) -> bool| {
            let at = (0..side * side).filter(|at| inside(at / side, at % side));
            let values: Vec<f32> =
                at.map(|at| f32::from(pixels[channel * side * side + at]) / 255.0).collect();
            values.iter().sum::<f32>() / values.len() as f32
        };
        let middle = |row: usize, column: usize| (11..21).contains(&row) && (11..21).contains(&column);
        let frame = |row: usize, column: usize| row.min(column) < 4 || row.max(column) >= side - 4;
        [0, 1, 2].map(|channel| mean(channel, &middle) - mean(channel, &frame))
    }

    #[test]
    fn robust_accuracy_means_something() {
        let epsilon = 8.0 / 255.0;
        let test = images(Part::Test, 500);
        // Margin of the true hue over hue `other`, with the middle and the frame moved against it by epsilon each.
        let margin = |feature: [f32; 3], hue: usize, other: usize, epsilon: f32| -> f32 {
            (0..3)
                .map(|channel| {
                    let direction = HUES[hue][channel] - HUES[other][channel];
                    direction * feature[channel] - 2.0 * epsilon * direction.abs()
                })
                .sum()
        };
        let accuracy = |epsilon: f32| {
            let right = (0..test.len()).filter(|&index| {
                let (feature, hue) = (middle_less_frame(test.image(index)), test.labels[index] as usize / 2);
                (0..HUES.len()).all(|other| other == hue || margin(feature, hue, other, epsilon) > 0.0)
            });
            right.count() as f64 / test.len() as f64
        };
        let (clean, robust) = (accuracy(0.0), accuracy(epsilon));
        println!("hue from colour: clean {clean}, robust {robust}, chance 0.2");
        assert!(clean > 0.9, "clean {clean}");
        assert!((0.4..0.8).contains(&robust), "robust {robust}");
    }
}
