//! The two orders of an image's values: plane by plane (CHW, as in files and in PyTorch) and pixel by pixel (HWC, as on a
//! device).

use rayon::prelude::*;

/// Values of a pixel.
const CHANNELS: usize = 3;
/// Values of an image of 32 x 32.
const IMAGE: usize = super::IMAGE_BYTES;

/// HWC to CHW, image by image.
pub fn to_planes<T: Copy + Send + Sync>(images: &[T]) -> Vec<T> {
    reordered(images, |at| at % (IMAGE / CHANNELS) * CHANNELS + at / (IMAGE / CHANNELS))
}

/// CHW to HWC, image by image.
pub fn to_pixels<T: Copy + Send + Sync>(images: &[T]) -> Vec<T> {
    reordered(images, |at| at % CHANNELS * (IMAGE / CHANNELS) + at / CHANNELS)
}

/// Images whose value at position p is that at `from(p)` of the original.
fn reordered<T: Copy + Send + Sync>(images: &[T], from: impl Fn(usize) -> usize + Sync) -> Vec<T> {
    let mut reordered = images.to_vec();
    let images = images.par_chunks_exact(IMAGE);
    reordered.par_chunks_exact_mut(IMAGE).zip(images).for_each(|(to, image)| {
        for (at, value) in to.iter_mut().enumerate() {
            *value = image[from(at)];
        }
    });
    reordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_inverse_and_put_channels_where_they_belong() {
        let planes: Vec<f32> = (0..2 * IMAGE).map(|i| i as f32).collect();
        let images = to_pixels(&planes);
        // Pixel (0, 1) of image 0: the second value of each plane.
        assert_eq!(images[3..6], [1.0, 1025.0, 2049.0]);
        assert_eq!(to_planes(&images), planes);
    }
}
