//! Atoms that stay in factored form: the gradients of samples, against an explicit residual.
//!
//! The residual R is a matrix like the last layer's, so a correlation `<g_i, R> = sum over the terms of dz_i . (R [h_i, 1])` needs no column of
//! a Gram matrix. All of them are estimated in f32, the features of 32 open atoms in the lanes of vectors; how far off an estimate can
//! be is known, and only the few atoms that may be the best are computed in f64.

use rayon::prelude::*;

use super::atoms::{Factors, Rows, Used};
use super::pursuit::Atoms;
use super::{PruneError, Result};
use crate::cpu::doubles::{COLUMNS, Lanes, ROWS, TILE};

/// Products of the estimates that are a task, at least.
const PRODUCTS: usize = 1 << 20;
/// Atoms of the residual whose products are a task: their factors stay in a near cache for all that they are multiplied with.
const CROSS: usize = 32;
/// The slot of an atom that is not open.
const NONE: u32 = u32::MAX;

/// The samples at some places, and what is left of a target.
pub struct Factored<'a> {
    factors: &'a Factors,
    /// The place of each atom.
    places: &'a [u32],
    target: Vec<Rows>,
    target_square: f64,
    target_products: Vec<f64>,
    squares: Vec<f64>,
    residual: Vec<Rows>,
    open: Open,
    /// The atoms of the residual, and their factors.
    used: Vec<usize>,
    samples: Used,
    /// Workspace: the residual in f32 and its bias in f64, scaled.
    matrix: Vec<[f32; ROWS]>,
    bias: Vec<[f64; ROWS]>,
}

/// The open atoms, slot after slot, 32 to a block.
struct Open {
    atoms: Vec<u32>,
    /// The slot of each atom.
    slots: Vec<u32>,
    /// For each block and term the slopes, then the features.
    blocks: Vec<Lanes>,
    /// Rows of a block.
    rows: usize,
    /// For each atom `sum over the terms of |dz| |[h, 1]|`.
    sizes: Vec<f64>,
    /// For each slot about `<g_i, R>`, NaN where that is not known.
    estimates: Vec<f64>,
    /// An estimate is no further off than this times the size of its atom.
    error: f64,
}

impl<'a> Factored<'a> {
    /// The target is one vector of `classes x (features + 1)` numbers.
    pub fn new(factors: &'a Factors, places: &'a [u32], target: &[f64]) -> Self {
        let rows = Rows::of_vector(factors, target);
        let target_square = factors.doubles.dot(target, target);
        let product = |&place: &u32| rows.iter().map(|rows| rows.product(factors, place as usize)).sum();
        let mut atoms = Self {
            factors,
            places,
            target_square,
            target_products: places.par_iter().map(product).collect(),
            squares: places.iter().map(|&place| factors.squares()[place as usize]).collect(),
            residual: rows.clone(),
            target: rows,
            open: Open::all(factors, places),
            used: Vec::new(),
            samples: Used::new(factors),
            matrix: Vec::new(),
            bias: Vec::new(),
        };
        atoms.estimate();
        atoms
    }

    /// Estimates the correlation of every open atom.
    ///
    /// An element of R is rounded to f32, and so is each product and sum in the `features` of a row: `features + 2` roundings at most
    /// reach a product, each by 2^-24 of `|dz_c| |R_cj| |h_j|`, and the sum of those is at most `|dz| |[h, 1]| |R|`. R is scaled to a norm of 1 to 2,
    /// so numbers too small for f32 cost less than the rest of the bound.
    fn estimate(&mut self) {
        let (factors, width) = (self.factors, self.factors.features);
        let squares = self.residual.iter().map(|rows| rows.dot(factors.doubles, rows));
        let norm = squares.sum::<f64>().sqrt();
        let scale = if norm > 0.0 { norm.log2().floor().clamp(-1000.0, 1000.0).exp2().recip() } else { 1.0 };
        self.matrix.clear();
        self.bias.clear();
        for rows in &self.residual {
            let feature = |j: usize| {
                let tile = &rows.tiles[j / TILE];
                std::array::from_fn(|c| (scale * tile[c][j % TILE]) as f32)
            };
            self.matrix.extend((0..width).map(feature));
            self.bias.push(rows.bias.map(|bias| scale * bias));
        }
        let (matrix, bias, row) = (&self.matrix, &self.bias, factors.row);
        let open = &mut self.open;
        open.error = norm * (width + 8) as f64 * 2f64.powi(-24);
        let blocks = open.estimates.par_chunks_mut(COLUMNS).zip(open.blocks.par_chunks_exact(open.rows));
        let products = COLUMNS * factors.terms.len() * row * width;
        blocks.with_min_len(PRODUCTS.div_ceil(products)).for_each(|(estimates, block)| {
            let mut sums = [0.0; COLUMNS];
            for term in block.chunks_exact(row + width) {
                let (slopes, features) = term.split_at(row);
                let tens = slopes.chunks_exact(ROWS).zip(matrix.chunks_exact(width)).zip(bias);
                for ((slopes, matrix), bias) in tens {
                    factors.doubles.add_estimates(&mut sums, slopes, matrix, bias, features);
                }
            }
            for (estimate, sum) in estimates.iter_mut().zip(sums) {
                *estimate = if sum.is_finite() { sum / scale } else { f64::NAN };
            }
        });
    }
}

impl Open {
    /// All atoms in their order, without estimates.
    fn all(factors: &Factors, places: &[u32]) -> Self {
        let rows = factors.terms.len() * (factors.row + factors.features);
        let mut blocks = vec![Lanes::ZERO; places.len().div_ceil(COLUMNS) * rows];
        blocks.par_chunks_exact_mut(rows).zip(places.par_chunks(COLUMNS)).for_each(|(block, places)| {
            for (lane, &place) in places.iter().enumerate() {
                fill(factors, place, block, lane);
            }
        });
        let size = |&place: &u32| {
            let of_term = |term| {
                let (slopes, features) = factors.rows(term, place as usize);
                let square =
                    |values: &[f32]| values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
                (square(slopes) * (square(features) + 1.0)).sqrt()
            };
            factors.terms.iter().map(of_term).sum()
        };
        let slots: Vec<u32> = (0..places.len() as u32).collect();
        Self {
            atoms: slots.clone(),
            slots,
            blocks,
            rows,
            sizes: places.par_iter().map(size).collect(),
            estimates: vec![f64::NAN; places.len()],
            error: 0.0,
        }
    }
}

/// Puts the factors of a sample into a lane of a block.
fn fill(factors: &Factors, place: u32, block: &mut [Lanes], lane: usize) {
    for (term, block) in factors.terms.iter().zip(block.chunks_exact_mut(factors.row + factors.features)) {
        let (slopes, features) = factors.rows(term, place as usize);
        for (lanes, &value) in block.iter_mut().zip(slopes.iter().chain(features)) {
            lanes.0[lane] = value;
        }
    }
}

impl Atoms for Factored<'_> {
    fn target_square(&self) -> f64 {
        self.target_square
    }

    fn target_products(&self) -> &[f64] {
        &self.target_products
    }

    fn squares(&self) -> &[f64] {
        &self.squares
    }

    fn set_open(&mut self, atom: usize, open: bool) {
        let (factors, places) = (self.factors, self.places);
        let Open { atoms, slots, blocks, rows, estimates, .. } = &mut self.open;
        let mut put = |slots: &mut [u32], atom: usize, slot: usize| {
            slots[atom] = slot as u32;
            fill(factors, places[atom], &mut blocks[slot / COLUMNS * *rows..][..*rows], slot % COLUMNS);
        };
        if open {
            put(slots, atom, atoms.len());
            atoms.push(atom as u32);
            estimates.push(f64::NAN);
            return;
        }
        let slot = slots[atom] as usize;
        atoms.swap_remove(slot);
        estimates.swap_remove(slot);
        if let Some(&last) = atoms.get(slot) {
            put(slots, last as usize, slot);
        }
        slots[atom] = NONE;
    }

    fn set_residual(&mut self, atoms: &[usize], weights: &[f64]) -> Result<()> {
        let (factors, places) = (self.factors, self.places);
        // From one step to the next atoms are taken out and one is added.
        let mut at = 0;
        while at < self.used.len() {
            if atoms.get(at) == Some(&self.used[at]) {
                at += 1;
            } else {
                self.used.remove(at);
                self.samples.remove(factors, at);
            }
        }
        for &atom in &atoms[at..] {
            self.used.push(atom);
            self.samples.push(factors, places[atom] as usize);
        }
        let used = &self.samples;
        let rows = self.residual.par_iter_mut().zip(&self.target);
        rows.for_each(|(rows, target)| rows.subtract(target, factors, used, weights));
        self.estimate();
        match self.open.error.is_finite() {
            true => Ok(()),
            false => {
                Err(PruneError::Invalid("residual of a pursuit: its norm is not a finite number".into()))
            }
        }
    }

    fn best(&self, floors: &[f64]) -> Option<usize> {
        let Open { atoms, sizes, estimates, error, .. } = &self.open;
        let slots = || {
            atoms.iter().zip(estimates).map(|(&atom, &estimate)| {
                let atom = atom as usize;
                (atom, estimate, error * sizes[atom])
            })
        };
        // What the best correlation is at least.
        let least = |(atom, estimate, error): (usize, f64, f64)| {
            if estimate - error > floors[atom] { estimate - error } else { f64::NEG_INFINITY }
        };
        let least = slots().map(least).fold(f64::NEG_INFINITY, f64::max);
        let mut best: Option<(f64, usize)> = None;
        for (atom, estimate, error) in slots() {
            if estimate + error < least || estimate + error <= floors[atom] {
                continue;
            }
            let place = self.places[atom] as usize;
            let product: f64 = self.residual.iter().map(|rows| rows.product(self.factors, place)).sum();
            let better = |(most, first): (f64, usize)| product > most || (product == most && atom < first);
            if product > floors[atom] && best.is_none_or(better) {
                best = Some((product, atom));
            }
        }
        best.map(|(_, atom)| atom)
    }

    fn likely(&self, most: usize) -> Vec<usize> {
        let Open { atoms, estimates, .. } = &self.open;
        let mut all: Vec<(f64, u32)> = estimates.iter().copied().zip(atoms.iter().copied()).collect();
        let order = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if most < all.len() {
            all.select_nth_unstable_by(most, order);
            all.truncate(most);
        }
        all.sort_unstable_by(order);
        all.into_iter().map(|(_, atom)| atom as usize).collect()
    }

    fn cross(&mut self, atoms: &[usize], first: usize, products: &mut [f64]) {
        let (factors, samples) = (self.factors, &self.samples);
        let own: Vec<_> = atoms.iter().map(|&atom| factors.widen(self.places[atom] as usize)).collect();
        products.par_chunks_mut(CROSS * atoms.len()).enumerate().for_each(|(chunk, products)| {
            for (at, own) in own.iter().enumerate() {
                let positions = first + chunk * CROSS..;
                for (product, position) in products[at..].iter_mut().step_by(atoms.len()).zip(positions) {
                    *product = samples.cross(factors, own, position);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{DeviceChoice, open};
    use crate::model::ResNet;
    use crate::ops::{LastLayerGradients, Term};
    use crate::philox::{Key, Purpose, unit};

    const SEED: u64 = 20_261_201;
    const SAMPLES: usize = 75;

    fn numbers(stream: u32, len: usize) -> Vec<f32> {
        let key = Key { seed: SEED, purpose: Purpose::Generation, epoch: 0, step: 0 };
        (0..len as u32).map(|at| unit(key.block(stream, at)[0]) - 0.3).collect()
    }

    /// The bound of every estimate holds, and is not far from what is met.
    #[test]
    fn estimates_are_as_near_as_they_say() {
        println!("seed {SEED}");
        for (stream, classes, terms) in [(1, 10, 1), (2, 10, 2), (3, 100, 2), (4, 7, 1)] {
            let network = ResNet::resnet18(16, classes);
            let engine = open(DeviceChoice::Cpu, network, 1).unwrap();
            let term = |term: u32| Term {
                logit_gradient: engine
                    .upload("slopes", &numbers(20 * stream + term, SAMPLES * classes))
                    .unwrap(),
                features: engine
                    .upload("features", &numbers(20 * stream + 10 + term, SAMPLES * 128))
                    .unwrap(),
            };
            let gradients = LastLayerGradients { terms: (0..terms).map(term).collect(), len: SAMPLES };
            let factors = Factors::read(&engine, &gradients).unwrap();
            let places: Vec<u32> = (0..SAMPLES as u32).rev().collect();
            let target: Vec<f64> = numbers(5, classes * 129).into_iter().map(f64::from).collect();
            let mut atoms = Factored::new(&factors, &places, &target);
            // Closed and opened again, atoms change their slots.
            for (atom, open) in [(4, false), (74, false), (0, false), (4, true)] {
                atoms.set_open(atom, open);
            }
            let mut worst: f64 = 0.0;
            for weights in [&[][..], &[1e-3, 5.0], &[1e-9, 3.0, 1e3]] {
                atoms.set_residual(&[74, 0, 30][..weights.len()], weights).unwrap();
                assert_eq!(atoms.open.atoms.len(), SAMPLES - 2);
                for (slot, &atom) in atoms.open.atoms.iter().enumerate() {
                    let place = places[atom as usize] as usize;
                    let exact: f64 = atoms.residual.iter().map(|rows| rows.product(&factors, place)).sum();
                    let error = (atoms.open.estimates[slot] - exact).abs();
                    let bound = atoms.open.error * atoms.open.sizes[atom as usize];
                    assert!(error <= bound, "stream {stream}, atom {atom}: {error} of {bound}");
                    worst = worst.max(error / bound);
                }
            }
            println!("{classes} classes, {terms} terms: {worst} of the bound");
            assert!(worst > 1e-4, "{worst} of the bound: estimates are in single precision");
        }
    }
}
