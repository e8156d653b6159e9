//! Sixteen lanes of 32 bits, in however many registers an instruction set needs for them: what convolutions are written over.
//!
//! As every instruction set has the same lanes, weights are packed alike for all of them and a sum adds its products in one order.
//! An operand's lane is a *word*: one f32, or two neighbouring bf16 whose products go to one f32 sum.

/// Sixteen 32-bit lanes: f32 sums, or words of operands.
///
/// # Safety
/// Of every method: the CPU has the instructions that the type is named for, and pointers are valid for sixteen f32 (`splat`: one).
pub trait Vector: Copy {
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// The word at `from` in every lane.
    unsafe fn splat(from: *const f32) -> Self;
    /// `self + word * weights` of f32.
    unsafe fn add_product(self, word: Self, weights: Self) -> Self;
    /// The first bf16 of each pair, as f32.
    unsafe fn first(self) -> Self;
    /// The second bf16 of each pair, as f32.
    unsafe fn second(self) -> Self;

    /// `self + word . weights` of pairs of bf16.
    #[inline(always)]
    unsafe fn add_pairs(self, word: Self, weights: Self) -> Self {
        // SAFETY: as for this method.
        unsafe {
            self.add_product(word.second(), weights.second()).add_product(word.first(), weights.first())
        }
    }
}

/// What the words of a product are.
pub trait Words {
    /// Numbers of a word.
    const PER_WORD: usize;

    /// `sum + word * weights`.
    ///
    /// # Safety
    /// The CPU has the vector's instructions.
    unsafe fn add<V: Vector>(sum: V, word: V, weights: V) -> V;
}

/// A word is one f32.
pub struct Singles;

/// A word is two bf16.
pub struct Pairs;

impl Words for Singles {
    const PER_WORD: usize = 1;

    #[inline(always)]
    unsafe fn add<V: Vector>(sum: V, word: V, weights: V) -> V {
        // SAFETY: the caller's.
        unsafe { sum.add_product(word, weights) }
    }
}

impl Words for Pairs {
    const PER_WORD: usize = 2;

    #[inline(always)]
    unsafe fn add<V: Vector>(sum: V, word: V, weights: V) -> V {
        // SAFETY: the caller's.
        unsafe { sum.add_pairs(word, weights) }
    }
}

/// Plain Rust, for any CPU: a product is rounded before it is added.
#[derive(Clone, Copy)]
pub struct Portable([f32; 16]);

impl Portable {
    #[inline(always)]
    fn bits(self, f: impl Fn(u32) -> u32) -> Self {
        Self(self.0.map(|lane| f32::from_bits(f(lane.to_bits()))))
    }
}

impl Vector for Portable {
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 16])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: valid for sixteen f32.
        Self(unsafe { from.cast::<[f32; 16]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: valid for sixteen f32.
        unsafe { to.cast::<[f32; 16]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: valid for one f32.
        Self([unsafe { *from }; 16])
    }
    #[inline(always)]
    unsafe fn add_product(self, word: Self, weights: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + word.0[i] * weights.0[i]))
    }
    #[inline(always)]
    unsafe fn first(self) -> Self {
        self.bits(|pair| pair << 16)
    }
    #[inline(always)]
    unsafe fn second(self) -> Self {
        self.bits(|pair| pair & 0xFFFF_0000)
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512, Avx512Bf16};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Vector;

    /// AVX2 with FMA: two registers.
    #[derive(Clone, Copy)]
    pub struct Avx2([__m256; 2]);

    impl Avx2 {
        #[inline(always)]
        fn map(self, f: impl Fn(__m256) -> __m256) -> Self {
            Self([f(self.0[0]), f(self.0[1])])
        }
    }

    // SAFETY of every block below: the trait's contract is what each instruction asks for.
    impl Vector for Avx2 {
        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Self([_mm256_setzero_ps(); 2]) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self([_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                _mm256_storeu_ps(to, self.0[0]);
                _mm256_storeu_ps(to.add(8), self.0[1]);
            }
        }
        #[inline(always)]
        unsafe fn splat(from: *const f32) -> Self {
            unsafe { Self([_mm256_broadcast_ss(&*from); 2]) }
        }
        #[inline(always)]
        unsafe fn add_product(self, word: Self, weights: Self) -> Self {
            let half = |i: usize| unsafe { _mm256_fmadd_ps(word.0[i], weights.0[i], self.0[i]) };
            Self([half(0), half(1)])
        }
        #[inline(always)]
        unsafe fn first(self) -> Self {
            self.map(|pairs| unsafe {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(pairs)))
            })
        }
        #[inline(always)]
        unsafe fn second(self) -> Self {
            let upper = unsafe { _mm256_castsi256_ps(_mm256_set1_epi32(0xFFFF_0000u32 as i32)) };
            self.map(|pairs| unsafe { _mm256_and_ps(pairs, upper) })
        }
    }

    /// AVX-512: one register.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    impl Vector for Avx512 {
        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Self(_mm512_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm512_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn splat(from: *const f32) -> Self {
            unsafe { Self(_mm512_set1_ps(*from)) }
        }
        #[inline(always)]
        unsafe fn add_product(self, word: Self, weights: Self) -> Self {
            unsafe { Self(_mm512_fmadd_ps(word.0, weights.0, self.0)) }
        }
        #[inline(always)]
        unsafe fn first(self) -> Self {
            unsafe { Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(self.0)))) }
        }
        #[inline(always)]
        unsafe fn second(self) -> Self {
            unsafe {
                let upper = _mm512_set1_epi32(0xFFFF_0000u32 as i32);
                Self(_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(self.0), upper)))
            }
        }
    }

    /// AVX-512 with products of bf16.
    #[derive(Clone, Copy)]
    pub struct Avx512Bf16(Avx512);

    impl Vector for Avx512Bf16 {
        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Self(Avx512::zero()) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(Avx512::load(from)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { self.0.store(to) }
        }
        #[inline(always)]
        unsafe fn splat(from: *const f32) -> Self {
            unsafe { Self(Avx512::splat(from)) }
        }
        #[inline(always)]
        unsafe fn add_product(self, word: Self, weights: Self) -> Self {
            unsafe { Self(self.0.add_product(word.0, weights.0)) }
        }
        #[inline(always)]
        unsafe fn first(self) -> Self {
            unsafe { Self(self.0.first()) }
        }
        #[inline(always)]
        unsafe fn second(self) -> Self {
            unsafe { Self(self.0.second()) }
        }
        /// One instruction, which takes the word straight from memory only as its last operand. It flushes subnormal numbers.
        #[inline(always)]
        unsafe fn add_pairs(self, word: Self, weights: Self) -> Self {
            let pairs = |lanes: Avx512| unsafe { std::mem::transmute::<__m512, __m512bh>(lanes.0) };
            unsafe { Self(Avx512(_mm512_dpbf16_ps(self.0.0, pairs(weights.0), pairs(word.0)))) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::Vector;

    /// NEON: four registers.
    #[derive(Clone, Copy)]
    pub struct Neon([float32x4_t; 4]);

    impl Neon {
        #[inline(always)]
        fn bits(self, f: impl Fn(uint32x4_t) -> uint32x4_t) -> Self {
            Self(self.0.map(|lanes| unsafe { vreinterpretq_f32_u32(f(vreinterpretq_u32_f32(lanes))) }))
        }
    }

    // SAFETY of every block below: every aarch64 has NEON, and pointers are valid by the trait's contract.
    impl Vector for Neon {
        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Self([vdupq_n_f32(0.0); 4]) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Self(std::array::from_fn(|i| unsafe { vld1q_f32(from.add(4 * i)) }))
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            for (i, lanes) in self.0.into_iter().enumerate() {
                unsafe { vst1q_f32(to.add(4 * i), lanes) }
            }
        }
        #[inline(always)]
        unsafe fn splat(from: *const f32) -> Self {
            unsafe { Self([vld1q_dup_f32(from); 4]) }
        }
        #[inline(always)]
        unsafe fn add_product(self, word: Self, weights: Self) -> Self {
            Self(std::array::from_fn(|i| unsafe { vfmaq_f32(self.0[i], word.0[i], weights.0[i]) }))
        }
        #[inline(always)]
        unsafe fn first(self) -> Self {
            self.bits(|pairs| unsafe { vshlq_n_u32::<16>(pairs) })
        }
        #[inline(always)]
        unsafe fn second(self) -> Self {
            self.bits(|pairs| unsafe { vandq_u32(pairs, vdupq_n_u32(0xFFFF_0000)) })
        }
    }
}
