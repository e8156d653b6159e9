//! What activations, gradients and weights are made of: f32, or the bf16 numbers of the GPU, products of pairs of which the CPU adds in f32.
//!
//! Activations and gradients lie in memory as *words* of 32 bits: one f32, or two neighbouring bf16.

use super::isa::Isa;
use super::tiles::Products;

/// A number of an activation or a gradient.
pub trait Number: bytemuck::Pod + Send + Sync {
    fn get(self) -> f32;
    /// The nearest.
    fn nearest(x: f32) -> Self;
}

impl Number for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    fn nearest(x: f32) -> Self {
        x
    }
}

impl Number for half::bf16 {
    #[inline(always)]
    fn get(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn nearest(x: f32) -> Self {
        Self::from_bits((bf16(x).to_bits() >> 16) as u16)
    }
}

/// The numbers of an engine and the instructions that multiply them.
#[derive(Clone, Copy)]
pub struct Numbers {
    pub format: Format,
    pub isa: &'static Isa,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F32,
    Bf16,
}

impl Numbers {
    /// The loops over whole words.
    pub fn products(&self) -> &'static Products {
        match self.format {
            Format::F32 => &self.isa.singles,
            Format::Bf16 => &self.isa.pairs,
        }
    }
}

impl Format {
    /// Numbers of a word.
    pub fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
        }
    }

    /// The nearest number of this format.
    #[cfg(test)]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::Bf16 => bf16(x),
        }
    }
}

/// The nearest bf16, of two as near the even one, as [`half::bf16::from_f32`] has it, in a form that vectorises.
#[inline(always)]
pub fn bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) & 0xFFFF_0000;
    // A NaN may have its only bits where rounding drops them.
    let quiet = (bits | 0x0040_0000) & 0xFFFF_0000;
    f32::from_bits(if x.is_nan() { quiet } else { nearest })
}

/// Two bf16 numbers as a word, `first` first in memory.
#[inline(always)]
pub fn pair(first: f32, second: f32) -> f32 {
    f32::from_bits(second.to_bits() & 0xFFFF_0000 | first.to_bits() >> 16)
}

/// An f32 as the stem reads it: the nearest bf16 and the nearest to what that lacks.
#[inline(always)]
pub fn high_and_low(x: f32) -> f32 {
    let high = bf16(x);
    pair(high, bf16(x - high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_as_half_does() {
        // Every bf16, what lies next to it, and the ties between it and the next.
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let x = f32::from_bits(u32::from(upper) << 16 | lower);
                let (actual, expected) = (bf16(x), half::bf16::from_f32(x).to_f32());
                assert!(actual.to_bits() == expected.to_bits(), "{x:e}: {actual:e}, expected {expected:e}");
            }
        }
    }

    #[test]
    fn high_and_low_lose_next_to_nothing() {
        for i in 0..=255 {
            let x = i as f32 / 255.0;
            let word = high_and_low(x).to_bits();
            let sum = f32::from_bits(word << 16) + f32::from_bits(word & 0xFFFF_0000);
            assert!((sum - x).abs() <= x * 2f32.powi(-16), "{x}: {sum}");
        }
    }
}
