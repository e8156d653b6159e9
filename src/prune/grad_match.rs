//! Adv-GRAD-MATCH (Killamsetty et al., ICML 2021, on adversarial losses): a weighted subset whose gradient sum is near
//! that of all candidates.
//!
//! With g_i the last-layer gradient of the training objective at a sample and its adversarial image,
//! `min |sum_{i in S} w_i g_i - sum_i g_i|^2 + lambda |w|^2` over |S| <= k and w >= 0, by the pursuit of `pursuit`.
//! The target is the sum, so the weights of a perfect match by all are 1 and those of k of n samples about n / k; a target
//! scaled by a number scales all weights by it, and [`Subset::normalised`] makes their mean 1, so sum or mean is the same
//! choice. lambda is `ridge` times the mean squared norm of the atoms of the pursuit, so that one `ridge` means the same for
//! any width, loss or kind of atom; or `ridge` itself, as in the public code, which adds a plain number to the Gram matrix.
//!
//! GRAD-MATCH's 0.5 as a plain number is about 0.05 of the mean squared norm for TRADES at width 16; 0.5 of it makes the
//! weights nearly uniform. Relative error of the subset's gradient, per class, 710 of 2,700 images (`secateur bench
//! selection-error` makes such a table):
//!
//! | ridge | on the images matched | freshly augmented and attacked |
//! |---|---|---|
//! | 0.5 | 0.136 | 0.274 |
//! | 0.15 | 0.081 | 0.206 |
//! | **0.05** | 0.059 | 0.189 |
//! | 0 | 0.041 | 0.198 |

use rayon::prelude::*;

use super::atoms::{Factors, mean_sum};
use super::gram::Gram;
use super::pursuit::{Atoms, Limits, Pursuit, pursue};
use super::{
    Candidates, Coverage, GradPass, Knowledge, PruneError, Result, Selection, SelectionRow, Subset, part,
    residual,
};
use crate::data::order::shuffled;
use crate::engine::Engine;
use crate::names::named;
use crate::ops::{Augment, LastLayerGradients};
use crate::philox::Key;

/// Bytes of factors for each thread that stay in a shared cache.
const CACHE: usize = 8 << 20;

pub(super) const ROW: SelectionRow = SelectionRow {
    name: "adv-grad-match",
    title: "Adv-GRAD-MATCH",
    about: "a weighted subset whose last-layer gradient matches that of all",
    paper: "Li et al., 2023; Killamsetty et al., ICML 2021",
    coverage: Coverage::Fraction,
    knowledge: Knowledge::LastLayerGradient,
    every: 20,
    draws: |config| config.target_draws,
    least: |config, batch| match config.mode {
        AtomMode::PerBatch => batch,
        AtomMode::PerClass | AtomMode::PerSample => 1,
    },
    new: |config, setting| {
        Box::new(GradMatch {
            mode: config.mode,
            ridge: config.ridge,
            ridge_unit: config.ridge_unit,
            tolerance: config.tolerance,
            batch: setting.batch,
            target_draws: config.target_draws,
            augment: setting.augment,
        })
    },
    ..SelectionRow::ALL
};

named! {
    /// What the atoms of a pursuit are.
    pub enum AtomMode {
        /// Random batches: an atom is the gradient sum of one (its mean, but for the scale), and every sample of a chosen
        /// batch has its weight.
        PerBatch = "per-batch",
        /// Samples, with a pursuit for each class that matches the gradient sum of that class.
        PerClass = "per-class",
        /// Samples, with one pursuit over all.
        PerSample = "per-sample",
    }
}

named! {
    /// What Adv-GRAD-MATCH's ridge is a multiple of.
    pub enum RidgeUnit {
        /// The mean squared norm of the atoms of a pursuit.
        Relative = "relative",
        /// 1: the number that GRAD-MATCH adds to the Gram matrix.
        Absolute = "absolute",
    }
}

/// Selection by matching gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradMatch {
    pub mode: AtomMode,
    /// lambda in this unit; 0 or more.
    pub ridge: f64,
    pub ridge_unit: RidgeUnit,
    /// A pursuit ends early where its residual, as a share of its target, is no larger; in [0, 1).
    pub tolerance: f64,
    /// Samples of an atom with [`AtomMode::PerBatch`].
    pub batch: usize,
    /// Draws that the target is the mean of: the gradients that are chosen from, and those of further draws.
    pub target_draws: usize,
    /// Crop and flip of the further draws, of whatever epoch.
    pub augment: Option<Augment>,
}

impl Selection for GradMatch {
    /// Takes the last-layer gradients of the candidates and matches them: see [`GradMatch::choose`]. A further draw has the crops and flips of
    /// a later epoch, and an attack of its own.
    fn select(&self, engine: &mut Engine, candidates: &Candidates, pass: &mut GradPass) -> Result<Subset> {
        self.check(candidates)?;
        let samples = candidates.samples;
        if samples.is_empty() || candidates.budget == 0 {
            return Ok(Subset::default());
        }
        let gradients = pass.last_layer(engine, samples)?.gradients;
        let (as_they_are, key) = (pass.augment, pass.key);
        let mut further = Vec::with_capacity(self.target_draws - 1);
        for draw in 1..self.target_draws as u32 {
            let epoch = candidates.key.epoch + draw;
            pass.augment = self.augment.map(|augment| Augment { epoch, ..augment });
            pass.key = Key { step: draw, ..key };
            let view = pass.last_layer(engine, samples);
            (pass.augment, pass.key) = (as_they_are, key);
            further.push(view?.gradients);
        }
        let go_on = &mut || (pass.watch)(samples.len(), samples.len());
        self.choose(engine, candidates, &gradients, &further, go_on)
    }
}

impl GradMatch {
    /// Chooses by the gradients of the candidates, in their order; the target is the mean of their sum and those of `further`
    /// draws of the same candidates. `go_on` is asked before each round of the pursuits: see [`pursue`].
    ///
    /// A pursuit may end with fewer atoms than its budget, where its residual is within the tolerance or no nonnegative
    /// weights are better; nothing is filled up. Per batch, a budget of k samples pays for floor(k / batch) batches, of all
    /// candidates for every batch. Per class, the budget is divided as in [`Candidates::class_budgets`]; a class whose
    /// gradients sum to zero gives no samples. Where nothing at all asks for a sample, every gradient sum being zero, the
    /// subset is a random one with weight 1.
    ///
    /// `residuals[s]` is that of all pursuits after s + 1 steps each, as a share of the norm of all their targets; it falls
    /// where `ridge` is 0, and else the objective with the ridge does. `residual` is that of the sum over all classes.
    ///
    /// # Errors
    /// [`PruneError::Invalid`] for a gradient that is not finite, parameters out of range and a budget below one batch;
    /// [`PruneError::Stopped`] if `go_on` says so; and those of the engine.
    pub fn choose(
        &self,
        engine: &mut Engine,
        candidates: &Candidates,
        gradients: &LastLayerGradients,
        further: &[LastLayerGradients],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Subset> {
        self.check(candidates)?;
        let samples = candidates.samples;
        let budget = candidates.budget.min(samples.len());
        if budget == 0 {
            return Ok(Subset::default());
        }
        let factors = Factors::read(engine, gradients)?;
        if let Some(place) = factors.squares().iter().position(|square| !square.is_finite()) {
            return Err(PruneError::Invalid(format!(
                "training image {}: its last-layer gradient is not finite: training has diverged",
                samples[place]
            )));
        }
        let mut chosen: Vec<(u32, f64)> = Vec::with_capacity(budget);
        let mut traces = Traces::default();
        let all: Vec<u32> = (0..samples.len() as u32).collect();
        match self.mode {
            AtomMode::PerSample => {
                let target = mean_sum(engine, gradients, further)?;
                let found = self.pursue(vec![(factors.atoms(&all, &target), budget)], go_on, &mut traces)?;
                chosen.extend(
                    found.iter().flat_map(Pursuit::weighted).map(|(atom, weight)| (samples[atom], weight)),
                );
            }
            AtomMode::PerClass => {
                let mut classes = Vec::new();
                for (class, most) in candidates.class_budgets().into_iter().enumerate() {
                    let of_class = |&place: &u32| candidates.labels[place as usize] == class as u32;
                    let places: Vec<u32> = all.iter().copied().filter(of_class).collect();
                    if places.is_empty() {
                        continue;
                    }
                    let mut part = |gradients| part(engine, gradients, &places);
                    let further = further.iter().map(&mut part).collect::<Result<Vec<_>, _>>()?;
                    let gradients = part(gradients)?;
                    // A class without budget is not matched, and its residual says so.
                    classes.push((mean_sum(engine, &gradients, &further)?, places, most));
                }
                // As many at once as there are threads, and fewer where their factors would not stay in a shared cache.
                let threads = rayon::current_num_threads();
                let largest = classes.iter().map(|(_, places, _)| places.len()).max().unwrap_or(0);
                let fit = threads * CACHE / (largest * factors.bytes()).max(1);
                for classes in classes.chunks(fit.clamp(1, threads)) {
                    let of_class = classes
                        .par_iter()
                        .map(|(target, places, most)| (factors.atoms(places, target), *most));
                    let found = self.pursue(of_class.collect(), go_on, &mut traces)?;
                    for ((_, places, _), found) in classes.iter().zip(found) {
                        let named =
                            found.weighted().map(|(atom, weight)| (samples[places[atom] as usize], weight));
                        chosen.extend(named);
                    }
                }
            }
            AtomMode::PerBatch => {
                let places = shuffled(candidates.key, &all);
                let batches: Vec<&[u32]> = places.chunks(self.batch).collect();
                let most = if budget == samples.len() { batches.len() } else { budget / self.batch };
                let target = mean_sum(engine, gradients, further)?;
                let atoms = Box::new(Gram::of_batches(&factors, &batches, &target));
                for found in self.pursue(vec![(atoms, most)], go_on, &mut traces)? {
                    for (atom, weight) in found.weighted() {
                        chosen.extend(batches[atom].iter().map(|&place| (samples[place as usize], weight)));
                    }
                }
            }
        }
        if chosen.is_empty() {
            let mut drawn = shuffled(candidates.key, samples);
            drawn.truncate(budget);
            return Ok(Subset::uniform(drawn));
        }
        let mut subset = Subset { residuals: traces.together(), ..Subset::normalised(chosen)? };
        subset.residual = residual(engine, samples, gradients, &subset)?;
        Ok(subset)
    }

    fn check(&self, candidates: &Candidates) -> Result<()> {
        let invalid = |text: String| Err(PruneError::Invalid(format!("adv-grad-match: {text}")));
        if !(self.ridge.is_finite() && self.ridge >= 0.0) {
            return invalid(format!("ridge {}, expected a finite number, 0 at least", self.ridge));
        }
        if self.target_draws == 0 {
            return invalid("a target of 0 draws, expected 1 at least".into());
        }
        if !(0.0..1.0).contains(&self.tolerance) {
            return invalid(format!("tolerance {}, expected 0 at least and below 1", self.tolerance));
        }
        if self.mode == AtomMode::PerBatch {
            let (batch, budget) = (self.batch, candidates.budget);
            if batch == 0 {
                return invalid("batches of 0 samples, expected 1 at least".into());
            }
            if (1..batch).contains(&budget) && budget < candidates.samples.len() {
                return invalid(format!(
                    "a budget of {budget} samples, expected one batch of {batch} at least (per-batch atoms)"
                ));
            }
        }
        Ok(())
    }

    /// A pursuit for each of these atoms, with so many at most; it chooses none where the target is zero.
    fn pursue(
        &self,
        problems: Vec<(Box<dyn Atoms + '_>, usize)>,
        go_on: &mut dyn FnMut() -> bool,
        traces: &mut Traces,
    ) -> Result<Vec<Pursuit>> {
        let mut targets = Vec::new();
        let mut limited = Vec::new();
        for (atoms, most) in problems {
            let squares = atoms.squares();
            let unit = match self.ridge_unit {
                RidgeUnit::Relative => squares.iter().sum::<f64>() / squares.len().max(1) as f64,
                RidgeUnit::Absolute => 1.0,
            };
            // Zero up to the rounding errors of a sum of the atoms.
            let lengths: f64 = squares.iter().map(|square| square.sqrt()).sum();
            let zero = atoms.target_square().sqrt() <= 1e-14 * lengths;
            targets.push(if zero { 0.0 } else { atoms.target_square() });
            let most = if zero { 0 } else { most };
            limited
                .push((atoms, Limits { atoms: most, ridge: self.ridge * unit, tolerance: self.tolerance }));
        }
        let found = pursue(limited, go_on)?;
        targets.into_iter().zip(&found).for_each(|(square, found)| traces.add(square, &found.residuals));
        Ok(found)
    }
}

/// What the pursuits of one selection left of their targets.
#[derive(Default)]
struct Traces(Vec<(f64, Vec<f64>)>);

impl Traces {
    /// A pursuit with this `|b|^2` and these `|r| / |b|`.
    fn add(&mut self, target_square: f64, residuals: &[f64]) {
        self.0.push((target_square, residuals.to_vec()));
    }

    /// `sqrt(sum |r|^2 / sum |b|^2)` after each step that some pursuit made; one that has ended stays where it is.
    fn together(&self) -> Vec<f64> {
        let steps = self.0.iter().map(|(_, residuals)| residuals.len()).max().unwrap_or(0);
        let total: f64 = self.0.iter().map(|(square, _)| square).sum();
        let left = |step: usize| -> f64 {
            let of_one = |(square, residuals): &(f64, Vec<f64>)| {
                let residual = residuals.get(step).or(residuals.last()).copied().unwrap_or(1.0);
                square * residual * residual
            };
            self.0.iter().map(of_one).sum()
        };
        (0..steps).map(|step| (left(step) / total).sqrt()).collect()
    }
}
