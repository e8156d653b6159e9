//! Nonnegative orthogonal matching pursuit on explicit matrices: against a plain implementation in f64, against scipy's
//! nnls, and against what it must hold by definition.
//!
//! The fixture is written by `scripts/make-pursuit-fixtures.py`.

use std::sync::Mutex;

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use safetensors::SafeTensors;
use secateur::prune::PruneError;
use secateur::prune::gram::Gram;
use secateur::prune::pursuit::{Atoms, End, Limits, Pursuit, pursue};

use crate::common::matrix::{Matrix, dot, pursue_one};
use crate::common::{Random, SEED};

pub fn norm(vector: &[f64]) -> f64 {
    dot(vector, vector).sqrt()
}

/// Solves `matrix x = right` by Gaussian elimination with pivoting.
pub fn eliminate(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let len = right.len();
    for column in 0..len {
        let pivot = (column..len)
            .max_by(|&a, &b| matrix[a][column].abs().total_cmp(&matrix[b][column].abs()))
            .unwrap();
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        for row in column + 1..len {
            let factor = matrix[row][column] / matrix[column][column];
            let pivot_row = matrix[column].clone();
            for (value, pivot) in matrix[row].iter_mut().zip(&pivot_row) {
                *value -= factor * pivot;
            }
            right[row] -= factor * right[column];
        }
    }
    for row in (0..len).rev() {
        for k in row + 1..len {
            right[row] -= matrix[row][k] * right[k];
        }
        right[row] /= matrix[row][row];
    }
    right
}

/// The pursuit as one would write it down: explicit residuals, and the normal equations from scratch at each step.
/// Returns the atoms, their weights and how many were given up.
fn plain(problem: &Matrix, most: usize, ridge: f64) -> (Vec<usize>, Vec<f64>, usize) {
    let (mut active, mut weights, mut removals) = (Vec::<usize>::new(), Vec::<f64>::new(), 0);
    while active.len() < most {
        let residual = problem.residual(&active, &weights);
        let open = (0..problem.atoms.len()).filter(|atom| !active.contains(atom));
        let product = |atom: usize| dot(&problem.atoms[atom], &residual);
        let Some(best) = open.reduce(|a, b| if product(b) > product(a) { b } else { a }) else { break };
        if product(best) <= 1e-10 * norm(&problem.atoms[best]) * norm(&problem.target) {
            break;
        }
        active.push(best);
        weights.push(0.0);
        loop {
            let gram = |a: usize, b: usize| {
                dot(&problem.atoms[a], &problem.atoms[b]) + if a == b { ridge } else { 0.0 }
            };
            let matrix = active.iter().map(|&a| active.iter().map(|&b| gram(a, b)).collect()).collect();
            let right = active.iter().map(|&a| dot(&problem.atoms[a], &problem.target)).collect();
            let expected = eliminate(matrix, right);
            if expected.iter().all(|&w| w > 0.0) {
                weights = expected;
                break;
            }
            let moves = weights.iter().zip(&expected).filter(|(_, expected)| **expected <= 0.0);
            let share = moves.map(|(now, expected)| now / (now - expected)).fold(1.0, f64::min);
            let moved: Vec<f64> =
                weights.iter().zip(&expected).map(|(now, expected)| now + share * (expected - now)).collect();
            let kept: Vec<usize> = (0..active.len()).filter(|&i| moved[i] > 1e-14).collect();
            removals += active.len() - kept.len();
            active = kept.iter().map(|&i| active[i]).collect();
            weights = kept.iter().map(|&i| moved[i]).collect();
        }
    }
    (active, weights, removals)
}

/// Gaussian atoms, or ones like gradients: a shared direction and noise; the target half their sum, and noise.
fn random(stream: u32, count: usize, length: usize, shared: f32) -> Matrix {
    let mut random = Random::new(stream);
    let direction: Vec<f32> = random.normals(length, 1.0).iter().map(|value| shared * value.abs()).collect();
    let mut vector = |direction: &[f32]| -> Vec<f64> {
        let noise = random.normals(length, 1.0);
        noise.iter().zip(direction).map(|(noise, shared)| f64::from(noise + shared)).collect()
    };
    let atoms: Vec<Vec<f64>> = (0..count).map(|_| vector(&direction)).collect();
    let mut target: Vec<f64> = vector(&vec![0.0; length]).iter().map(|value| 4.0 * value).collect();
    for atom in &atoms {
        for (value, element) in target.iter_mut().zip(atom) {
            *value += 0.5 * element;
        }
    }
    Matrix::new(atoms, target)
}

/// What holds of every result: atoms are distinct and at most k, weights positive, the objective falls, and the records
/// are those of the explicit vectors.
fn check(problem: &Matrix, most: usize, ridge: f64, found: &Pursuit) {
    let mut atoms = found.atoms.clone();
    atoms.sort_unstable();
    atoms.dedup();
    assert_eq!(atoms.len(), found.atoms.len(), "an atom twice: {:?}", found.atoms);
    assert!(atoms.len() <= most && found.peak <= most);
    assert_eq!(found.weights.len(), found.atoms.len());
    assert!(found.weights.iter().all(|&weight| weight > 0.0), "{:?}", found.weights);
    assert!(found.objectives.windows(2).all(|pair| pair[1] < pair[0]), "{:?}", found.objectives);
    if ridge == 0.0 {
        assert!(found.residuals.windows(2).all(|pair| pair[1] <= pair[0]), "{:?}", found.residuals);
    }
    let residual = norm(&problem.residual(&found.atoms, &found.weights)) / norm(&problem.target);
    let last = found.residuals.last().copied().unwrap_or(1.0);
    assert!((residual - last).abs() < 1e-7, "residual {residual}, recorded {last}");
}

/// The conditions of Karush, Kuhn and Tucker: stationary on the chosen atoms, and no other pulls.
fn check_optimum(problem: &Matrix, ridge: f64, found: &Pursuit) {
    let residual = problem.residual(&found.atoms, &found.weights);
    for (atom, vector) in problem.atoms.iter().enumerate() {
        let pull = dot(vector, &residual);
        let scale = norm(vector) * norm(&problem.target);
        match found.atoms.iter().position(|&chosen| chosen == atom) {
            Some(at) => {
                assert!((pull - ridge * found.weights[at]).abs() <= 1e-9 * scale, "atom {atom}: {pull}");
            }
            None => assert!(pull <= 1e-9 * scale, "atom {atom} still pulls: {pull} of {scale}"),
        }
    }
}

#[test]
fn equals_the_plain_pursuit_at_every_budget() {
    println!("seed {SEED}");
    let mut removals = 0;
    for (stream, count, length, shared) in
        [(1, 10, 15, 0.0), (2, 25, 40, 0.0), (3, 24, 30, 2.0), (4, 40, 44, 3.0), (5, 40, 20, 1.0)]
    {
        let problem = random(stream, count, length, shared);
        for ridge in [0.0, 0.3, 20.0] {
            if ridge == 0.0 && count > length {
                continue; // the optimum is not unique
            }
            for most in 1..=count {
                let found = problem.pursue(most, ridge, 0.0);
                let (atoms, weights, removed) = plain(&problem, most, ridge);
                let what = format!("stream {stream}, ridge {ridge}, k {most}");
                assert_eq!(found.atoms, atoms, "{what}");
                assert_eq!(found.removals, removed, "{what}");
                for (actual, expected) in found.weights.iter().zip(&weights) {
                    assert!(
                        (actual - expected).abs() < 1e-8 * norm(&weights),
                        "{what}: {actual} and {expected}"
                    );
                }
                check(&problem, most, ridge, &found);
                match found.end {
                    End::Full => assert_eq!(atoms.len(), most, "{what}"),
                    _ => check_optimum(&problem, ridge, &found),
                }
                removals += found.removals;
            }
        }
    }
    println!("{removals} removals");
    assert!(removals > 50, "atoms must be given up, or that part is not tested: {removals}");
}

/// A fixture's tensors.
struct Fixture(Vec<u8>);

impl Fixture {
    fn load() -> Self {
        Self(std::fs::read("tests/fixtures/pursuit.safetensors").unwrap())
    }
    fn f64s(&self, name: &str) -> Option<Vec<f64>> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).ok()?;
        Some(tensor.data().chunks_exact(8).map(bytemuck::pod_read_unaligned).collect())
    }
    fn check(&self, name: &str, problem: &Matrix, ridge: f64, found: &Pursuit) {
        let expected = self.f64s(&format!("{name}.weights")).unwrap();
        let support: Vec<usize> = (0..expected.len()).filter(|&atom| expected[atom] > 0.0).collect();
        let mut atoms = found.atoms.clone();
        atoms.sort_unstable();
        assert_eq!(atoms, support, "{name}");
        for (&atom, weight) in found.atoms.iter().zip(&found.weights) {
            assert!((weight - expected[atom]).abs() < 1e-8 * norm(&expected), "{name}: atom {atom}");
        }
        let residual = self.f64s(&format!("{name}.residual")).unwrap()[0];
        assert!((found.residuals.last().unwrap() - residual).abs() < 1e-6, "{name}: {residual}");
        check(problem, problem.atoms.len(), ridge, found);
    }
}

#[test]
fn equals_scipys_nnls() {
    let fixture = Fixture::load();
    let mut problems = 0;
    while let Some(atoms) = fixture.f64s(&format!("{problems}.atoms")) {
        let target = fixture.f64s(&format!("{problems}.target")).unwrap();
        let ridge = fixture.f64s(&format!("{problems}.ridge")).unwrap()[0];
        let problem = Matrix::new(atoms.chunks_exact(target.len()).map(<[f64]>::to_vec).collect(), target);
        let count = problem.atoms.len();
        fixture.check(&problems.to_string(), &problem, ridge, &problem.pursue(count, ridge, 0.0));
        for most in [1, 3, 6] {
            fixture.check(&format!("{problems}.{most}"), &problem, ridge, &problem.pursue(most, ridge, 0.0));
        }
        problems += 1;
    }
    assert_eq!(problems, 7);
}

#[test]
fn known_sparse_weights_are_recovered() {
    println!("seed {SEED}");
    for stream in 0..20 {
        let mut random = Random::new(100 + stream);
        let (count, length, known) = (80, 200, 6);
        let atoms: Vec<Vec<f64>> = (0..count)
            .map(|_| random.normals(length, 1.0).into_iter().map(f64::from).collect::<Vec<f64>>())
            .map(|atom| atom.iter().map(|value| value / norm(&atom)).collect())
            .collect();
        let mut weights = vec![0.0; count];
        while weights.iter().filter(|weight| **weight > 0.0).count() < known {
            weights[random.word() as usize % count] = f64::from(random.uniform(1.0, 2.0));
        }
        let mut target = vec![0.0; length];
        for (atom, weight) in atoms.iter().zip(&weights) {
            for (value, element) in target.iter_mut().zip(atom) {
                *value += weight * element;
            }
        }
        let found = Matrix::new(atoms, target).pursue(count, 0.0, 1e-6);
        assert_eq!(found.end, End::Reached, "stream {stream}");
        let mut actual = vec![0.0; count];
        for (&atom, &weight) in found.atoms.iter().zip(&found.weights) {
            actual[atom] = weight;
        }
        let wrong = (0..count).find(|&atom| (actual[atom] - weights[atom]).abs() > 1e-6);
        assert_eq!(wrong, None, "stream {stream}: {:?}", found.atoms);
        assert_eq!(found.atoms.len(), known, "stream {stream}");
    }
}

/// The long atom comes first and must leave again when the short one points nearer to the target.
#[test]
fn an_atom_is_given_up_when_its_weight_would_be_negative() {
    let problem = Matrix::new(vec![vec![2.0, 1.0], vec![1.0, 0.1]], vec![1.0, 0.0]);
    assert_eq!(problem.pursue(1, 0.0, 0.0).atoms, [0]);
    let found = problem.pursue(2, 0.0, 0.0);
    assert_eq!((found.atoms.as_slice(), found.removals, found.end), ([1].as_slice(), 1, End::Optimal));
    assert!((found.weights[0] - 1.0 / 1.01).abs() < 1e-12, "{:?}", found.weights);
    assert_eq!(found.peak, 2);
}

/// An atom that was given up comes back when another makes it useful again.
#[test]
fn an_atom_that_was_given_up_is_a_candidate_again() {
    let mut came_back = 0;
    for stream in 0..40 {
        let problem = random(200 + stream, 30, 34, 2.0);
        let entered = Mutex::new(vec![0; 30]);
        let watched = Watched { inner: problem.gram(), entered: &entered };
        let limits = Limits { atoms: 30, ridge: 0.0, tolerance: 0.0 };
        let found = pursue_one(Box::new(watched), limits);
        check_optimum(&problem, 0.0, &found);
        assert_eq!(found.objectives.len(), found.atoms.len() + found.removals, "each step takes one atom in");
        came_back += entered.into_inner().unwrap().iter().filter(|count| **count > 1).count();
    }
    println!("seed {SEED}: {came_back} atoms came back");
    assert!(came_back > 0);
}

/// Counts how often each atom enters.
struct Watched<'a> {
    inner: Gram,
    entered: &'a Mutex<Vec<usize>>,
}

impl Atoms for Watched<'_> {
    fn target_square(&self) -> f64 {
        self.inner.target_square()
    }
    fn target_products(&self) -> &[f64] {
        self.inner.target_products()
    }
    fn squares(&self) -> &[f64] {
        self.inner.squares()
    }
    fn set_open(&mut self, atom: usize, open: bool) {
        self.entered.lock().unwrap()[atom] += usize::from(!open);
        self.inner.set_open(atom, open);
    }
    fn set_residual(&mut self, atoms: &[usize], weights: &[f64]) -> Result<(), PruneError> {
        self.inner.set_residual(atoms, weights)
    }
    fn best(&self, floors: &[f64]) -> Option<usize> {
        self.inner.best(floors)
    }
    fn cross(&mut self, atoms: &[usize], first: usize, products: &mut [f64]) {
        self.inner.cross(atoms, first, products);
    }
}

#[test]
fn of_equal_atoms_the_first_is_taken_and_none_twice() {
    println!("seed {SEED}");
    let single = random(300, 12, 20, 1.0);
    let thrice = Matrix::new([&single.atoms[..]; 3].concat(), single.target.clone());
    let (one, three) = (single.pursue(12, 0.0, 0.0), thrice.pursue(36, 0.0, 0.0));
    check(&thrice, 36, 0.0, &three);
    assert_eq!(one.atoms, three.atoms, "copies have higher indices");
    // A ridge prefers to share the weight among the copies.
    let three = thrice.pursue(36, 0.5, 0.0);
    check(&thrice, 36, 0.5, &three);
    check_optimum(&thrice, 0.5, &three);
    assert!(three.atoms.len().is_multiple_of(3) && three.atoms.len() > 3, "{:?}", three.atoms);
}

#[test]
fn a_nearly_dependent_atom_is_passed_over() {
    // The second pulls, but its part outside of the first is a millionth of it.
    let atoms = vec![vec![1.1, 0.0], vec![1.0, 1e-6], vec![0.0, 1e-7]];
    let problem = Matrix::new(atoms.clone(), vec![1.0, 1.0]);
    let found = problem.pursue(3, 0.0, 1e-9);
    assert_eq!((found.atoms.as_slice(), found.passed_over), ([0, 2].as_slice(), 1), "{found:?}");
    assert!((found.weights[1] - 1e7).abs() < 1.0);
    // A ridge makes every set of atoms independent.
    let found = problem.pursue(3, 0.1, 0.0);
    assert_eq!(found.passed_over, 0);
    check_optimum(&problem, 0.1, &found);
}

#[test]
fn in_few_dimensions_few_atoms_suffice() {
    println!("seed {SEED}");
    for stream in 0..20 {
        let mut problem = random(400 + stream, 60, 3, 0.5);
        let found = problem.pursue(60, 0.0, 1e-7);
        assert!(found.atoms.len() <= 3, "{:?} in 3 dimensions", found.atoms);
        check(&problem, 60, 0.0, &found);
        // A target that no nonnegative weights reach.
        let away: Vec<f64> = problem.atoms.iter().map(|atom| atom[0].abs()).collect();
        for (atom, first) in problem.atoms.iter_mut().zip(away) {
            atom[0] = first;
        }
        let problem = Matrix::new(problem.atoms, vec![-1.0, 0.3, 0.2]);
        let found = problem.pursue(60, 0.0, 0.0);
        check(&problem, 60, 0.0, &found);
        check_optimum(&problem, 0.0, &found);
    }
}

#[test]
fn ends_are_defined() {
    let problem = random(500, 12, 20, 1.0);
    let none = problem.pursue(0, 0.0, 0.0);
    assert_eq!(none, Pursuit { end: End::Full, ..Pursuit::default() });
    let full = problem.pursue(4, 0.0, 0.0);
    assert_eq!((full.atoms.len(), full.end), (4, End::Full));
    let early = problem.pursue(12, 0.0, 0.5);
    assert_eq!(early.end, End::Reached);
    assert!(
        early.residuals.iter().rev().skip(1).all(|&left| left > 0.5)
            && *early.residuals.last().unwrap() <= 0.5
    );
    // No target, no atoms, and no atom that points towards the target.
    let zero = Matrix::new(problem.atoms.clone(), vec![0.0; 20]).pursue(5, 0.0, 0.0);
    assert_eq!(zero, Pursuit::default());
    assert_eq!(Matrix::new(Vec::new(), vec![1.0]).pursue(5, 0.0, 0.0), Pursuit::default());
    let away = Matrix::new(vec![vec![-1.0, 0.0], vec![0.0, 1.0], vec![0.0, 0.0]], vec![1.0, 0.0]);
    assert_eq!(away.pursue(3, 0.0, 0.0), Pursuit::default());
}

#[test]
fn pursuits_can_be_stopped_between_rounds() {
    let problems = [510, 511].map(|stream| random(stream, 60, 80, 1.0));
    let limits = Limits { atoms: 60, ridge: 0.0, tolerance: 0.0 };
    let mut asked = 0;
    let mut pursue_until = |last| {
        asked = 0;
        let atoms = problems.iter().map(|problem| (Box::new(problem.gram()) as Box<dyn Atoms>, limits));
        let found = pursue(atoms.collect(), &mut || {
            asked += 1;
            asked < last
        });
        (found, asked)
    };
    let (stopped, asked) = pursue_until(3);
    assert!(matches!(stopped, Err(PruneError::Stopped)) && asked == 3);
    // Rounds of 16 steps for both, and in the end each is what it is alone.
    let (found, asked) = pursue_until(100);
    let found = found.unwrap();
    let steps = found.iter().map(|found| found.objectives.len()).max().unwrap();
    assert!((steps / 16..=steps / 16 + 1).contains(&asked), "asked {asked} times in {steps} steps");
    for (problem, found) in problems.iter().zip(found) {
        assert_eq!(problem.pursue(60, 0.0, 0.0), found);
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    let limits = Limits { atoms: 2, ridge: 0.0, tolerance: 0.0 };
    let refuse = |atoms: Vec<Vec<f64>>, target: Vec<f64>, expected: &str| {
        let atoms: Box<dyn Atoms> = Box::new(Matrix::new(atoms, target).gram());
        let error = pursue(vec![(atoms, limits)], &mut || true).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("expected a finite number"), "{error}");
    };
    refuse(vec![vec![1.0], vec![f64::NAN]], vec![1.0], "atom 1: an inner product is NaN");
    refuse(vec![vec![1.0]], vec![f64::INFINITY], "squared norm is inf");
    // Finite with the target, but not with the first atom.
    refuse(vec![vec![1e200, 1.0], vec![1e200, 0.0]], vec![0.0, 1.0], "inner product is inf");
}

/// Small whole numbers make zeros, copies, ties and dependent atoms common.
#[test]
fn every_small_problem_has_a_defined_answer() {
    println!("seed {SEED}");
    let config = ProptestConfig {
        cases: 600,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(SEED),
        ..ProptestConfig::default()
    };
    let strategy = (1..6usize, 0..9usize).prop_flat_map(|(length, count)| {
        let vector = || prop::collection::vec((-3..4i8).prop_map(f64::from), length);
        let ridge = prop_oneof![Just(0.0), Just(0.5), Just(4.0)];
        (prop::collection::vec(vector(), count), vector(), 0..10usize, ridge)
    });
    let test = |(atoms, target, most, ridge): (Vec<Vec<f64>>, Vec<f64>, usize, f64)| {
        let problem = Matrix::new(atoms, target);
        let found = problem.pursue(most, ridge, 0.0);
        if norm(&problem.target) == 0.0 {
            assert_eq!(found, Pursuit::default());
            return Ok(());
        }
        check(&problem, most, ridge, &found);
        if found.end == End::Optimal && found.passed_over == 0 {
            check_optimum(&problem, ridge, &found);
        }
        assert_ne!(found.end, End::Steps);
        assert_eq!(problem.pursue(most, ridge, 0.0), found, "twice the same");
        Ok(())
    };
    TestRunner::new(config).run(&strategy, test).unwrap();
}
