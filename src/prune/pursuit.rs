//! Nonnegative orthogonal matching pursuit: few atoms whose weighted sum comes near a target.
//!
//! Minimises `|A w - b|^2 + ridge |w|^2` over w >= 0 with at most k weights above zero, greedily: the algorithm of Lawson
//! and Hanson (Solving Least Squares Problems, 1974, chapter 23) for nonnegative least squares, ended at k atoms. It is the
//! pursuit of GRAD-MATCH (Killamsetty et al., ICML 2021) with three differences from its public code: an atom enters once,
//! the normal equations are not solved from scratch but a Cholesky factor is updated, and where a weight would fall below
//! zero the solution moves only as far as nonnegativity allows, rather than losing the smallest weight.
//!
//! It needs inner products alone, so atoms can be gradients that no one ever writes out. All norms come from them, in
//! f64: a residual is exact to about 1e-8 of the target.

use super::cholesky::Factor;
use super::{PruneError, Result};

/// Correlations up to this share of `|a| |b|` are rounding errors.
const NOISE: f64 = 1e-12;
/// Steps allowed for each atom there is to choose from, as in the published algorithm.
const STEPS_PER_ATOM: usize = 3;

/// Atoms and a target, known by their inner products.
pub trait Atoms {
    /// Atoms to choose from.
    fn count(&self) -> usize;

    /// `<b, b>`.
    fn target_square(&self) -> f64;

    /// `<a_i, b>` of every atom.
    fn target_products(&self) -> &[f64];

    /// `<a_i, a_i>` of every atom.
    fn squares(&self) -> &[f64];

    /// `<a_i, a_atom>` of every atom, kept as column `slot` as well. Slots are taken in order, and again when they are
    /// free: `slot` is at most the number of slots ever used.
    fn keep_column(&mut self, atom: usize, slot: usize) -> Result<Vec<f64>>;

    /// `<a_i, b> - sum_s weights[s] column_s[i]` of every atom, over the slots used so far.
    fn residual_products(&mut self, weights: &[f64]) -> Result<Vec<f64>>;
}

/// When a pursuit ends.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// k, the most atoms to choose.
    pub atoms: usize,
    /// The factor on `|w|^2`.
    pub ridge: f64,
    /// It ends where `|A w - b| / |b|` is no larger.
    pub tolerance: f64,
}

/// Why a pursuit ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// It has as many atoms as it may.
    Full,
    /// No atom that is left correlates with the residual: no weights over all atoms are better.
    #[default]
    Optimal,
    /// The residual is within the tolerance.
    Reached,
    /// Rounding alone moves the objective; the solution before is the result.
    Stalled,
    /// As many steps as allowed.
    Steps,
}

/// What a pursuit found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pursuit {
    /// The chosen atoms, in the order in which they came.
    pub atoms: Vec<usize>,
    /// The weight of each, above zero.
    pub weights: Vec<f64>,
    /// `|A w - b| / |b|` after each step.
    pub residuals: Vec<f64>,
    /// `(|A w - b|^2 + ridge |w|^2) / |b|^2` after each step: it falls with every one.
    pub objectives: Vec<f64>,
    pub end: End,
    /// The most atoms held at once.
    pub peak: usize,
    /// How often an atom was given up again.
    pub removals: usize,
    /// Atoms passed over because they depend on chosen ones, or because rounding alone spoke for them.
    pub passed_over: usize,
}

/// The atoms in use.
#[derive(Default)]
struct Active {
    atoms: Vec<usize>,
    /// Where the column of each is kept.
    slots: Vec<usize>,
    weights: Vec<f64>,
    factor: Factor,
    /// Slots of atoms that were given up; the last is taken first.
    free: Vec<usize>,
    /// Slots ever used.
    used: usize,
}

impl Active {
    fn take_slot(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            self.used - 1
        })
    }

    fn remove(&mut self, position: usize) -> usize {
        self.factor.remove(position);
        self.weights.remove(position);
        self.free.push(self.slots.remove(position));
        self.atoms.remove(position)
    }

    fn weights_by_slot(&self) -> Vec<f64> {
        let mut by_slot = vec![0.0; self.used];
        for (&slot, &weight) in self.slots.iter().zip(&self.weights) {
            by_slot[slot] = weight;
        }
        by_slot
    }

    /// Moves to the best nonnegative weights of these atoms, and gives up those whose weight meets zero on the way.
    /// Returns those.
    fn solve(&mut self) -> Vec<usize> {
        let mut removed = Vec::new();
        loop {
            let expected = self.factor.solve();
            // How far the weights can move before the first meets zero.
            let mut share = 1.0;
            let mut first = None;
            for (position, (&weight, &expected)) in self.weights.iter().zip(&expected).enumerate() {
                if expected <= 0.0 {
                    let actual = weight / (weight - expected);
                    // 0 / 0 where both are zero.
                    let actual = if actual.is_nan() { 0.0 } else { actual };
                    if first.is_none() || actual < share {
                        (share, first) = (actual, Some(position));
                    }
                }
            }
            let Some(first) = first else {
                self.weights = expected;
                return removed;
            };
            for (weight, expected) in self.weights.iter_mut().zip(&expected) {
                *weight += share * (expected - *weight);
            }
            self.weights[first] = 0.0;
            for position in (0..self.weights.len()).rev() {
                if self.weights[position] <= 0.0 {
                    removed.push(self.remove(position));
                }
            }
        }
    }
}

/// Chooses atoms. `go_on` is asked before each step.
///
/// Ties go to the atom with the lowest index. An atom that was given up is a candidate again; one that depends on chosen
/// atoms is not. A target of length zero is met by no atoms.
///
/// # Errors
/// [`PruneError::Invalid`] for an inner product that is no finite number; [`PruneError::Stopped`] if `go_on` says so; and
/// the errors of the atoms.
pub fn pursue(source: &mut dyn Atoms, limits: &Limits, go_on: &mut dyn FnMut() -> bool) -> Result<Pursuit> {
    let target_square = source.target_square();
    if !target_square.is_finite() {
        return Err(PruneError::Invalid(format!(
            "target of a pursuit: its squared norm is {target_square}, expected a finite number"
        )));
    }
    let mut found = Pursuit::default();
    if target_square == 0.0 {
        return Ok(found);
    }
    let count = source.count();
    all_finite(source.squares())?;
    let noise: Vec<f64> =
        source.squares().iter().map(|square| NOISE * (square * target_square).sqrt()).collect();
    let right = source.target_products().to_vec();
    all_finite(&right)?;
    let mut products = right.clone();
    let mut active = Active::default();
    // Neither in use nor passed over.
    let mut open = vec![true; count];
    let mut objective = target_square;
    let mut residual = 1.0;
    found.end = loop {
        if residual <= limits.tolerance {
            break End::Reached;
        }
        if active.atoms.len() >= limits.atoms {
            break End::Full;
        }
        if found.objectives.len() >= STEPS_PER_ATOM * count.max(1) {
            break End::Steps;
        }
        if !go_on() {
            return Err(PruneError::Stopped);
        }
        if active.used > 0 {
            products = source.residual_products(&active.weights_by_slot())?;
            all_finite(&products)?;
        }
        let before = (active.atoms.clone(), active.weights.clone());
        let Some(atom) = enter(source, limits.ridge, &right, &products, &noise, &mut open, &mut active)?
        else {
            break End::Optimal;
        };
        found.peak = found.peak.max(active.atoms.len());
        let removed = active.solve();
        if active.atoms == before.0 {
            // It was given up at once: its correlation was a rounding error.
            active.weights = before.1;
            continue;
        }
        found.removals += removed.len();
        for atom in removed {
            open[atom] = true;
        }
        let reached = target_square - active.factor.explained();
        if reached.is_nan() || reached >= objective {
            open[atom] = true;
            (active.atoms, active.weights) = before;
            break End::Stalled;
        }
        objective = reached;
        let penalty = limits.ridge * active.weights.iter().map(|weight| weight * weight).sum::<f64>();
        residual = ((objective - penalty).max(0.0) / target_square).sqrt();
        found.residuals.push(residual);
        found.objectives.push(objective.max(0.0) / target_square);
    };
    for &atom in &active.atoms {
        open[atom] = true;
    }
    found.passed_over = open.iter().filter(|open| !**open).count();
    (found.atoms, found.weights) = (active.atoms, active.weights);
    Ok(found)
}

/// Takes in the atom that correlates best with the residual, at weight zero; `None` if none does.
fn enter(
    source: &mut dyn Atoms,
    ridge: f64,
    right: &[f64],
    products: &[f64],
    noise: &[f64],
    open: &mut [bool],
    active: &mut Active,
) -> Result<Option<usize>> {
    loop {
        let mut best: Option<usize> = None;
        for (atom, &product) in products.iter().enumerate() {
            if open[atom] && product > noise[atom] && best.is_none_or(|best| product > products[best]) {
                best = Some(atom);
            }
        }
        let Some(atom) = best else { return Ok(None) };
        open[atom] = false;
        let slot = active.take_slot();
        let column = source.keep_column(atom, slot)?;
        all_finite(&column)?;
        let cross: Vec<f64> = active.atoms.iter().map(|&atom| column[atom]).collect();
        if active.factor.append(&cross, column[atom] + ridge, right[atom]) {
            active.atoms.push(atom);
            active.slots.push(slot);
            active.weights.push(0.0);
            return Ok(Some(atom));
        }
        active.free.push(slot);
    }
}

/// Refuses inner products that are no numbers, by the atom.
fn all_finite(products: &[f64]) -> Result<()> {
    match products.iter().position(|product| !product.is_finite()) {
        None => Ok(()),
        Some(atom) => Err(PruneError::Invalid(format!(
            "atom {atom}: an inner product is {}, expected a finite number",
            products[atom]
        ))),
    }
}
