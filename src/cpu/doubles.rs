//! Loops in f64 over numbers of either width, compiled for every instruction set: the host's part of a selection.
//!
//! Sums have the same lanes everywhere, added up in one order. Where a CPU fuses a product and a sum they are rounded once: no oracle needs
//! the bits of another CPU.

#![allow(clippy::needless_range_loop)] // indices stand for lanes

pub use super::columns::{COLUMNS, Lanes, ROWS};
use super::isa::{Isa, Level};
#[cfg(target_arch = "aarch64")]
use super::wide::Neon;
#[cfg(not(target_arch = "aarch64"))]
use super::wide::Portable;
#[cfg(target_arch = "x86_64")]
use super::wide::{Avx2, Avx512};
use super::wide::{Number, Wide};
use crate::engine::Result;

/// Lanes of a vector.
const LANES: usize = 8;
/// Vectors of a sum: enough to wait for no product.
const SUMS: usize = 4;
/// Rows of [`Doubles::project`].
pub const PROJECTED: usize = 8;
/// Vectors of a row that [`Doubles::add_products`] holds for all rows of a tile.
const HELD: usize = 2;
/// Rows that it takes at once: they stay in the nearest cache for all vectors of a tile.
const NEAR: usize = 64;
/// Features of a tile.
pub const TILE: usize = 64;

/// [`ROWS`] classes of [`TILE`] features.
pub type Tile = [[f64; TILE]; ROWS];
/// The features of a sample that a tile is for.
pub type Part = [f32; TILE];

/// The loops, for the instructions of this CPU.
#[derive(Clone, Copy)]
pub struct Doubles {
    isa: &'static Isa,
}

/// A method whose body is compiled for each instruction set, `V` its vector; what else is generic is given twice, with bounds and without.
macro_rules! doubles {
    ($(#[$meta:meta])* $visible:vis fn $name:ident<$vector:ident>[$($generic:tt)*][$($given:tt)*]
     ($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        $visible fn $name<$($generic)*>(self, $($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            unsafe fn body<$vector: Wide, $($generic)*>($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            fn avx512<$($generic)*>($($argument: $type),*) $(-> $result)? {
                // SAFETY: this function has the instructions.
                unsafe { body::<Avx512, $($given)*>($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$($generic)*>($($argument: $type),*) $(-> $result)? {
                // SAFETY: this function has the instructions.
                unsafe { body::<Avx2, $($given)*>($($argument),*) }
            }
            // SAFETY: the instruction set was found on this CPU.
            match self.isa.level {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe { avx512::<$($given)*>($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { avx2::<$($given)*>($($argument),*) },
                #[cfg(target_arch = "aarch64")]
                Level::Build => unsafe { body::<Neon, $($given)*>($($argument),*) },
                #[cfg(not(target_arch = "aarch64"))]
                Level::Build => unsafe { body::<Portable, $($given)*>($($argument),*) },
            }
        }
    };
}

#[inline(always)]
unsafe fn total<V: Wide>([a, b, c, d]: [V; SUMS]) -> V {
    // SAFETY: the caller has the instructions.
    unsafe {
        let one = V::splat(1.0);
        a.add_product(b, one).add_product(c.add_product(d, one), one)
    }
}

#[inline(always)]
fn of_lanes([a, b, c, d, e, f, g, h]: [f64; LANES]) -> f64 {
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}

impl Doubles {
    /// # Errors
    /// [`Error::Setting`](crate::engine::Error) where `SECATEUR_CPU` names instructions that this CPU lacks.
    pub fn new() -> Result<Self> {
        Ok(Self { isa: Isa::chosen()? })
    }

    doubles! {
        /// `sum_i a_i b_i` of two slices of one length.
        ///
        /// # Panics
        /// If `b` is shorter than `a`.
        pub fn dot<V>[A: Number][A](a: &[f64], b: &[A]) -> f64 {
            let len = a.len();
            let b = &b[..len];
            let whole = len / LANES * LANES;
            let mut lanes = [0.0; LANES];
            // SAFETY: the vectors lie in the slices; the caller has the instructions.
            unsafe {
                let (a, b) = (a.as_ptr(), b.as_ptr());
                let mut sums = [V::splat(0.0); SUMS];
                let mut at = 0;
                while at + SUMS * LANES <= whole {
                    for n in 0..SUMS {
                        let (a, b) = (a.add(at + n * LANES), b.add(at + n * LANES));
                        sums[n] = sums[n].add_product(V::load(a), A::load(b));
                    }
                    at += SUMS * LANES;
                }
                while at < whole {
                    sums[0] = sums[0].add_product(V::load(a.add(at)), A::load(b.add(at)));
                    at += LANES;
                }
                total(sums).store(lanes.as_mut_ptr());
            }
            let mut sum = of_lanes(lanes);
            for i in whole..len {
                sum = V::one(sum, a[i], b[i].get());
            }
            sum
        }
    }

    doubles! {
        /// `to += factor * values`, up to the end of the shorter.
        pub fn add<V>[A: Number][A](to: &mut [f64], factor: f64, values: &[A]) {
            let len = to.len().min(values.len());
            let whole = len / LANES * LANES;
            // SAFETY: the vectors lie in the slices; the caller has the instructions.
            unsafe {
                let splat = V::splat(factor);
                let (to, values) = (to.as_mut_ptr(), values.as_ptr());
                for at in (0..whole).step_by(LANES) {
                    V::load(to.add(at)).add_product(splat, A::load(values.add(at))).store(to.add(at));
                }
            }
            for i in whole..len {
                to[i] = V::one(to[i], factor, values[i].get());
            }
        }
    }

    doubles! {
        /// The products `f[n]` of some rows of a triangle with `values`; `sums += f[0] rows[0] + f[1] rows[1] + ..`.
        ///
        /// # Panics
        /// If a row is shorter than the one before it, or `values` or `sums` shorter than the last.
        pub fn project<V>[][](rows: [&[f64]; PROJECTED], values: &[f64], sums: &mut [f64]) -> [f64; PROJECTED] {
            let len = rows[0].len();
            let whole = len / LANES * LANES;
            let last = rows[PROJECTED - 1].len();
            let (values, sums) = (&values[..last], &mut sums[..last]);
            assert!(rows.is_sorted_by_key(|row| row.len()), "rows of a triangle");
            let mut factors = [0.0; PROJECTED];
            // SAFETY: the vectors lie in the slices; the caller has the instructions.
            unsafe {
                let mut products = [V::splat(0.0); PROJECTED];
                for at in (0..whole).step_by(LANES) {
                    let value = V::load(values.as_ptr().add(at));
                    for n in 0..PROJECTED {
                        products[n] = products[n].add_product(V::load(rows[n].as_ptr().add(at)), value);
                    }
                }
                for n in 0..PROJECTED {
                    let mut lanes = [0.0; LANES];
                    products[n].store(lanes.as_mut_ptr());
                    factors[n] = of_lanes(lanes);
                    for i in whole..rows[n].len() {
                        factors[n] = V::one(factors[n], rows[n][i], values[i]);
                    }
                }
                let splat: [V; PROJECTED] = std::array::from_fn(|n| V::splat(factors[n]));
                for at in (0..whole).step_by(LANES) {
                    let mut sum = V::load(sums.as_ptr().add(at));
                    for n in 0..PROJECTED {
                        sum = sum.add_product(V::load(rows[n].as_ptr().add(at)), splat[n]);
                    }
                    sum.store(sums.as_mut_ptr().add(at));
                }
            }
            for n in 0..PROJECTED {
                for i in whole..rows[n].len() {
                    sums[i] = V::one(sums[i], factors[n], rows[n][i]);
                }
            }
            factors
        }
    }

    doubles! {
        /// Turns the plane of two vectors, up to the end of the shorter: `(cosine a - sine b, sine a + cosine b)`.
        pub fn rotate<V>[][](cosine: f64, sine: f64, a: &mut [f64], b: &mut [f64]) {
            let len = a.len().min(b.len());
            let whole = len / LANES * LANES;
            // SAFETY: the vectors lie in the slices; the caller has the instructions.
            unsafe {
                let (zero, cosines) = (V::splat(0.0), V::splat(cosine));
                let (sines, negated) = (V::splat(sine), V::splat(-sine));
                let (a, b) = (a.as_mut_ptr(), b.as_mut_ptr());
                for at in (0..whole).step_by(LANES) {
                    let (x, y) = (V::load(a.add(at)), V::load(b.add(at)));
                    zero.add_product(negated, y).add_product(cosines, x).store(a.add(at));
                    zero.add_product(cosines, y).add_product(sines, x).store(b.add(at));
                }
            }
            for i in whole..len {
                (a[i], b[i]) = (V::one(-sine * b[i], cosine, a[i]), V::one(cosine * b[i], sine, a[i]));
            }
        }
    }

    doubles! {
        /// `sum_i a[n][i] b_i` of each n, where the numbers of b are row `at` of each of `parts`.
        ///
        /// # Panics
        /// If a part has no such row, or a slice of `a` is not as long as those rows together.
        pub fn dots<V>[const N: usize][N](a: [&[f64]; N], parts: &[Vec<Part>], at: usize) -> [f64; N] {
            assert!(a.iter().all(|a| a.len() == parts.len() * TILE), "numbers of a row in parts");
            let mut lanes = [[0.0; LANES]; N];
            // SAFETY: the vectors lie in the slices; the caller has the instructions.
            unsafe {
                let mut sums = [[V::splat(0.0); SUMS]; N];
                for (part, rows) in parts.iter().enumerate() {
                    let b = rows[at].as_ptr();
                    for i in 0..TILE / LANES {
                        let b = V::widen(b.add(i * LANES));
                        for n in 0..N {
                            let sum = &mut sums[n][i % SUMS];
                            *sum = sum.add_product(V::load(a[n].as_ptr().add(part * TILE + i * LANES)), b);
                        }
                    }
                }
                for n in 0..N {
                    total(sums[n]).store(lanes[n].as_mut_ptr());
                }
            }
            lanes.map(of_lanes)
        }
    }

    doubles! {
        /// `tile[c][j] += sum_s factors[s][c] * rows[s][j]`, in the order of s.
        ///
        /// # Panics
        /// If there are not as many factors as rows.
        pub fn add_products<V>[][](tile: &mut Tile, factors: &[[f64; ROWS]], rows: &[Part]) {
            assert_eq!(factors.len(), rows.len(), "factors of rows");
            for (factors, rows) in factors.chunks(NEAR).zip(rows.chunks(NEAR)) {
                for at in (0..TILE).step_by(HELD * LANES) {
                    // SAFETY: the vectors lie in rows of `TILE` numbers; the caller has the instructions.
                    unsafe {
                        let mut sums = [[V::splat(0.0); HELD]; ROWS];
                        for c in 0..ROWS {
                            for n in 0..HELD {
                                sums[c][n] = V::load(tile[c].as_ptr().add(at + n * LANES));
                            }
                        }
                        for s in 0..rows.len() {
                            let row = rows[s].as_ptr().add(at);
                            let row: [V; HELD] = std::array::from_fn(|n| V::widen(row.add(n * LANES)));
                            for c in 0..ROWS {
                                let factor = V::splat(factors[s][c]);
                                for n in 0..HELD {
                                    sums[c][n] = sums[c][n].add_product(factor, row[n]);
                                }
                            }
                        }
                        for c in 0..ROWS {
                            for n in 0..HELD {
                                sums[c][n].store(tile[c].as_mut_ptr().add(at + n * LANES));
                            }
                        }
                    }
                }
            }
        }
    }

    doubles! {
        /// `to[i] += sum_c factors[c][i] * (sums[c][i] + bias[c])`.
        fn weigh<V>[][](to: &mut [f64; COLUMNS], factors: &[Lanes], sums: &[Lanes; ROWS], bias: &[f64; ROWS]) {
            // SAFETY: the vectors lie in rows of `COLUMNS` numbers; the caller has the instructions.
            unsafe {
                let one = V::splat(1.0);
                for at in (0..COLUMNS).step_by(LANES) {
                    let mut total = V::load(to.as_ptr().add(at));
                    for ((factors, sums), &bias) in factors.iter().zip(sums).zip(bias) {
                        let sum = V::splat(bias).add_product(V::widen(sums.0.as_ptr().add(at)), one);
                        total = total.add_product(V::widen(factors.0.as_ptr().add(at)), sum);
                    }
                    total.store(to.as_mut_ptr().add(at));
                }
            }
        }
    }

    /// `to[i] += sum_c factors[c][i] * (sum_j matrix[j][c] values[j][i] + bias[c])` over ten classes c at most, the inner sum in f32.
    ///
    /// # Panics
    /// If the matrix and the values have not as many rows.
    pub fn add_estimates(
        self,
        to: &mut [f64; COLUMNS],
        factors: &[Lanes],
        matrix: &[[f32; ROWS]],
        bias: &[f64; ROWS],
        values: &[Lanes],
    ) {
        let mut sums = [Lanes::ZERO; ROWS];
        self.isa.multiply_columns(matrix, values, &mut sums);
        self.weigh(to, factors, &sums, bias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{Key, Purpose, unit};

    const SEED: u64 = 20_261_201;

    /// Numbers of both signs.
    fn numbers(stream: u32, len: usize) -> Vec<f64> {
        let key = Key { seed: SEED, purpose: Purpose::Generation, epoch: 0, step: 0 };
        (0..len as u32).map(|at| 2.0 * f64::from(unit(key.block(stream, at)[0])) - 1.0).collect()
    }

    fn narrow(values: &[f64]) -> Vec<f32> {
        values.iter().map(|&value| value as f32).collect()
    }

    fn near(what: &str, actual: &[f64], expected: &[f64], bound: f64) {
        assert_eq!(actual.len(), expected.len(), "{what}");
        for (at, (actual, expected)) in actual.iter().zip(expected).enumerate() {
            assert!((actual - expected).abs() <= bound, "{what}, {at}: {actual}, expected {expected}");
        }
    }

    /// Calls `test` with the loops of every instruction set that this CPU has.
    fn on_every_isa(test: impl Fn(&str, Doubles)) {
        let (present, lacking) = Isa::present();
        println!("seed {SEED}; this CPU lacks {lacking:?}");
        for isa in present {
            test(isa.name, Doubles { isa });
        }
    }

    #[test]
    fn loops_over_slices_equal_plain_ones() {
        on_every_isa(|name, doubles| {
            for len in [0, 1, 7, 8, 31, 32, 33, 77, 512] {
                let what = |operation| format!("{name}, {len} numbers: {operation}");
                let (a, b) = (numbers(1, len), numbers(2, len));
                let (short, bound) = (narrow(&b), 1e-15 * (len + 1) as f64);
                let plain = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let wide: Vec<f64> = short.iter().map(|&value| f64::from(value)).collect();
                near(&what("dot"), &[doubles.dot(&a, &b)], &[plain(&a, &b)], bound);
                near(&what("dot of f32"), &[doubles.dot(&a, &short)], &[plain(&a, &wide)], bound);
                let mut sum = a.clone();
                doubles.add(&mut sum, 0.3, &b);
                let expected: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a + 0.3 * b).collect();
                near(&what("add"), &sum, &expected, 1e-15);
                let (mut x, mut y) = (a.clone(), b.clone());
                doubles.rotate(0.6, 0.8, &mut x, &mut y);
                let turned = |f: fn(f64, f64) -> f64| -> Vec<f64> {
                    a.iter().zip(&b).map(|(&a, &b)| f(a, b)).collect()
                };
                near(&what("rotate"), &x, &turned(|a, b| 0.6 * a - 0.8 * b), 1e-15);
                near(&what("rotate"), &y, &turned(|a, b| 0.8 * a + 0.6 * b), 1e-15);

                // Rows of a triangle; what lies after the last stays.
                let rows: [Vec<f64>; PROJECTED] = std::array::from_fn(|n| numbers(10 + n as u32, len + n));
                let (values, mut sums) = (numbers(3, len + 9), numbers(4, len + 9));
                let mut expected = sums.clone();
                let factors = doubles.project(rows.each_ref().map(Vec::as_slice), &values, &mut sums);
                for (row, factor) in rows.iter().zip(factors) {
                    near(&what("project"), &[factor], &[plain(row, &values)], bound + 1e-14);
                    expected.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
                }
                near(&what("sums of project"), &sums, &expected, 1e-15 * (len + 40) as f64);
            }
        });
    }

    /// Equal numbers at other places are rounded alike: a pursuit relies on it where atoms are copies.
    #[test]
    fn the_end_of_a_slice_is_rounded_as_its_vectors() {
        on_every_isa(|name, doubles| {
            let (a, b) = (numbers(1, 1)[0], numbers(2, 1)[0]);
            let mut sums = [a; 23];
            doubles.add(&mut sums, 0.1, &[b; 23]);
            assert!(sums.iter().all(|sum| sum.to_bits() == sums[0].to_bits()), "{name}: {sums:?}");
        });
    }

    #[test]
    fn tiles_equal_plain_sums() {
        on_every_isa(|name, doubles| {
            for samples in [0, 1, 63, 64, 65, 150] {
                let what = format!("{name}, {samples} samples");
                let factors = numbers(5, samples * ROWS);
                let (factors, _) = factors.as_chunks::<ROWS>();
                let features = narrow(&numbers(6, samples * TILE));
                let (rows, _) = features.as_chunks::<TILE>();
                let before = numbers(7, ROWS * TILE);
                let mut tile = [[0.0; TILE]; ROWS];
                tile.as_flattened_mut().copy_from_slice(&before);
                doubles.add_products(&mut tile, factors, rows);
                let mut expected = before;
                for (factors, row) in factors.iter().zip(rows) {
                    for (sum, at) in expected.iter_mut().zip(0..) {
                        *sum += factors[at / TILE] * f64::from(row[at % TILE]);
                    }
                }
                near(&what, tile.as_flattened(), &expected, 1e-15 * (samples + 1) as f64);

                let parts = vec![rows.to_vec(), rows.iter().rev().copied().collect()];
                let (a, b) = (numbers(8, 2 * TILE), numbers(9, 2 * TILE));
                for at in 0..samples {
                    let row = || parts[0][at].iter().chain(&parts[1][at]).map(|&value| f64::from(value));
                    let expected = [&a, &b].map(|a| a.iter().zip(row()).map(|(a, b)| a * b).sum::<f64>());
                    near(&what, &doubles.dots([&a, &b], &parts, at), &expected, 1e-13);
                }
            }
        });
    }

    #[test]
    fn estimates_are_within_single_precision() {
        on_every_isa(|name, doubles| {
            for (classes, features) in [(1, 1), (10, 128), (7, 33)] {
                let lanes = |stream, rows: usize| -> Vec<Lanes> {
                    let values = narrow(&numbers(stream, rows * COLUMNS));
                    values.as_chunks().0.iter().map(|&row| Lanes(row)).collect()
                };
                let (factors, values) = (lanes(1, classes), lanes(2, features));
                let matrix = narrow(&numbers(3, features * ROWS));
                let (matrix, _) = matrix.as_chunks::<ROWS>();
                let bias: [f64; ROWS] = numbers(4, ROWS).try_into().unwrap();
                let mut actual = [0.5; COLUMNS];
                doubles.add_estimates(&mut actual, &factors, matrix, &bias, &values);
                let expected: Vec<f64> = (0..COLUMNS)
                    .map(|i| {
                        let of_class = |c: usize| {
                            let products = matrix.iter().zip(&values);
                            let sum: f64 =
                                products.map(|(row, v)| f64::from(row[c]) * f64::from(v.0[i])).sum();
                            f64::from(factors[c].0[i]) * (sum + bias[c])
                        };
                        0.5 + (0..classes).map(of_class).sum::<f64>()
                    })
                    .collect();
                let bound = (classes * features * features) as f64 * 2f64.powi(-24);
                near(&format!("{name}, {classes} classes, {features} features"), &actual, &expected, bound);
                assert!(
                    features == 1 || actual.iter().zip(&expected).any(|(a, e)| (a - e).abs() > 1e-9),
                    "{name}: the inner sum is in f32"
                );
            }
        });
    }
}
