//! Atoms by their Gram matrix: for few of them it is smaller than the factors, and a correlation is a sum over the atoms in use.

use rayon::prelude::*;

use super::Result;
use super::atoms::{Factors, Rows, Used};
use super::pursuit::{Atoms, all_finite};
use crate::cpu::doubles::Doubles;

/// Atoms and a target, known by all of their inner products.
#[derive(Clone)]
pub struct Gram {
    doubles: Doubles,
    /// `<a_i, a_j>`, row after row.
    matrix: Vec<f64>,
    squares: Vec<f64>,
    target_square: f64,
    target_products: Vec<f64>,
    /// `<a_i, R>`.
    products: Vec<f64>,
    /// The atoms of the residual.
    used: Vec<usize>,
    open: Vec<bool>,
}

impl Gram {
    /// `<b, b>`, `<a_i, b>` and `<a_i, a_j>` row after row, of which those with `j <= i` are read.
    ///
    /// # Errors
    /// Those of [`Doubles::new`].
    pub fn new(target_square: f64, target_products: Vec<f64>, matrix: Vec<f64>) -> Result<Self> {
        Ok(Self::with(Doubles::new()?, target_square, target_products, matrix))
    }

    fn with(doubles: Doubles, target_square: f64, target_products: Vec<f64>, mut matrix: Vec<f64>) -> Self {
        let count = target_products.len();
        for i in 0..count {
            for j in 0..i {
                matrix[j * count + i] = matrix[i * count + j];
            }
        }
        Self {
            doubles,
            squares: (0..count).map(|i| matrix[i * (count + 1)]).collect(),
            matrix,
            target_square,
            products: target_products.clone(),
            target_products,
            used: Vec::new(),
            open: vec![true; count],
        }
    }

    /// One atom a sample at `places`. The target is one vector of `classes x (features + 1)` numbers.
    pub fn of_samples(factors: &Factors, places: &[u32], target: &[f64]) -> Self {
        let rows = Rows::of_vector(factors, target);
        let product = |&place: &u32| rows.iter().map(|rows| rows.product(factors, place as usize)).sum();
        let products = places.par_iter().map(product).collect();
        let count = places.len();
        let mut matrix = vec![0.0; count * count];
        let mut samples = Used::new(factors);
        places.iter().for_each(|&place| samples.push(factors, place as usize));
        matrix.par_chunks_exact_mut(count.max(1)).enumerate().for_each(|(i, row)| {
            let own = factors.widen(places[i] as usize);
            for (j, product) in row[..=i].iter_mut().enumerate() {
                *product = samples.cross(factors, &own, j);
            }
        });
        Self::with(factors.doubles, factors.doubles.dot(target, target), products, matrix)
    }

    /// One atom for each list of places: the sum of the gradients there.
    pub fn of_batches(factors: &Factors, batches: &[&[u32]], target: &[f64]) -> Self {
        let (doubles, count) = (factors.doubles, batches.len());
        let (mut products, mut matrix) = (vec![0.0; count], vec![0.0; count * count]);
        // Ten classes at a time: explicit atoms are large.
        for (tens, target) in Rows::of_vector(factors, target).iter().enumerate() {
            let zero = Rows::zero(factors, tens);
            let sum = |batch: &&[u32]| {
                let (mut samples, mut sum) = (Used::new(factors), zero.clone());
                batch.iter().for_each(|&place| samples.push(factors, place as usize));
                sum.subtract(&zero, factors, &samples, &vec![-1.0; batch.len()]);
                sum
            };
            let atoms: Vec<Rows> = batches.par_iter().map(sum).collect();
            products
                .par_iter_mut()
                .zip(&atoms)
                .for_each(|(product, atom)| *product += atom.dot(doubles, target));
            matrix.par_chunks_exact_mut(count.max(1)).enumerate().for_each(|(i, row)| {
                for (product, other) in row.iter_mut().zip(&atoms[..=i]) {
                    *product += atoms[i].dot(doubles, other);
                }
            });
        }
        Self::with(doubles, doubles.dot(target, target), products, matrix)
    }

    fn row(&self, atom: usize) -> &[f64] {
        let count = self.squares.len();
        &self.matrix[atom * count..][..count]
    }
}

impl Atoms for Gram {
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
        self.open[atom] = open;
    }

    fn set_residual(&mut self, atoms: &[usize], weights: &[f64]) -> Result<()> {
        self.used.clear();
        self.used.extend(atoms);
        let mut products = std::mem::take(&mut self.products);
        products.copy_from_slice(&self.target_products);
        for (&atom, weight) in atoms.iter().zip(weights) {
            self.doubles.add(&mut products, -weight, self.row(atom));
        }
        self.products = products;
        all_finite(&self.products, |atom| atom)
    }

    fn best(&self, floors: &[f64]) -> Option<usize> {
        let mut best: Option<usize> = None;
        for (atom, &product) in self.products.iter().enumerate() {
            let better = best.is_none_or(|best| product > self.products[best]);
            if self.open[atom] && product > floors[atom] && better {
                best = Some(atom);
            }
        }
        best
    }

    fn cross(&mut self, atoms: &[usize], first: usize, products: &mut [f64]) {
        for (products, &used) in products.chunks_exact_mut(atoms.len()).zip(&self.used[first..]) {
            let row = self.row(used);
            products.iter_mut().zip(atoms).for_each(|(product, &atom)| *product = row[atom]);
        }
    }
}
