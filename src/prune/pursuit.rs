//! Nonnegative orthogonal matching pursuit: few atoms whose weighted sum comes near a target.
//!
//! Minimises `|A w - b|^2 + ridge |w|^2` over w >= 0 with at most k weights above zero, greedily: the algorithm of Lawson
//! and Hanson (Solving Least Squares Problems, 1974, chapter 23) for nonnegative least squares, ended at k atoms. It is the
//! pursuit of GRAD-MATCH (Killamsetty et al., ICML 2021) with three differences from its public code: an atom enters once,
//! the normal equations are not solved from scratch but a Cholesky factor is updated, and where a weight would fall below
//! zero the solution moves only as far as nonnegativity allows, rather than losing the smallest weight.
//!
//! The residual is found anew from the weights at each step; norms come from the factor, in f64: a residual is exact to about 1e-8 of the
//! target. Pursuits are independent of each other and run side by side; no bit depends on the number of threads.

use rayon::prelude::*;

use super::cholesky::{Factor, Pending};
use super::{PruneError, Result};
use crate::cpu::doubles::Doubles;

/// Correlations up to this share of `|a| |b|` are rounding errors.
const NOISE: f64 = 1e-12;
/// Steps allowed for each atom there is to choose from, as in the published algorithm.
const STEPS_PER_ATOM: usize = 3;
/// Steps of each pursuit between two questions whether to go on.
const ROUND: usize = 16;
/// Atoms whose products with those in use are made at once, the best and likely next ones: what is in use is read once for all.
const BATCH: usize = 8;
/// Atoms whose products are kept until they enter.
const POOL: usize = 64;

/// Atoms and a target, and what is left of it at some weights: the residual, which is the target at first.
pub trait Atoms: Send {
    /// `<b, b>`.
    fn target_square(&self) -> f64;

    /// `<a_i, b>` of every atom.
    fn target_products(&self) -> &[f64];

    /// `<a_i, a_i>` of every atom.
    fn squares(&self) -> &[f64];

    /// Whether [`Atoms::best`] may name this atom; it may name any at first.
    fn set_open(&mut self, atom: usize, open: bool);

    /// Makes `b - sum_s weights[s] a_{atoms[s]}` the residual; these are its atoms.
    ///
    /// # Errors
    /// [`PruneError::Invalid`] where that is not finite.
    fn set_residual(&mut self, atoms: &[usize], weights: &[f64]) -> Result<()>;

    /// Of the open atoms whose inner product with the residual is above their floor, the one with the largest, of equals the first.
    fn best(&self, floors: &[f64]) -> Option<usize>;

    /// Up to so many open atoms that may be the best after some more steps; none where their products cost little.
    fn likely(&self, _most: usize) -> Vec<usize> {
        Vec::new()
    }

    /// For each atom of the residual, from position `first` on, its inner product with each of `atoms`.
    fn cross(&mut self, atoms: &[usize], first: usize, products: &mut [f64]);
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

impl Pursuit {
    /// The chosen atoms with their weights.
    pub fn weighted(&self) -> impl Iterator<Item = (usize, f64)> {
        self.atoms.iter().copied().zip(self.weights.iter().copied())
    }
}

/// The atoms in use.
struct Active {
    atoms: Vec<usize>,
    weights: Vec<f64>,
    factor: Factor,
}

impl Active {
    /// Moves to the best nonnegative weights of these atoms, and gives up those whose weight meets zero on the way.
    /// Returns those.
    fn solve(&mut self, pool: &mut [Pending]) -> Vec<usize> {
        let mut removed = Vec::new();
        loop {
            let expected = self.factor.solution();
            // How far the weights can move before the first meets zero.
            let mut share = 1.0;
            let mut first = None;
            for (position, (&weight, &expected)) in self.weights.iter().zip(expected).enumerate() {
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
                self.weights.copy_from_slice(expected);
                return removed;
            };
            for (weight, expected) in self.weights.iter_mut().zip(expected) {
                *weight += share * (expected - *weight);
            }
            self.weights[first] = 0.0;
            for position in (0..self.weights.len()).rev() {
                if self.weights[position] <= 0.0 {
                    self.factor.remove(position, pool);
                    self.weights.remove(position);
                    removed.push(self.atoms.remove(position));
                }
            }
        }
    }
}

/// Chooses atoms, in one pursuit for each of `problems`. `go_on` is asked before each round of 16 steps of every pursuit.
///
/// Ties go to the atom with the lowest index. An atom that was given up is a candidate again; one that depends on chosen
/// atoms is not. A target of length zero is met by no atoms.
///
/// # Errors
/// [`PruneError::Invalid`] for an inner product that is no finite number; [`PruneError::Stopped`] if `go_on` says so.
pub fn pursue(
    problems: Vec<(Box<dyn Atoms + '_>, Limits)>,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Vec<Pursuit>> {
    let doubles = Doubles::new()?;
    let problems = problems.into_iter().map(|(atoms, limits)| Search::new(doubles, atoms, limits));
    let mut searches = problems.collect::<Result<Vec<_>>>()?;
    while searches.iter().any(|search| search.end.is_none()) {
        if !go_on() {
            return Err(PruneError::Stopped);
        }
        // Collected in their order: of several errors the first is reported.
        let rounds: Vec<Result<()>> = searches.par_iter_mut().map(Search::round).collect();
        rounds.into_iter().collect::<Result<()>>()?;
    }
    Ok(searches.into_iter().map(Search::finish).collect())
}

/// A pursuit between two steps.
struct Search<'a> {
    source: Box<dyn Atoms + 'a>,
    limits: Limits,
    /// Of each atom, the correlation that may be a rounding error.
    noise: Vec<f64>,
    active: Active,
    /// Atoms and weights before the present step.
    before: (Vec<usize>, Vec<f64>),
    /// Whether the residual of the source is that of the weights.
    current: bool,
    /// Atoms that may enter next, and their rows.
    pool: (Vec<usize>, Vec<Pending>),
    /// Workspace.
    products: Vec<f64>,
    objective: f64,
    residual: f64,
    found: Pursuit,
    end: Option<End>,
}

impl<'a> Search<'a> {
    fn new(doubles: Doubles, source: Box<dyn Atoms + 'a>, limits: Limits) -> Result<Self> {
        let target_square = source.target_square();
        if !target_square.is_finite() {
            return Err(PruneError::Invalid(format!(
                "target of a pursuit: its squared norm is {target_square}, expected a finite number"
            )));
        }
        all_finite(source.squares(), |atom| atom)?;
        all_finite(source.target_products(), |atom| atom)?;
        let noise = |square: &f64| NOISE * (square * target_square).sqrt();
        Ok(Self {
            noise: source.squares().iter().map(noise).collect(),
            source,
            limits,
            active: Active { atoms: Vec::new(), weights: Vec::new(), factor: Factor::new(doubles) },
            before: Default::default(),
            current: true,
            pool: Default::default(),
            products: Vec::new(),
            objective: target_square,
            residual: 1.0,
            found: Pursuit::default(),
            end: (target_square == 0.0).then_some(End::Optimal),
        })
    }

    fn round(&mut self) -> Result<()> {
        for _ in 0..ROUND {
            if self.end.is_none() {
                self.end = self.step()?;
            }
        }
        Ok(())
    }

    /// Takes in one atom; returns why there is none to take in.
    fn step(&mut self) -> Result<Option<End>> {
        if self.residual <= self.limits.tolerance {
            return Ok(Some(End::Reached));
        }
        if self.active.atoms.len() >= self.limits.atoms {
            return Ok(Some(End::Full));
        }
        if self.found.objectives.len() >= STEPS_PER_ATOM * self.noise.len().max(1) {
            return Ok(Some(End::Steps));
        }
        if !self.current {
            self.source.set_residual(&self.active.atoms, &self.active.weights)?;
            self.current = true;
        }
        self.before.0.clone_from(&self.active.atoms);
        self.before.1.clone_from(&self.active.weights);
        if !self.enter()? {
            return Ok(Some(End::Optimal));
        }
        self.found.peak = self.found.peak.max(self.active.atoms.len());
        let removed = self.active.solve(&mut self.pool.1);
        if self.active.atoms == self.before.0 {
            // It was given up at once: its correlation was a rounding error.
            self.active.weights.clone_from(&self.before.1);
            self.found.passed_over += 1;
            return Ok(None);
        }
        let (target_square, objective) = (self.source.target_square(), self.objective);
        self.objective = target_square - self.active.factor.explained();
        if self.objective.is_nan() || self.objective >= objective {
            (self.active.atoms, self.active.weights) = std::mem::take(&mut self.before);
            return Ok(Some(End::Stalled));
        }
        self.found.removals += removed.len();
        removed.iter().for_each(|&atom| self.source.set_open(atom, true));
        self.current = false;
        let penalty =
            self.limits.ridge * self.active.weights.iter().map(|weight| weight * weight).sum::<f64>();
        self.residual = ((self.objective - penalty).max(0.0) / target_square).sqrt();
        self.found.residuals.push(self.residual);
        self.found.objectives.push(self.objective.max(0.0) / target_square);
        Ok(None)
    }

    /// Takes in the atom that correlates best with the residual, at weight zero; returns whether one does.
    fn enter(&mut self) -> Result<bool> {
        while let Some(atom) = self.source.best(&self.noise) {
            let pending = self.pending(atom)?;
            self.source.set_open(atom, false);
            let diagonal = self.source.squares()[atom] + self.limits.ridge;
            let active = &mut self.active;
            if active.factor.append(&pending, diagonal, self.source.target_products()[atom]) {
                active.atoms.push(atom);
                active.weights.push(0.0);
                return Ok(true);
            }
            self.found.passed_over += 1;
        }
        Ok(false)
    }

    /// The row of an atom, prepared for the factor.
    fn pending(&mut self, atom: usize) -> Result<Pending> {
        let (pooled, rows) = &mut self.pool;
        if let Some(at) = pooled.iter().position(|&pooled| pooled == atom) {
            pooled.remove(at);
            let mut pending = rows.remove(at);
            self.prepare(&[atom], std::slice::from_mut(&mut pending))?;
            return Ok(pending);
        }
        let most = BATCH.min(self.limits.atoms - self.active.atoms.len());
        let mut likely = self.source.likely(pooled.len() + most);
        likely.retain(|other| *other != atom && !pooled.contains(other));
        let atoms: Vec<usize> = [atom].into_iter().chain(likely).take(most).collect();
        let mut pending = vec![Pending::default(); atoms.len()];
        self.prepare(&atoms, &mut pending)?;
        let best = pending.remove(0);
        let (pooled, rows) = &mut self.pool;
        pooled.extend(&atoms[1..]);
        rows.extend(pending);
        let excess = pooled.len().saturating_sub(POOL);
        pooled.drain(..excess);
        rows.drain(..excess);
        Ok(best)
    }

    /// Prepares the rows of some atoms, which all know as many rows of the factor.
    fn prepare(&mut self, atoms: &[usize], pending: &mut [Pending]) -> Result<()> {
        let first = pending[0].len();
        let new = &self.active.atoms[first..];
        self.products.clear();
        self.products.resize(new.len() * atoms.len(), 0.0);
        self.source.cross(atoms, first, &mut self.products);
        all_finite(&self.products, |position| new[position / atoms.len()])?;
        for (at, pending) in pending.iter_mut().enumerate() {
            pending.cross.extend(self.products.iter().skip(at).step_by(atoms.len()));
        }
        self.active.factor.prepare(pending);
        Ok(())
    }

    fn finish(self) -> Pursuit {
        let Active { atoms, weights, .. } = self.active;
        Pursuit { atoms, weights, end: self.end.unwrap_or_default(), ..self.found }
    }
}

/// Refuses inner products that are no numbers, by the atom of their position.
pub(super) fn all_finite(products: &[f64], atom: impl Fn(usize) -> usize) -> Result<()> {
    match products.iter().position(|product| !product.is_finite()) {
        None => Ok(()),
        Some(position) => Err(PruneError::Invalid(format!(
            "atom {}: an inner product is {}, expected a finite number",
            atom(position),
            products[position]
        ))),
    }
}
