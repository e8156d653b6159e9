//! The two inner loops of every convolution, over a vector type or AMX: sums for a tile of pixels, and sums over pixels.
//!
//! [`Products`] holds both for one instruction set and one kind of words. Sums stay in registers over all products; each adds them in the
//! order of its runs.

// Indices stand for registers: every loop over them unrolls.
#![allow(clippy::needless_range_loop)]

#[cfg(target_arch = "x86_64")]
use super::amx;
#[cfg(target_arch = "aarch64")]
use super::vector::Neon;
#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512, Avx512Bf16};
use super::vector::{Pairs, Portable, Singles, Vector, Words};

/// Lanes of a vector: output channels that are summed at once.
pub const LANES: usize = 16;

/// Neighbouring words of an input, and where the weights lie that they meet.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// First word, from where the pixel's own input begins.
    pub input: usize,
    /// The first of `words` rows of weights.
    pub row: usize,
    pub words: usize,
}

/// An output pixel, or the first of a row of them: where its input begins and where its sums go, in words.
#[derive(Clone, Copy, Debug)]
pub struct Pixel {
    pub input: usize,
    pub output: usize,
}

/// Operands that tiles of AMX multiply: from where their input and their weights begin, in bytes.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
#[repr(C)]
pub struct Step {
    pub input: usize,
    pub weights: usize,
}

/// Output pixels that see the same taps.
#[derive(Clone, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub struct Phase {
    runs: Vec<Run>,
    /// Each the first of `rows` evenly spaced ones.
    pub pixels: Vec<Pixel>,
    pub rows: usize,
    /// Words between two of a row, and between their sums.
    pub input_step: usize,
    pub output_step: usize,
    /// Words of a step: of neighbours that are multiplied at once.
    pub words: usize,
    pub steps: Vec<Step>,
    /// Words of input from the first pixel's on that all taps reach, words of sums, and of weights.
    reach: (usize, usize, usize),
}

impl Phase {
    /// For blocks of `block` output channels.
    pub fn new(
        runs: Vec<Run>,
        pixels: Vec<Pixel>,
        rows: usize,
        (input_step, output_step): (usize, usize),
        block: usize,
    ) -> Self {
        // The same of every run.
        let divides = |words: &usize| runs.iter().all(|run| run.words.is_multiple_of(*words));
        let words = (1..=LANES).rev().find(divides).expect("one divides all");
        let step = |run: &Run, at: usize| Step {
            input: size_of::<f32>() * (run.input + at),
            weights: size_of::<f32>() * (run.row + at) * block,
        };
        let steps =
            runs.iter().flat_map(|run| (0..run.words).step_by(words).map(move |at| step(run, at))).collect();
        let largest = |of: fn(&Pixel) -> usize| pixels.iter().map(of).max().unwrap_or(0);
        let taps = runs.iter().map(|run| run.input + run.words).max().unwrap_or(0);
        let weights = runs.iter().map(|run| run.row + run.words).max().unwrap_or(0) * block;
        let last = rows - 1;
        let reach = (
            largest(|pixel| pixel.input) + last * input_step + taps,
            largest(|pixel| pixel.output) + last * output_step + block,
            weights,
        );
        Self { runs, pixels, rows, input_step, output_step, words, steps, reach }
    }
}

/// `tile(input, phase, weights, sums)`.
type Tile = unsafe fn(*const f32, &Phase, *const f32, *mut f32);

/// `outer(input, pixels, gradient, rows, sums, words between two rows of sums)`.
type Outer = unsafe fn(*const f32, &[Pixel], *const f32, usize, *mut f32, usize);

/// `registers(rounds)`: what a tile's sums are after N products each that touch no memory.
type Registers = unsafe fn(usize) -> f32;

/// The loops of one instruction set for one kind of words, each for blocks of one vector and of two.
pub struct Products {
    registers: Registers,
    /// Products a round of `registers`.
    products: usize,
    tile: [Tile; 2],
    /// `None` where sums over pixels are tiles of AMX, too.
    outer: Option<[Outer; 2]>,
    /// Whether registers suffice for blocks of two vectors.
    wide: bool,
    /// Evenly spaced pixels that a tile takes at once; it may also take others, whose sums nobody reads.
    pub rows: usize,
}

impl Products {
    /// Output channels of `channels` that are summed together: what weights are packed in blocks of.
    pub fn block(&self, channels: usize) -> usize {
        if self.wide && channels.is_multiple_of(2 * LANES) { 2 * LANES } else { LANES }
    }

    /// Whether [`Products::outer`] is there; else [`amx::Outer`].
    pub fn has_outer(&self) -> bool {
        self.outer.is_some()
    }

    /// `sums[pixel][..block] = sum over runs of words times rows of weights`.
    ///
    /// `weights` are rows of `block` words. Panics where a run or a pixel lies outside of a slice.
    pub fn tile(&self, block: usize, input: &[f32], phase: &Phase, weights: &[f32], sums: &mut [f32]) {
        let (reach, most, held) = phase.reach;
        assert!(reach <= input.len(), "a patch ends at word {reach} of {}", input.len());
        assert!(most <= sums.len(), "{most} sums, memory for {}", sums.len());
        assert!(held <= weights.len(), "{held} of {} weights", weights.len());
        // SAFETY: every word read and written lies in its slice, as just checked; `Isa::present` found the instructions.
        unsafe {
            self.tile[block / LANES - 1](input.as_ptr(), phase, weights.as_ptr(), sums.as_mut_ptr());
        }
    }

    /// `sums[row][..block] += sum over pixels of input[pixel + row] * gradient[pixel][..block]`; rows of sums are `stride` apart.
    ///
    /// Panics where a pixel or a row lies outside of a slice.
    #[allow(clippy::too_many_arguments)]
    pub fn outer(
        &self,
        block: usize,
        input: &[f32],
        pixels: &[Pixel],
        gradient: &[f32],
        rows: usize,
        sums: &mut [f32],
        stride: usize,
    ) {
        let largest = |of: fn(&Pixel) -> usize| pixels.iter().map(of).max().unwrap_or(0);
        assert!(largest(|pixel| pixel.input) + rows <= input.len(), "a patch reaches over the input");
        assert!(largest(|pixel| pixel.output) + block <= gradient.len(), "a pixel lies after the gradient");
        assert!(rows > 0 && (rows - 1) * stride + block <= sums.len(), "{rows} rows of {} sums", sums.len());
        // SAFETY: as in `tile`.
        unsafe {
            let (input, gradient) = (input.as_ptr(), gradient.as_ptr());
            let outer = self.outer.expect("sums over pixels by vectors");
            outer[block / LANES - 1](input, pixels, gradient, rows, sums.as_mut_ptr(), stride);
        }
    }
}

impl Products {
    /// The rate that no convolution exceeds: runs as many rounds of products between registers, and says how many multiply-adds.
    pub fn peak(&self, rounds: usize) -> u64 {
        // SAFETY: `Isa::present` found the instructions.
        std::hint::black_box(unsafe { (self.registers)(rounds) });
        (rounds * self.products) as u64
    }
}

#[inline(always)]
unsafe fn tile<V: Vector, W: Words, const P: usize, const N: usize>(
    x: *const f32,
    runs: &[Run],
    weights: *const f32,
    pixels: &[Pixel; P],
    out: *mut f32,
) {
    // SAFETY: the caller's pointers reach every word of the runs and pixels.
    unsafe {
        let place = |p: usize, n: usize| out.add(pixels[p].output + n * LANES);
        let mut sums = [[V::zero(); N]; P];
        for run in runs {
            let x: [*const f32; P] = std::array::from_fn(|p| x.add(pixels[p].input + run.input));
            let weights = weights.add(run.row * N * LANES);
            for word in 0..run.words {
                let row: [V; N] = std::array::from_fn(|n| V::load(weights.add((word * N + n) * LANES)));
                for p in 0..P {
                    let x = V::splat(x[p].add(word));
                    for n in 0..N {
                        sums[p][n] = W::add(sums[p][n], x, row[n]);
                    }
                }
            }
        }
        for p in 0..P {
            for n in 0..N {
                sums[p][n].store(place(p, n));
            }
        }
    }
}

#[inline(always)]
unsafe fn tiles<V: Vector, W: Words, const P: usize, const N: usize>(
    x: *const f32,
    phase: &Phase,
    weights: *const f32,
    out: *mut f32,
) {
    let (whole, rest) = phase.pixels.as_chunks::<P>();
    // SAFETY: the caller's.
    unsafe {
        for pixels in whole {
            tile::<V, W, P, N>(x, &phase.runs, weights, pixels, out);
        }
        for &pixel in rest {
            tile::<V, W, 1, N>(x, &phase.runs, weights, &[pixel], out);
        }
    }
}

#[inline(always)]
unsafe fn outer_rows<V: Vector, W: Words, const P: usize, const N: usize>(
    x: *const f32,
    pixels: &[Pixel],
    gradient: *const f32,
    sums: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's pointers reach every pixel and row.
    unsafe {
        let place = |p: usize, n: usize| sums.add(p * stride + n * LANES);
        let mut held: [[V; N]; P] = std::array::from_fn(|p| std::array::from_fn(|n| V::load(place(p, n))));
        for pixel in pixels {
            let (x, gradient) = (x.add(pixel.input), gradient.add(pixel.output));
            let row: [V; N] = std::array::from_fn(|n| V::load(gradient.add(n * LANES)));
            for p in 0..P {
                let x = V::splat(x.add(p));
                for n in 0..N {
                    held[p][n] = W::add(held[p][n], x, row[n]);
                }
            }
        }
        for p in 0..P {
            for n in 0..N {
                held[p][n].store(place(p, n));
            }
        }
    }
}

#[inline(always)]
unsafe fn outer<V: Vector, W: Words, const P: usize, const N: usize>(
    x: *const f32,
    pixels: &[Pixel],
    gradient: *const f32,
    rows: usize,
    sums: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let whole = rows / P * P;
        for row in (0..whole).step_by(P) {
            outer_rows::<V, W, P, N>(x.add(row), pixels, gradient, sums.add(row * stride), stride);
        }
        for row in whole..rows {
            outer_rows::<V, W, 1, N>(x.add(row), pixels, gradient, sums.add(row * stride), stride);
        }
    }
}

#[inline(always)]
unsafe fn registers<V: Vector, W: Words, const P: usize>(rounds: usize) -> f32 {
    let ones = std::hint::black_box([1.0f32; LANES]);
    // SAFETY: the caller has the instructions; the pointers are to sixteen f32.
    unsafe {
        let (word, weights) = (V::load(ones.as_ptr()), V::load(ones.as_ptr()));
        let mut sums = [V::zero(); P];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = W::add(*sum, word, weights);
            }
        }
        let mut out = [0.0f32; LANES];
        sums.iter().for_each(|sum| sum.store(std::hint::black_box(out.as_mut_ptr())));
        out[0]
    }
}

/// [`Products`] of an instruction set: the loops in functions that may use its instructions.
macro_rules! products {
    ($vector:ty, $words:ty, [$($features:literal)?], pixels: $pixels:literal, wide: $wide:literal) => {{
        $(#[target_feature(enable = $features)])?
        unsafe fn tile_of<const N: usize>(
            input: *const f32,
            phase: &Phase,
            weights: *const f32,
            output: *mut f32,
        ) {
            // SAFETY: the caller's.
            unsafe { tiles::<$vector, $words, $pixels, N>(input, phase, weights, output) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn outer_of<const N: usize>(
            input: *const f32,
            pixels: &[Pixel],
            gradient: *const f32,
            rows: usize,
            sums: *mut f32,
            stride: usize,
        ) {
            // SAFETY: the caller's.
            unsafe { outer::<$vector, $words, $pixels, N>(input, pixels, gradient, rows, sums, stride) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn registers_of(rounds: usize) -> f32 {
            // SAFETY: the caller's.
            unsafe { registers::<$vector, $words, { $pixels * (1 + $wide as usize) }>(rounds) }
        }
        Products {
            registers: registers_of,
            products: $pixels * (1 + $wide as usize) * LANES * <$words>::PER_WORD,
            tile: [tile_of::<1>, tile_of::<2>],
            outer: Some([outer_of::<1>, outer_of::<2>]),
            wide: $wide,
            rows: 1,
        }
    }};
}

#[cfg(target_arch = "x86_64")]
pub const AVX512_SINGLES: Products = products!(Avx512, Singles, ["avx512f"], pixels: 8, wide: true);
#[cfg(target_arch = "x86_64")]
pub const AVX512_PAIRS: Products = products!(Avx512, Pairs, ["avx512f"], pixels: 8, wide: true);
#[cfg(target_arch = "x86_64")]
pub const AVX512_BF16_PAIRS: Products =
    products!(Avx512Bf16, Pairs, ["avx512f,avx512bf16"], pixels: 8, wide: true);
#[cfg(target_arch = "x86_64")]
pub const AVX2_SINGLES: Products = products!(Avx2, Singles, ["avx2,fma"], pixels: 4, wide: false);
#[cfg(target_arch = "x86_64")]
pub const AVX2_PAIRS: Products = products!(Avx2, Pairs, ["avx2,fma"], pixels: 4, wide: false);
#[cfg(target_arch = "aarch64")]
pub const NEON_SINGLES: Products = products!(Neon, Singles, [], pixels: 4, wide: false);
#[cfg(target_arch = "aarch64")]
pub const NEON_PAIRS: Products = products!(Neon, Pairs, [], pixels: 4, wide: false);
pub const PORTABLE_SINGLES: Products = products!(Portable, Singles, [], pixels: 2, wide: false);
pub const PORTABLE_PAIRS: Products = products!(Portable, Pairs, [], pixels: 2, wide: false);

#[cfg(target_arch = "x86_64")]
pub const AMX_PAIRS: Products = Products {
    registers: amx::registers,
    products: 2 * amx::ROWS * LANES * 2 * amx::ROWS,
    tile: [amx::tile::<1>, amx::tile::<2>],
    outer: None,
    wide: true,
    rows: amx::ROWS,
};
