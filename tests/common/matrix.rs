//! Explicit atoms: the columns of a matrix, with every inner product written out.

use secateur::prune::PruneError;
use secateur::prune::pursuit::{Atoms, Limits, Pursuit, pursue};

/// Atoms and a target as vectors.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub atoms: Vec<Vec<f64>>,
    pub target: Vec<f64>,
    squares: Vec<f64>,
    products: Vec<f64>,
    kept: Vec<Vec<f64>>,
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Matrix {
    pub fn new(atoms: Vec<Vec<f64>>, target: Vec<f64>) -> Self {
        let squares = atoms.iter().map(|atom| dot(atom, atom)).collect();
        let products = atoms.iter().map(|atom| dot(atom, &target)).collect();
        Self { atoms, target, squares, products, kept: Vec::new() }
    }

    /// The pursuit of at most `most` atoms.
    pub fn pursue(&self, most: usize, ridge: f64, tolerance: f64) -> Pursuit {
        let limits = Limits { atoms: most, ridge, tolerance };
        pursue(&mut self.clone(), &limits, &mut || true).unwrap()
    }

    /// `A w - b`, negated.
    pub fn residual(&self, atoms: &[usize], weights: &[f64]) -> Vec<f64> {
        let mut residual = self.target.clone();
        for (&atom, weight) in atoms.iter().zip(weights) {
            for (value, element) in residual.iter_mut().zip(&self.atoms[atom]) {
                *value -= weight * element;
            }
        }
        residual
    }
}

impl Atoms for Matrix {
    fn count(&self) -> usize {
        self.atoms.len()
    }
    fn target_square(&self) -> f64 {
        dot(&self.target, &self.target)
    }
    fn target_products(&self) -> &[f64] {
        &self.products
    }
    fn squares(&self) -> &[f64] {
        &self.squares
    }
    fn keep_column(&mut self, atom: usize, slot: usize) -> Result<Vec<f64>, PruneError> {
        let column: Vec<f64> = self.atoms.iter().map(|other| dot(other, &self.atoms[atom])).collect();
        assert!(slot <= self.kept.len(), "slot {slot} of {}", self.kept.len());
        self.kept.resize(self.kept.len().max(slot + 1), Vec::new());
        self.kept[slot] = column.clone();
        Ok(column)
    }
    fn residual_products(&mut self, weights: &[f64]) -> Result<Vec<f64>, PruneError> {
        assert_eq!(weights.len(), self.kept.len(), "a weight for each slot");
        let mut products = self.products.clone();
        for (column, weight) in self.kept.iter().zip(weights) {
            for (product, element) in products.iter_mut().zip(column) {
                *product -= weight * element;
            }
        }
        Ok(products)
    }
}
