//! Loops over numbers, compiled for every instruction set and both formats.

#![allow(clippy::needless_range_loop)] // indices stand for lanes

use super::numbers::Number;
use super::tiles::LANES;

/// A function `name(numbers, arguments)` from `fn name<E>(arguments)`, whose body is compiled for each instruction set and for numbers E
/// of each format. Products and sums are never fused, so every set has the same bits; what the body calls is inlined, or is slower.
macro_rules! vectorised {
    ($(#[$meta:meta])* $visible:vis fn $name:ident<$number:ident>($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $visible fn $name(numbers: $crate::cpu::Numbers, $($argument: $type),*) {
            use $crate::cpu::{isa::Level, numbers::{Format, Number}};

            #[inline(always)]
            fn body<$number: Number>($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
            fn avx512<$number: Number>($($argument: $type),*) {
                body::<$number>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2<$number: Number>($($argument: $type),*) {
                body::<$number>($($argument),*)
            }
            // SAFETY: the instruction set was found on this CPU.
            match (numbers.isa.level, numbers.format) {
                #[cfg(target_arch = "x86_64")]
                (Level::Avx512, Format::F32) => unsafe { avx512::<f32>($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                (Level::Avx512, Format::Bf16) => unsafe { avx512::<half::bf16>($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                (Level::Avx2, Format::F32) => unsafe { avx2::<f32>($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                (Level::Avx2, Format::Bf16) => unsafe { avx2::<half::bf16>($($argument),*) },
                (Level::Build, Format::F32) => body::<f32>($($argument),*),
                (Level::Build, Format::Bf16) => body::<half::bf16>($($argument),*),
            }
        }
    };
}

pub(super) use vectorised;

/// Sixteen numbers. A loop and no iterator: what is not inlined is not compiled for the instruction set.
#[inline(always)]
pub fn load<E: Number>(from: &[E], at: usize) -> [f32; LANES] {
    let from: &[E; LANES] = from[at..].first_chunk().expect("sixteen numbers");
    let mut values = [0.0; LANES];
    for i in 0..LANES {
        values[i] = from[i].get();
    }
    values
}

/// The numbers nearest to sixteen values.
#[inline(always)]
pub fn store<E: Number>(to: &mut [E], at: usize, values: &[f32; LANES]) {
    let to: &mut [E; LANES] = to[at..].first_chunk_mut().expect("sixteen numbers");
    for i in 0..LANES {
        to[i] = E::nearest(values[i]);
    }
}
