//! From the resident u8 images to a batch of f32 images: gather, crop and flip.
//!
//! The augmentation is drawn from Philox as documented at [`Augment`]. Checked against that text by
//! `tests/reference_engine.rs`; called by the engine.

use rayon::prelude::*;

use crate::engine::Augment;
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use crate::philox::{Key, Purpose};

/// Writes the image of each sample, planar u8 to interleaved f32 in [0, 1].
pub fn gather(images: &[u8], samples: &[u32], augment: Option<Augment>, out: &mut [f32]) {
    out.par_chunks_exact_mut(IMAGE_LEN).zip(samples).for_each(|(out, &sample)| {
        let image = &images[sample as usize * IMAGE_LEN..][..IMAGE_LEN];
        let (row, column, flip) = augment.map_or((4, 4, false), |augment| crop(augment, sample));
        for (h, line) in out.chunks_exact_mut(IMAGE_SIDE * 3).enumerate() {
            for (w, pixel) in line.chunks_exact_mut(3).enumerate() {
                let w = if flip { IMAGE_SIDE - 1 - w } else { w };
                // Positions in the image padded by four; below 4 and from 36 on lies the padding.
                let (y, x) = (h + row, w + column);
                let inside = (4..4 + IMAGE_SIDE).contains(&y) && (4..4 + IMAGE_SIDE).contains(&x);
                for (c, value) in pixel.iter_mut().enumerate() {
                    *value = if inside {
                        f32::from(image[(c * IMAGE_SIDE + y - 4) * IMAGE_SIDE + x - 4]) / 255.0
                    } else {
                        0.0
                    };
                }
            }
        }
    });
}

/// Row offset, column offset and flip of a sample.
fn crop(augment: Augment, sample: u32) -> (usize, usize, bool) {
    let key = Key { seed: augment.seed, purpose: Purpose::Augment, epoch: augment.epoch, step: 0 };
    let words = key.block(sample, 0);
    ((words[0] % 9) as usize, (words[1] % 9) as usize, words[2] & 1 == 1)
}
