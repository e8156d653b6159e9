//! Last-layer gradients on the host, in factored form: what the atoms of a pursuit are made of.
//!
//! The factors are read from the engine once; whatever a pursuit does with them then costs the engine nothing.

use rayon::prelude::*;

use super::factored::Factored;
use super::gram::Gram;
use super::pursuit::Atoms;
use super::{Result, sum};
use crate::cpu::doubles::{Doubles, Part, ROWS, TILE, Tile};
use crate::engine::Engine;
use crate::ops::LastLayerGradients;

/// Atoms of a Gram matrix at most, and how many of its columns cost what the factors of one atom do: its numbers lie in memory.
const GRAM: (usize, usize) = (2048, 8);

/// The factors of the gradients `g_i = sum over the terms of dz_i (x) [h_i, 1]`, in the order of the candidates.
pub struct Factors {
    pub(super) doubles: Doubles,
    pub(super) classes: usize,
    pub(super) features: usize,
    /// Classes, and zeros up to whole tens: the numbers of a row of slopes.
    pub(super) row: usize,
    pub(super) terms: Vec<Term>,
    /// `<g_i, g_i>`.
    pub(super) squares: Vec<f64>,
}

/// One outer product a sample.
pub(super) struct Term {
    /// `n x row`: dz.
    pub slopes: Vec<f32>,
    /// `n x features`.
    pub features: Vec<f32>,
}

impl Factors {
    /// # Errors
    /// Those of the engine.
    pub fn read(engine: &Engine, gradients: &LastLayerGradients) -> Result<Self> {
        let network = engine.network();
        let (classes, features) = (network.classes, network.features());
        let row = classes.next_multiple_of(ROWS);
        let term = |term: &crate::ops::Term| -> Result<Term> {
            let mut slopes = vec![0.0; gradients.len * row];
            let read = engine.read(&term.logit_gradient)?;
            for (padded, slopes) in slopes.chunks_exact_mut(row).zip(read.chunks_exact(classes)) {
                padded[..classes].copy_from_slice(slopes);
            }
            Ok(Term { slopes, features: engine.read(&term.features)? })
        };
        let terms = gradients.terms.iter().map(term).collect::<Result<_>>()?;
        let mut factors =
            Self { doubles: Doubles::new()?, classes, features, row, terms, squares: Vec::new() };
        let square = |sample: usize| {
            let mut one = Used::new(&factors);
            one.push(&factors, sample);
            one.cross(&factors, &factors.widen(sample), 0)
        };
        factors.squares = (0..gradients.len).into_par_iter().map(square).collect();
        Ok(factors)
    }

    /// `<g_i, g_i>` of every sample.
    pub fn squares(&self) -> &[f64] {
        &self.squares
    }

    /// The slopes and the features of a sample in f64, those in whole parts, for [`Used::cross`].
    pub(super) fn widen(&self, sample: usize) -> Vec<[Vec<f64>; 2]> {
        let of_term = |term| {
            let (slopes, features) = self.rows(term, sample);
            let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
            let (slopes, mut features) = (wide(slopes), wide(features));
            features.resize(self.parts() * TILE, 0.0);
            [slopes, features]
        };
        self.terms.iter().map(of_term).collect()
    }

    /// Bytes of the factors of a sample.
    pub fn bytes(&self) -> usize {
        self.terms.len() * (self.row + self.features) * size_of::<f32>()
    }

    /// Parts of the features of a sample.
    fn parts(&self) -> usize {
        self.features.div_ceil(TILE)
    }

    /// Slopes and features of a sample.
    pub(super) fn rows<'a>(&self, term: &'a Term, sample: usize) -> (&'a [f32], &'a [f32]) {
        (
            &term.slopes[sample * self.row..][..self.row],
            &term.features[sample * self.features..][..self.features],
        )
    }

    /// The samples at `places` as atoms, whose target is `target` as one vector, in the form that is faster for so many.
    pub fn atoms<'a>(&'a self, places: &'a [u32], target: &[f64]) -> Box<dyn Atoms + 'a> {
        let (most, columns) = GRAM;
        let numbers = self.terms.len() * self.classes * (self.features + 1);
        match places.len() <= most.min(numbers / columns) {
            true => Box::new(Gram::of_samples(self, places, target)),
            false => Box::new(Factored::new(self, places, target)),
        }
    }
}

/// Samples whose gradients are added up, and multiplied with others, again and again.
#[derive(Clone)]
pub(super) struct Used {
    /// For each term the slopes, row after row.
    slopes: Vec<Vec<f32>>,
    /// For each term and part of the features, a row a sample.
    features: Vec<Vec<Part>>,
    len: usize,
}

impl Used {
    pub fn new(factors: &Factors) -> Self {
        let terms = factors.terms.len();
        Self { slopes: vec![Vec::new(); terms], features: vec![Vec::new(); terms * factors.parts()], len: 0 }
    }

    pub fn push(&mut self, factors: &Factors, sample: usize) {
        let parts = self.features.chunks_exact_mut(factors.parts());
        for ((term, all), parts) in factors.terms.iter().zip(&mut self.slopes).zip(parts) {
            let (slopes, features) = factors.rows(term, sample);
            all.extend(slopes);
            for (part, values) in parts.iter_mut().zip(features.chunks(TILE)) {
                let mut padded = [0.0; TILE];
                padded[..values.len()].copy_from_slice(values);
                part.push(padded);
            }
        }
        self.len += 1;
    }

    /// Removes the sample at `position`; the others keep their order.
    pub fn remove(&mut self, factors: &Factors, position: usize) {
        for slopes in &mut self.slopes {
            slopes.drain(position * factors.row..(position + 1) * factors.row);
        }
        for part in &mut self.features {
            part.remove(position);
        }
        self.len -= 1;
    }

    /// The product of a gradient, widened, with that of the sample at `position`: for each pair of terms `(dz . dz') (h . h' + 1)`. It has the
    /// same bits as that of the other with the one.
    pub fn cross(&self, factors: &Factors, own: &[[Vec<f64>; 2]], position: usize) -> f64 {
        let (row, doubles) = (factors.row, factors.doubles);
        // Of equal and of unequal terms.
        let mut products = [0.0; 2];
        let parts = self.features.chunks_exact(factors.parts());
        for (a, (slopes, parts)) in self.slopes.iter().zip(parts).enumerate() {
            let slopes = &slopes[position * row..][..row];
            let features = match own {
                [[_, first], [_, second]] => doubles.dots([first, second], parts, position),
                _ => [doubles.dots([&own[0][1]], parts, position)[0], 0.0],
            };
            for (b, ([own_slopes, _], features)) in own.iter().zip(features).enumerate() {
                products[usize::from(a != b)] += doubles.dot(own_slopes, slopes) * (features + 1.0);
            }
        }
        products[0] + products[1]
    }
}

/// Ten rows of a matrix like the last layer's, classes by features and one.
#[derive(Clone)]
pub(super) struct Rows {
    /// Which ten classes.
    tens: usize,
    /// Parts of the features; zeros beyond the last.
    pub tiles: Vec<Tile>,
    pub bias: [f64; ROWS],
    /// Workspace: weights times slopes, term by term.
    weighed: Vec<[f64; ROWS]>,
}

impl Rows {
    pub fn zero(factors: &Factors, tens: usize) -> Self {
        let tiles = vec![[[0.0; TILE]; ROWS]; factors.parts()];
        Self { tens, tiles, bias: [0.0; ROWS], weighed: Vec::new() }
    }

    /// All of `vector`, `classes x (features + 1)` numbers.
    pub fn of_vector(factors: &Factors, vector: &[f64]) -> Vec<Self> {
        let rows: Vec<&[f64]> = vector.chunks_exact(factors.features + 1).collect();
        let of_tens = |(tens, rows): (usize, &[&[f64]])| {
            let mut all = Self::zero(factors, tens);
            for (c, row) in rows.iter().enumerate() {
                let (bias, row) = row.split_last().expect("a bias");
                all.bias[c] = *bias;
                for (tile, part) in all.tiles.iter_mut().zip(row.chunks(TILE)) {
                    tile[c][..part.len()].copy_from_slice(part);
                }
            }
            all
        };
        rows.chunks(ROWS).enumerate().map(of_tens).collect()
    }

    /// Makes these `from - sum_s weights[s] g_s` over the samples in use.
    pub fn subtract(&mut self, from: &Self, factors: &Factors, used: &Used, weights: &[f64]) {
        let (tens, doubles) = (self.tens, factors.doubles);
        self.bias = from.bias;
        self.weighed.clear();
        for slopes in &used.slopes {
            for (slopes, weight) in slopes.chunks_exact(factors.row).zip(weights) {
                let slopes = &slopes[tens * ROWS..][..ROWS];
                let weighed = std::array::from_fn(|c| -weight * f64::from(slopes[c]));
                self.bias.iter_mut().zip(weighed).for_each(|(bias, value)| *bias += value);
                self.weighed.push(weighed);
            }
        }
        let weighed = &self.weighed;
        self.tiles.par_iter_mut().zip(&from.tiles).enumerate().for_each(|(part, (tile, from))| {
            *tile = *from;
            let features = used.features.iter().skip(part).step_by(factors.parts());
            for (features, weighed) in features.zip(weighed.chunks(used.len.max(1))) {
                doubles.add_products(tile, weighed, features);
            }
        });
    }

    /// The inner product of these rows with those of a sample's gradient.
    pub fn product(&self, factors: &Factors, sample: usize) -> f64 {
        let of_term = |term: &Term| -> f64 {
            let (slopes, features) = factors.rows(term, sample);
            let of_class = |(c, &slope): (usize, &f32)| {
                let tiles = self.tiles.iter().zip(features.chunks(TILE));
                let sum: f64 = tiles.map(|(tile, part)| factors.doubles.dot(&tile[c], part)).sum();
                f64::from(slope) * (sum + self.bias[c])
            };
            slopes[self.tens * ROWS..][..ROWS].iter().enumerate().map(of_class).sum()
        };
        factors.terms.iter().map(of_term).sum()
    }

    /// The inner product with other rows of these classes.
    pub fn dot(&self, doubles: Doubles, other: &Self) -> f64 {
        let tiles = self.tiles.iter().zip(&other.tiles);
        let tiles: f64 = tiles.map(|(a, b)| doubles.dot(a.as_flattened(), b.as_flattened())).sum();
        tiles + doubles.dot(&self.bias, &other.bias)
    }
}

/// The mean, over `gradients` and `further` draws of them, of their sums, as one vector of `classes x (features + 1)`.
///
/// # Errors
/// Those of the engine.
pub fn mean_sum(
    engine: &mut Engine,
    gradients: &LastLayerGradients,
    further: &[LastLayerGradients],
) -> Result<Vec<f64>> {
    let of_draw = sum(engine, gradients, None)?;
    let mut mean = engine.read(&of_draw)?;
    for draw in further {
        let of_draw = sum(engine, draw, None)?;
        let of_draw = engine.read(&of_draw)?;
        mean.iter_mut().zip(of_draw).for_each(|(mean, value)| *mean += value);
    }
    mean.iter_mut().for_each(|value| *value /= (1 + further.len()) as f64);
    Ok(mean)
}
