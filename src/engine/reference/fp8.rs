//! Rounding to e4m3, as a tensor core would be fed: the experiment of [`crate::engine::Precision`] in the attack.
//!
//! e4m3 is the OCP's 8-bit format without infinities ("OCP 8-bit floating point specification", 2023): four bits of exponent, three
//! of mantissa, 448 at most, subnormals of 2^-9. A slice is scaled so that its largest magnitude becomes 448, rounded to nearest even,
//! and scaled back. Checked here and by `tests/attack_precision.rs`; called by `eval.rs` and `conv.rs`.

use rayon::prelude::*;

use super::conv::PackedConv;
use super::memory::Aligned;

/// The largest number of e4m3.
const LARGEST: f32 = 448.0;
/// The exponent of its smallest normal number.
const LEAST_EXPONENT: i32 = -6;

/// The nearest number of e4m3; of two as near, the even one. NaN stays, what is beyond the largest becomes it.
pub fn e4m3(x: f32) -> f32 {
    let x = x.clamp(-LARGEST, LARGEST);
    let exponent = (x.to_bits() >> 23 & 0xFF) as i32 - 127;
    // Beside 1.5 * 2^23 steps, of 2^-3 of the leading bit each, an f32 has room for whole steps alone: the sum rounds.
    let shift = f32::from_bits(((exponent.max(LEAST_EXPONENT) - 3 + 23 + 127) as u32) << 23 | 1 << 22);
    (x + shift) - shift
}

/// What a kernel would make of values with a scale of their own.
#[derive(Clone, Copy)]
pub struct Scale(f32);

impl Scale {
    /// The best one for values up to this magnitude.
    pub fn of(largest: f32) -> Self {
        Self(if largest > 0.0 { LARGEST / largest } else { 1.0 })
    }

    pub fn round(self, x: f32) -> f32 {
        e4m3(x * self.0) / self.0
    }
}

/// The largest magnitude; a NaN is none.
pub fn largest<'a>(values: impl IntoIterator<Item = &'a f32>) -> f32 {
    values.into_iter().fold(0.0, |largest: f32, value| largest.max(value.abs()))
}

/// The rounded operands of an attack's convolutions.
pub struct Rounding {
    convs: Vec<PackedConv>,
    pixels: Aligned,
}

impl Rounding {
    /// Of these convolutions, but for the stem, which stays as it is.
    pub fn new(convs: &[PackedConv]) -> Self {
        Self { convs: convs.iter().map(PackedConv::rounded).collect(), pixels: Aligned::default() }
    }

    /// The convolutions, and activations or gradients as one of them sees these: each image with a scale of its own, so that
    /// what becomes of it does not depend on those beside it.
    pub fn pixels(&mut self, x: &[f32], image_len: usize) -> (&[PackedConv], &[f32]) {
        self.pixels.reserve(x.len());
        let rounded = &mut self.pixels[..x.len()];
        let images = rounded.par_chunks_mut(image_len).zip(x.par_chunks(image_len));
        images.for_each(|(rounded, x)| {
            let scale = Scale::of(largest(x));
            rounded.iter_mut().zip(x).for_each(|(rounded, x)| *rounded = scale.round(*x));
        });
        (&self.convs, rounded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number of e4m3 that is not negative, in order.
    fn numbers() -> Vec<f32> {
        let number = |code: u32| {
            let (exponent, mantissa) = ((code >> 3) as i32, (code & 7) as f32);
            match exponent {
                0 => mantissa * 2f32.powi(-9),
                _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
            }
        };
        // The last code is NaN.
        (0..127).map(number).collect()
    }

    #[test]
    fn every_number_is_kept_and_what_lies_between_goes_to_the_nearest() {
        let numbers = numbers();
        assert_eq!((numbers[1], numbers[126]), (0.001953125, LARGEST));
        for (code, pair) in numbers.windows(2).enumerate() {
            let [low, high] = [pair[0], pair[1]];
            let middle = (low + high) / 2.0;
            let even = if code % 2 == 0 { low } else { high };
            for (x, wanted) in [
                (low, low),
                (high, high),
                (middle, even),
                (middle.next_down(), low),
                (middle.next_up(), high),
            ] {
                assert_eq!(e4m3(x), wanted, "{x}");
                assert_eq!(e4m3(-x), -wanted, "{}", -x);
            }
        }
        assert_eq!((e4m3(449.0), e4m3(-f32::INFINITY), e4m3(1e-30)), (LARGEST, -LARGEST, 0.0));
        assert!(e4m3(f32::NAN).is_nan());
    }

    #[test]
    fn a_scale_brings_the_largest_to_the_end_of_the_range() {
        let values = [0.0, -3.0, 0.7, 1e-5];
        let scale = Scale::of(largest(&values));
        assert_eq!((largest(&values), scale.round(-3.0)), (3.0, -3.0));
        for value in values {
            // Half a step of three bits, or of the smallest numbers.
            let bound = (value.abs() / 16.0).max(3.0 / LARGEST / 1024.0) * 1.0001;
            assert!((scale.round(value) - value).abs() <= bound, "{value} became {}", scale.round(value));
        }
        assert_eq!(Scale::of(0.0).round(0.0), 0.0);
    }
}
