//! Explicit atoms: the columns of a matrix, with every inner product written out.

use secateur::prune::gram::Gram;
use secateur::prune::pursuit::{Atoms, Limits, Pursuit, pursue};

/// Atoms and a target as vectors.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub atoms: Vec<Vec<f64>>,
    pub target: Vec<f64>,
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Matrix {
    pub fn new(atoms: Vec<Vec<f64>>, target: Vec<f64>) -> Self {
        Self { atoms, target }
    }

    /// The atoms by their inner products.
    pub fn gram(&self) -> Gram {
        let products = self.atoms.iter().map(|atom| dot(atom, &self.target)).collect();
        let matrix = self.atoms.iter().flat_map(|a| self.atoms.iter().map(|b| dot(a, b)));
        Gram::new(dot(&self.target, &self.target), products, matrix.collect()).unwrap()
    }

    /// The pursuit of at most `most` atoms.
    pub fn pursue(&self, most: usize, ridge: f64, tolerance: f64) -> Pursuit {
        pursue_one(Box::new(self.gram()), Limits { atoms: most, ridge, tolerance })
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

/// The pursuit of one problem.
pub fn pursue_one(atoms: Box<dyn Atoms + '_>, limits: Limits) -> Pursuit {
    pursue(vec![(atoms, limits)], &mut || true).unwrap().remove(0)
}
