//! Figures of a subset, recorded at every selection: whether it is balanced, what its weights leave of it, how it stands to
//! held-out images, and how near its gradient is to that of all candidates.
//!
//! A subset of few classes, or of images that a young network cannot learn yet, shows here long before the accuracies do.

use serde::{Deserialize, Serialize};

use super::{Candidates, GradPass, PruneError, Result, Subset, sum};
use crate::data::order::shuffled;
use crate::engine::{Engine, Tensor};
use crate::ops::{Augment, LastLayerGradients};
use crate::philox::{Key, Purpose};
use crate::recipe::Recipe;

/// Images that an accuracy is measured on, at most: a random part of larger sets, with a standard error of 1.6 points.
const MEASURED: usize = 1024;
/// Steps of `Purpose::Selection` that draw those: the selections' own draws have step 0.
const SUBSET_STEP: u32 = 1;
const HELD_OUT_STEP: u32 = 2;
/// The entropy of the classes below which a subset is called one-sided.
const BALANCED: f64 = 0.95;

/// Figures of a subset.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Diagnosis {
    /// Entropy of the class counts over that of all candidates' counts: 1 is as balanced as they are.
    pub class_entropy: f64,
    /// Classes that have candidates but no image in the subset.
    pub missing_classes: usize,
    /// `(sum w)^2 / sum w^2`: so many images of equal weight have the variance of this subset.
    pub effective_size: f64,
    /// Share of the images that the network classifies wrongly at the selection, without attack.
    pub wrong: f64,
    /// Accuracy on the subset less that on held-out images, without attack; absent where none are held out.
    pub accuracy_gap: Option<f64>,
    /// [`residual`] on the images and perturbations that the subset was chosen by; absent where its method needs no gradients.
    pub residual: Option<f64>,
    /// The same on a second draw of augmentation and attack, where that was asked for.
    pub residual_holdout_draw: Option<f64>,
}

/// A second draw of the candidates, as training on them would make it.
#[derive(Clone, Copy, Debug)]
pub struct HoldoutDraw {
    pub augment: Option<Augment>,
    /// Keys the random starts of the attack.
    pub key: Key,
}

impl Diagnosis {
    /// Measures a subset with the present weights: at most 1,024 of its images and as many of `held_out`, which took no part
    /// in the choice, pass forward once. A second draw attacks every candidate.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn new(
        engine: &mut Engine,
        candidates: &Candidates,
        held_out: &[u32],
        pass: &mut GradPass,
        subset: &Subset,
        holdout_draw: Option<HoldoutDraw>,
    ) -> Result<Self> {
        let mut counts = [vec![0usize; candidates.classes], vec![0; candidates.classes]];
        for (&sample, &label) in candidates.samples.iter().zip(candidates.labels) {
            counts[0][label as usize] += 1;
            counts[1][label as usize] += usize::from(subset.samples.binary_search(&sample).is_ok());
        }
        let [all, chosen] = counts;
        let mut accuracy = |samples: &[u32], step| -> Result<f64> {
            let mut drawn = shuffled(Key { step, ..candidates.key }, samples);
            drawn.truncate(MEASURED);
            Ok(pass.correct(engine, &drawn)? as f64 / drawn.len() as f64)
        };
        let on_subset = accuracy(&subset.samples, SUBSET_STEP)?;
        let on_held_out = (!held_out.is_empty()).then(|| accuracy(held_out, HELD_OUT_STEP)).transpose()?;
        let residual_holdout_draw = match holdout_draw {
            None => None,
            Some(HoldoutDraw { augment, key }) => {
                let (objective, watch) = (&mut *pass.objective, &mut *pass.watch);
                let mut again = GradPass { augment, key, objective, watch, seconds: None, ..*pass };
                let view = again.last_layer(engine, candidates.samples)?;
                residual(engine, candidates.samples, &view.gradients, subset)?
            }
        };
        let weights = || subset.weights.iter().map(|&weight| f64::from(weight));
        Ok(Self {
            class_entropy: balance(&chosen, &all),
            missing_classes: all
                .iter()
                .zip(&chosen)
                .filter(|&(&all, &chosen)| all > 0 && chosen == 0)
                .count(),
            effective_size: weights().sum::<f64>().powi(2) / weights().map(|w| w * w).sum::<f64>(),
            wrong: 1.0 - on_subset,
            accuracy_gap: on_held_out.map(|held_out| on_subset - held_out),
            residual: subset.residual,
            residual_holdout_draw,
        })
    }

    /// [`Diagnosis::new`] with the second draw, where the recipe asks for one, that training would make of the candidates in the
    /// epoch that `candidates.key` names.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn of_recipe(
        engine: &mut Engine,
        recipe: &Recipe,
        candidates: &Candidates,
        held_out: &[u32],
        pass: &mut GradPass,
        subset: &Subset,
    ) -> Result<Self> {
        let key = Key { purpose: Purpose::AttackStart, ..candidates.key };
        let augment = recipe.augmentation(key.seed, key.epoch);
        let draw = recipe.selection.holdout_draw.then_some(HoldoutDraw { augment, key });
        Self::new(engine, candidates, held_out, pass, subset, draw)
    }

    /// What is wrong with the subset, in words.
    pub fn warning(&self) -> Option<String> {
        let Self { class_entropy, missing_classes, .. } = *self;
        match missing_classes {
            0 if class_entropy >= BALANCED => None,
            0 => Some(format!(
                "the subset is one-sided: class entropy {class_entropy:.3}, expected {BALANCED} at least"
            )),
            1 => Some(format!("1 class has no image in the subset (class entropy {class_entropy:.3})")),
            _ => Some(format!(
                "{missing_classes} classes have no image in the subset (class entropy {class_entropy:.3})"
            )),
        }
    }
}

impl std::fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { class_entropy, effective_size, wrong, accuracy_gap, .. } = *self;
        let Self { residual, residual_holdout_draw, .. } = *self;
        write!(
            f,
            "class entropy {class_entropy:.3}, effective size {effective_size:.0}, wrong already {:.1} %",
            100.0 * wrong
        )?;
        if let Some(gap) = accuracy_gap {
            write!(f, ", accuracy less that of held-out images {:+.1} %", 100.0 * gap)?;
        }
        if let Some(residual) = residual {
            write!(f, ", residual {residual:.3}")?;
        }
        match residual_holdout_draw {
            Some(residual) => write!(f, ", on a second draw {residual:.3}"),
            None => Ok(()),
        }
    }
}

/// The entropy of some counts over that of others; 1 where those have one class.
fn balance(counts: &[usize], all: &[usize]) -> f64 {
    let entropy = |counts: &[usize]| -> f64 {
        let total = counts.iter().sum::<usize>() as f64;
        let shares = counts.iter().filter(|&&count| count > 0).map(|&count| count as f64 / total);
        shares.map(|share| share * (1.0 / share).ln()).sum()
    };
    let whole = entropy(all);
    if whole > 0.0 { entropy(counts) / whole } else { 1.0 }
}

/// `|scale * sum_S w g - sum_D g| / |sum_D g|`, with g the gradients of the candidates `samples` in their order; `None` where
/// the sum over all is zero.
///
/// # Errors
/// Those of the engine.
pub fn residual(
    engine: &mut Engine,
    samples: &[u32],
    gradients: &LastLayerGradients,
    subset: &Subset,
) -> Result<Option<f64>> {
    let total: f64 = subset.weights.iter().map(|&weight| f64::from(weight)).sum();
    let scale = subset.scale.unwrap_or(samples.len() as f64 / total);
    // The difference of the two sums as one: each candidate with its weight less 1.
    let mut excess = vec![-1.0; samples.len()];
    for (sample, &weight) in subset.samples.iter().zip(&subset.weights) {
        let place = samples.binary_search(sample).map_err(|_| {
            PruneError::Invalid(format!("training image {sample} of the subset is not a candidate"))
        })?;
        excess[place] += scale * f64::from(weight);
    }
    let excess = engine.upload("weights less 1", &excess)?;
    let mut norm = |weights: Option<&Tensor<f64>>| -> Result<f64> {
        let sum = sum(engine, gradients, weights)?;
        Ok(engine.read(&sum)?.iter().map(|value| value * value).sum::<f64>().sqrt())
    };
    let (all, left) = (norm(None)?, norm(Some(&excess))?);
    Ok((all > 0.0).then(|| left / all))
}
