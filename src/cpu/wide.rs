//! Eight lanes of f64, in however many registers an instruction set needs for them: what [`Doubles`](super::doubles::Doubles) is written over.

/// Eight f64.
///
/// # Safety
/// Of every method: the CPU has the instructions that the type is named for, and pointers are valid for eight numbers.
pub trait Wide: Copy {
    unsafe fn splat(value: f64) -> Self;
    unsafe fn load(from: *const f64) -> Self;
    /// Eight f32, exactly.
    unsafe fn widen(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f64);
    /// `self + a * b`, rounded once where the CPU has that.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// The same of one lane: a number at the end of a slice is rounded as the others are.
    #[inline(always)]
    fn one(sum: f64, a: f64, b: f64) -> f64 {
        a.mul_add(b, sum)
    }
}

/// A number that f64 holds exactly.
pub trait Number: Copy {
    fn get(self) -> f64;
    /// # Safety
    /// As of [`Wide`].
    unsafe fn load<V: Wide>(from: *const Self) -> V;
}

impl Number for f32 {
    #[inline(always)]
    fn get(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    unsafe fn load<V: Wide>(from: *const Self) -> V {
        // SAFETY: the caller's.
        unsafe { V::widen(from) }
    }
}

impl Number for f64 {
    #[inline(always)]
    fn get(self) -> f64 {
        self
    }
    #[inline(always)]
    unsafe fn load<V: Wide>(from: *const Self) -> V {
        // SAFETY: the caller's.
        unsafe { V::load(from) }
    }
}

/// Plain Rust, for any CPU without vectors of its own here: a product is rounded before it is added.
#[cfg(not(target_arch = "aarch64"))]
#[derive(Clone, Copy)]
pub struct Portable([f64; 8]);

#[cfg(not(target_arch = "aarch64"))]
impl Wide for Portable {
    #[inline(always)]
    unsafe fn splat(value: f64) -> Self {
        Self([value; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f64) -> Self {
        // SAFETY: valid for eight f64.
        Self(unsafe { from.cast::<[f64; 8]>().read() })
    }
    #[inline(always)]
    unsafe fn widen(from: *const f32) -> Self {
        // SAFETY: valid for eight f32.
        Self(unsafe { from.cast::<[f32; 8]>().read() }.map(f64::from))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f64) {
        // SAFETY: valid for eight f64.
        unsafe { to.cast::<[f64; 8]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| Self::one(self.0[i], a.0[i], b.0[i])))
    }
    #[inline(always)]
    fn one(sum: f64, a: f64, b: f64) -> f64 {
        sum + a * b
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Wide;

    /// AVX-512: one register.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512d);

    // SAFETY of every block below: the trait's contract is what each instruction asks for.
    impl Wide for Avx512 {
        #[inline(always)]
        unsafe fn splat(value: f64) -> Self {
            unsafe { Self(_mm512_set1_pd(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f64) -> Self {
            unsafe { Self(_mm512_loadu_pd(from)) }
        }
        #[inline(always)]
        unsafe fn widen(from: *const f32) -> Self {
            unsafe { Self(_mm512_cvtps_pd(_mm256_loadu_ps(from))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f64) {
            unsafe { _mm512_storeu_pd(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm512_fmadd_pd(a.0, b.0, self.0)) }
        }
    }

    /// AVX2 with FMA: two registers.
    #[derive(Clone, Copy)]
    pub struct Avx2([__m256d; 2]);

    impl Wide for Avx2 {
        #[inline(always)]
        unsafe fn splat(value: f64) -> Self {
            unsafe { Self([_mm256_set1_pd(value); 2]) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f64) -> Self {
            unsafe { Self([_mm256_loadu_pd(from), _mm256_loadu_pd(from.add(4))]) }
        }
        #[inline(always)]
        unsafe fn widen(from: *const f32) -> Self {
            let half = |i: usize| unsafe { _mm256_cvtps_pd(_mm_loadu_ps(from.add(4 * i))) };
            Self([half(0), half(1)])
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f64) {
            unsafe {
                _mm256_storeu_pd(to, self.0[0]);
                _mm256_storeu_pd(to.add(4), self.0[1]);
            }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            let half = |i: usize| unsafe { _mm256_fmadd_pd(a.0[i], b.0[i], self.0[i]) };
            Self([half(0), half(1)])
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::Wide;

    /// NEON: four registers.
    #[derive(Clone, Copy)]
    pub struct Neon([float64x2_t; 4]);

    // SAFETY of every block below: every aarch64 has NEON, and pointers are valid by the trait's contract.
    impl Wide for Neon {
        #[inline(always)]
        unsafe fn splat(value: f64) -> Self {
            unsafe { Self([vdupq_n_f64(value); 4]) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f64) -> Self {
            Self(std::array::from_fn(|i| unsafe { vld1q_f64(from.add(2 * i)) }))
        }
        #[inline(always)]
        unsafe fn widen(from: *const f32) -> Self {
            Self(std::array::from_fn(|i| unsafe { vcvt_f64_f32(vld1_f32(from.add(2 * i))) }))
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f64) {
            for (i, lanes) in self.0.into_iter().enumerate() {
                unsafe { vst1q_f64(to.add(2 * i), lanes) }
            }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            Self(std::array::from_fn(|i| unsafe { vfmaq_f64(self.0[i], a.0[i], b.0[i]) }))
        }
    }
}
