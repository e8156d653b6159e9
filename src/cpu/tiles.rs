//! The two inner loops of every convolution, over a vector type: sums for a tile of pixels, and sums over pixels.
//!
//! [`Products`] holds both for one instruction set and one kind of words; the best that the CPU has is found once, and
//! `SECATEUR_CPU` names another. Sums stay in registers over all products; each adds them in the order of its runs.

// Indices stand for registers: every loop over them unrolls.
#![allow(clippy::needless_range_loop)]

#[cfg(target_arch = "aarch64")]
use super::vector::Neon;
#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512, Avx512Bf16};
use super::vector::{Pairs, Portable, Singles, Vector, Words};
use crate::engine::{Error, Result};

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

/// An output pixel: where its input begins and where its channels go, in words of an image.
#[derive(Clone, Copy, Debug)]
pub struct Pixel {
    pub input: usize,
    pub output: usize,
}

/// `tile(input, runs, weights, pixels, output, add)`.
type Tile = unsafe fn(*const f32, &[Run], *const f32, &[Pixel], *mut f32, bool);

/// `outer(input, pixels, gradient, rows, sums, words between two rows of sums)`.
type Outer = unsafe fn(*const f32, &[Pixel], *const f32, usize, *mut f32, usize);

/// `registers(rounds)`: what a tile's sums are after so many products each that touch no memory.
type Registers = unsafe fn(usize) -> f32;

/// The loops of one instruction set for one kind of words, each for blocks of one vector and of two.
pub struct Products {
    registers: Registers,
    /// Products a round of `registers`.
    products: usize,
    tile: [Tile; 2],
    outer: [Outer; 2],
    /// Whether registers suffice for blocks of two vectors.
    wide: bool,
}

impl Products {
    /// Output channels that are summed together, of so many: what weights are packed in blocks of.
    pub fn block(&self, channels: usize) -> usize {
        if self.wide && channels.is_multiple_of(2 * LANES) { 2 * LANES } else { LANES }
    }

    /// `output[pixel][..block] = sum over runs of words times rows of weights`, or `+=` where `add`.
    ///
    /// `weights` are rows of `block` words. Panics where a run or a pixel lies outside of a slice.
    #[allow(clippy::too_many_arguments)]
    pub fn tile(
        &self,
        block: usize,
        input: &[f32],
        runs: &[Run],
        weights: &[f32],
        pixels: &[Pixel],
        output: &mut [f32],
        add: bool,
    ) {
        let largest = |of: fn(&Pixel) -> usize| pixels.iter().map(of).max().unwrap_or(0);
        let reach = runs.iter().map(|run| run.input + run.words).max().unwrap_or(0);
        let rows = runs.iter().map(|run| run.row + run.words).max().unwrap_or(0);
        assert!(largest(|pixel| pixel.input) + reach <= input.len(), "a patch reaches over the input");
        assert!(largest(|pixel| pixel.output) + block <= output.len(), "a pixel lies behind the output");
        assert!(rows * block <= weights.len(), "{rows} rows of {block} of {} weights", weights.len());
        // SAFETY: every word read and written lies in its slice, as just checked; `Isa::present` found the instructions.
        unsafe {
            let (input, output) = (input.as_ptr(), output.as_mut_ptr());
            self.tile[block / LANES - 1](input, runs, weights.as_ptr(), pixels, output, add);
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
        assert!(largest(|pixel| pixel.output) + block <= gradient.len(), "a pixel lies behind the gradient");
        assert!(rows > 0 && (rows - 1) * stride + block <= sums.len(), "{rows} rows of {} sums", sums.len());
        // SAFETY: as in `tile`.
        unsafe {
            let (input, gradient) = (input.as_ptr(), gradient.as_ptr());
            self.outer[block / LANES - 1](input, pixels, gradient, rows, sums.as_mut_ptr(), stride);
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

/// An instruction set that convolutions are built for.
pub struct Isa {
    /// As `SECATEUR_CPU` has it.
    pub name: &'static str,
    present: fn() -> bool,
    /// Words are single f32.
    pub singles: Products,
    /// Words are pairs of bf16.
    pub pairs: Products,
}

impl Isa {
    /// The fastest that this CPU has, or the one that `SECATEUR_CPU` names.
    ///
    /// # Errors
    /// [`Error::Setting`] for a name that is unknown or an instruction set that this CPU lacks.
    pub fn chosen() -> Result<&'static Self> {
        match std::env::var("SECATEUR_CPU") {
            Ok(name) => Self::named(Some(&name)),
            Err(std::env::VarError::NotPresent) => Self::named(None),
            Err(std::env::VarError::NotUnicode(name)) => Self::named(Some(&name.to_string_lossy())),
        }
    }

    pub fn named(name: Option<&str>) -> Result<&'static Self> {
        let present = || ISAS.iter().filter(|isa| (isa.present)());
        let known = |isas: &mut dyn Iterator<Item = &'static Isa>| {
            isas.map(|isa| isa.name).collect::<Vec<_>>().join(", ")
        };
        match name {
            None => Ok(present().next().expect("portable code runs anywhere")),
            Some(name) => present().find(|isa| isa.name == name).ok_or_else(|| {
                Error::Setting(match ISAS.iter().find(|isa| isa.name == name) {
                    Some(_) => format!("SECATEUR_CPU={name}: this CPU has {}", known(&mut present())),
                    None => format!("SECATEUR_CPU={name}: expected one of {}", known(&mut ISAS.iter())),
                })
            }),
        }
    }

    /// Every instruction set of this build that the CPU has, and the names of those that it lacks.
    #[cfg(test)]
    pub fn present() -> (Vec<&'static Self>, Vec<&'static str>) {
        let (present, lacking): (Vec<_>, Vec<_>) = ISAS.iter().partition(|isa| (isa.present)());
        (present, lacking.iter().map(|isa| isa.name).collect())
    }
}

#[inline(always)]
unsafe fn tile<V: Vector, W: Words, const P: usize, const N: usize>(
    x: *const f32,
    runs: &[Run],
    weights: *const f32,
    pixels: &[Pixel; P],
    out: *mut f32,
    add: bool,
) {
    // SAFETY: the caller's pointers reach every word of the runs and pixels.
    unsafe {
        let place = |p: usize, n: usize| out.add(pixels[p].output + n * LANES);
        let mut sums: [[V; N]; P] = std::array::from_fn(|p| {
            std::array::from_fn(|n| if add { V::load(place(p, n)) } else { V::zero() })
        });
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
    runs: &[Run],
    weights: *const f32,
    pixels: &[Pixel],
    out: *mut f32,
    add: bool,
) {
    let (whole, rest) = pixels.as_chunks::<P>();
    // SAFETY: the caller's.
    unsafe {
        for pixels in whole {
            tile::<V, W, P, N>(x, runs, weights, pixels, out, add);
        }
        for &pixel in rest {
            tile::<V, W, 1, N>(x, runs, weights, &[pixel], out, add);
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
            runs: &[Run],
            weights: *const f32,
            pixels: &[Pixel],
            output: *mut f32,
            add: bool,
        ) {
            // SAFETY: the caller's.
            unsafe { tiles::<$vector, $words, $pixels, N>(input, runs, weights, pixels, output, add) }
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
            outer: [outer_of::<1>, outer_of::<2>],
            wide: $wide,
        }
    }};
}

/// An [`Isa`]: its name, whether the CPU has it, its vector and features, and how many pixels a tile has.
macro_rules! isa {
    ($name:literal, $present:expr, $vector:ty, [$($features:literal)?], pixels: $pixels:literal, wide: $wide:literal) => {
        Isa {
            name: $name,
            present: || $present,
            singles: products!($vector, Singles, [$($features)?], pixels: $pixels, wide: $wide),
            pairs: products!($vector, Pairs, [$($features)?], pixels: $pixels, wide: $wide),
        }
    };
}

/// All of this build, the fastest first.
static ISAS: &[Isa] = &[
    #[cfg(target_arch = "x86_64")]
    isa!("avx512-bf16", is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"),
        Avx512Bf16, ["avx512f,avx512bf16"], pixels: 8, wide: true),
    #[cfg(target_arch = "x86_64")]
    isa!("avx512", is_x86_feature_detected!("avx512f"), Avx512, ["avx512f"], pixels: 8, wide: true),
    #[cfg(target_arch = "x86_64")]
    isa!("avx2", is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"), Avx2, ["avx2,fma"],
        pixels: 4, wide: false),
    #[cfg(target_arch = "aarch64")]
    isa!("neon", true, Neon, [], pixels: 4, wide: false),
    isa!("portable", true, Portable, [], pixels: 2, wide: false),
];
