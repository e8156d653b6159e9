//! How many images an attack takes at a time, and how many of them the first stage of the network, so that what they touch stays
//! in the cache of the device.

use crate::model::ResNet;

/// The cache of a device that does not say.
const CACHE_BYTES: u64 = 40 << 20;

/// Fewer images leave most multiprocessors of a big GPU without a tile in the last stages.
const FEWEST_IMAGES: usize = 64;

/// On a Hopper a tile of the last stage is 16 images by 128 channels: these many make 128 tiles for 132 multiprocessors.
const HOPPER_IMAGES: usize = 512;

/// Images of an attack's micro-batch, before the limit that the engine was opened with: [`in_cache`].
///
/// Where wgmma serves the network its tiles are larger, and to fill the grid comes first: [`HOPPER_IMAGES`]. The first stage,
/// which moves the most bytes for its products, then takes them [`in_cache`] at a time. At 700 TFLOP/s a convolution of 512 images
/// takes 55 us in any stage; its bytes, with a residual, would take the first 48 (H200, 4.3 TB/s) to 68 us (H100, 3.0 TB/s), and
/// they take the second 24 to 34, the third and fourth less. Predicted, not measured: `secateur bench attack --first-stage 512`.
pub fn micro_batch(network: ResNet, cache: Option<u64>, has_wgmma: bool) -> usize {
    if has_wgmma && network.width.is_multiple_of(64) { HOPPER_IMAGES } else { in_cache(network, cache) }
}

/// Images whose activations stay in a cache of so many bytes (40 MiB where unknown): the power of two nearest to what fits, and
/// 64 at least, for less leaves multiprocessors idle.
///
/// With T the bytes of an activation of the widest stage (128 KiB at width 64), an image touches in every step
/// * three activations: a block's input, inner one and output, and on the way back their gradients in the same memory: 3 T;
/// * a mask bit an element of every ReLU; of 17, T/16 each in the widest stage and half of that in each of the next: 17/32 T;
/// * 40 bytes a pixel: hi and lo parts in eight bf16 channels, x and x' in three f32: 40 KiB.
///
/// At width 64 that is 492 KiB. Weights (21 MiB of bf16) are left out: each is read twice a step, which for 128 images is about
/// a fiftieth of the time even from memory.
pub fn in_cache(network: ResNet, cache: Option<u64>) -> usize {
    let convs = network.convs();
    let pixels = convs[0].in_side * convs[0].in_side;
    let widest = convs.iter().map(|conv| conv.output_len() * 2).max().unwrap_or(0);
    let masks: usize = network.layers().iter().map(|layer| convs[layer.conv].output_len() / 8).sum();
    let fits = cache.unwrap_or(CACHE_BYTES) as usize / (3 * widest + masks + 40 * pixels);
    let below = (fits + 1).next_power_of_two() / 2;
    let nearest = if fits * fits >= 2 * below * below { 2 * below } else { below };
    nearest.max(FEWEST_IMAGES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_micro_batch_fits_the_cache() {
        let network = |width| ResNet::resnet18(width, 10);
        // An H100 and an H200 name 50 MiB and 60 MB, an RTX 4090 72 MiB, an RTX 4060 24 MiB.
        for (width, cache, expected) in [
            (64, Some(50 << 20), 128),
            (64, Some(60_000_000), 128),
            (64, Some(72 << 20), 128),
            (64, Some(24 << 20), 64),
            (64, None, 64),
            (16, Some(50 << 20), 256),
            (16, None, 256),
            (64, Some(0), 64),
        ] {
            assert_eq!(in_cache(network(width), cache), expected, "width {width}, cache {cache:?}");
            assert_eq!(micro_batch(network(width), cache, false), expected, "width {width}, cache {cache:?}");
        }
        assert_eq!(micro_batch(network(64), Some(50 << 20), true), 512);
        assert_eq!(micro_batch(network(16), Some(50 << 20), true), 256);
    }
}
