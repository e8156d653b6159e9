//! From the resident u8 images to a batch of f32 images: gather, crop and flip.
//!
//! The augmentation is drawn from Philox as documented at [`Augment`]. Checked against that text by
//! `tests/reference_engine.rs`; called by the engine.

use rayon::prelude::*;

use crate::engine::{Augment, Padding};
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use crate::philox::{Key, Purpose};

/// Writes the image of each sample, planar u8 to interleaved f32 in [0, 1].
pub fn gather(images: &[u8], samples: &[u32], augment: Option<Augment>, out: &mut [f32]) {
    out.par_chunks_exact_mut(IMAGE_LEN).zip(samples).for_each(|(out, &sample)| {
        let image = &images[sample as usize * IMAGE_LEN..][..IMAGE_LEN];
        let (row, column, flip) = augment.map_or((4, 4, false), |augment| crop(augment, sample));
        let padding = augment.map_or(Padding::Zero, |augment| augment.padding);
        for (h, line) in out.chunks_exact_mut(IMAGE_SIDE * 3).enumerate() {
            for (w, pixel) in line.chunks_exact_mut(3).enumerate() {
                let w = if flip { IMAGE_SIDE - 1 - w } else { w };
                let source = source(padding, h + row).zip(source(padding, w + column));
                for (c, value) in pixel.iter_mut().enumerate() {
                    *value = source.map_or(0.0, |(y, x)| {
                        f32::from(image[(c * IMAGE_SIDE + y) * IMAGE_SIDE + x]) / 255.0
                    });
                }
            }
        }
    });
}

/// The row (or column) of the image that lies at `padded` of the image padded by four; `None` for black.
fn source(padding: Padding, padded: usize) -> Option<usize> {
    let (first, last) = (4, 3 + IMAGE_SIDE);
    match padding {
        _ if (first..=last).contains(&padded) => Some(padded - first),
        Padding::Zero => None,
        Padding::Reflect if padded < first => Some(first - padded),
        Padding::Reflect => Some(2 * last - padded - first),
    }
}

/// Row offset, column offset and flip of a sample.
fn crop(augment: Augment, sample: u32) -> (usize, usize, bool) {
    let key = Key { seed: augment.seed, purpose: Purpose::Augment, epoch: augment.epoch, step: 0 };
    let words = key.block(sample, 0);
    ((words[0] % 9) as usize, (words[1] % 9) as usize, words[2] & 1 == 1)
}
