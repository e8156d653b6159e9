//! Adv-GLISTER (Killamsetty et al., AAAI 2021, on adversarial losses): the samples whose training step lowers the loss of
//! held-out images most.
//!
//! With V the held-out images, S the subset, g_i last-layer gradients and theta the last layer, S maximises
//! `- mean_{j in V} L(theta - eta mean_{i in S} g_i; x_j, x'_j, y_j)`. Greedily: a candidate's gain is the first-order
//! one, `<g_i, G_V>`, with G_V the mean gradient over V at the step made so far.
//!
//! The published configuration for CIFAR (decile-team/cords) is the stochastic search with the gradients of the bias alone, a
//! step along the sum of the picked gradients with eta the learning rate, and no noise: `greedy = "stochastic"`, `gradient =
//! "bias"`, `step_along = "sum"`, `step_size = "learning-rate"`, `temperature = 0`, `class_quotas = false`. Over hundreds of
//! picks that sum saturates the softmax; the largest gains, along whatever step, collect alike images of few classes. The
//! defaults differ: the mean, and gains with noise and class quotas (see `top_k`).

use super::top_k::Draw;
use super::{
    Candidates, Coverage, GradPass, Knowledge, LastLayerView, PruneError, Result, Selection, SelectionConfig,
    SelectionRow, Subset, TopK, part, residual, sum,
};
use crate::config::Refusal;
use crate::engine::{Engine, Tensor};
use crate::names::named;
use crate::ops::{GradientProducts, LastLayerGradients, RowNorms, StepLogits};
use crate::philox::Key;

pub(super) const ROW: SelectionRow = SelectionRow {
    name: "adv-glister",
    title: "Adv-GLISTER",
    about: "the subset whose step lowers the loss of held-out images most",
    paper: "Li et al., 2023; Killamsetty et al., AAAI 2021",
    coverage: Coverage::Fraction,
    knowledge: Knowledge::LastLayerGradient,
    every: 20,
    holds_out: true,
    check: no_weights_of_pools,
    new: |config, setting| {
        Box::new(Glister {
            greedy: config.greedy,
            rounds: config.rounds,
            top_k: TopK::from_config(config),
            gradient: config.gradient,
            step_along: config.step_along,
            step: match config.step_size {
                Some(size) => StepSize::Relative(size),
                None => StepSize::Absolute(setting.learning_rate),
            },
        })
    },
    ..SelectionRow::ALL
};

fn no_weights_of_pools(config: &SelectionConfig) -> Result<(), Refusal> {
    if config.importance_weights && config.greedy == Greedy::Stochastic {
        let expected = "\"rounds\": the probabilities of a choice from random pools are not known";
        return Err(Refusal::of_text("greedy", config.greedy, expected));
    }
    Ok(())
}

named! {
    /// Which gradient of the picked samples Adv-GLISTER's step follows.
    pub enum StepAlong {
        Mean = "mean",
        Sum = "sum",
    }
}

named! {
    /// The parameters whose gradients Adv-GLISTER works with.
    pub enum GradientPart {
        /// Weight and bias of the last layer.
        LastLayer = "last-layer",
        /// Its bias alone, whose gradient is that of the logits.
        Bias = "bias",
    }
}

named! {
    /// How Adv-GLISTER follows its gain.
    pub enum Greedy {
        /// The best k / rounds candidates at once, then a new held-out gradient.
        Rounds = "rounds",
        /// The best of a random pool of (n / k) ln(1 / 0.01), then a new held-out gradient (Mirzasoleiman et al. 2015).
        Stochastic = "stochastic",
    }
}

/// The probability that a pool holds none of the k best candidates.
const MISS: f64 = 0.01;

/// Selection by the gain on held-out images.
#[derive(Clone, Copy, Debug)]
pub struct Glister {
    pub greedy: Greedy,
    /// Updates of the held-out gradient with [`Greedy::Rounds`]; 15 in the published code.
    pub rounds: usize,
    /// How the gains become a choice, in each round or pool.
    pub top_k: TopK,
    pub gradient: GradientPart,
    pub step_along: StepAlong,
    pub step: StepSize,
}

/// The step eta of the last layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StepSize {
    /// In units of 1 / mean(|h'|^2 + 1) over the candidates, so that one number means the same at any width: the curvature
    /// of the loss along the last layer grows with the features.
    Relative(f64),
    Absolute(f64),
}

impl Selection for Glister {
    fn select(&self, engine: &mut Engine, candidates: &Candidates, pass: &mut GradPass) -> Result<Subset> {
        if candidates.held_out.is_empty() {
            return Err(PruneError::Invalid("adv-glister: no held-out images, expected 1 at least".into()));
        }
        let samples = candidates.samples;
        if candidates.budget == 0 || samples.is_empty() {
            return Ok(Subset::default());
        }
        let held_out = pass.last_layer(engine, candidates.held_out)?;
        let gradients = pass.last_layer(engine, samples)?.gradients;
        let mut subset = self.choose(engine, candidates, pass, gradients.clone(), held_out)?;
        subset.residual = residual(engine, samples, &gradients, &subset)?;
        Ok(subset)
    }
}

impl Glister {
    /// Chooses by the gradients of the candidates, in their order, and a view of held-out images; `pass` gives the loss of
    /// the objective.
    ///
    /// # Errors
    /// [`PruneError::Invalid`] for a gain that is not finite; [`PruneError::Stopped`] if the user asks for it; and those of
    /// the engine.
    pub fn choose(
        &self,
        engine: &mut Engine,
        candidates: &Candidates,
        pass: &mut GradPass,
        mut gradients: LastLayerGradients,
        mut held_out: LastLayerView,
    ) -> Result<Subset> {
        if self.gradient == GradientPart::Bias {
            drop_features(engine, &mut gradients)?;
            drop_features(engine, &mut held_out.gradients)?;
        }
        let step_size = match self.step {
            StepSize::Relative(size) => size / mean_square(engine, &gradients)?,
            StepSize::Absolute(size) => size,
        };
        let mut search = Search::new(engine, step_size, self.step_along, gradients, held_out)?;
        let mut draw = Draw::new(self.top_k, candidates);
        let samples = candidates.samples;
        match self.greedy {
            Greedy::Rounds => search.rounds(engine, pass, samples, &mut draw, self.rounds.max(1))?,
            Greedy::Stochastic => search.stochastic(engine, pass, samples, &mut draw, candidates.key)?,
        };
        draw.subset()
    }
}

/// Leaves the gradients of the bias: those of features that are zero.
fn drop_features(engine: &mut Engine, gradients: &mut LastLayerGradients) -> Result<()> {
    for term in &mut gradients.terms {
        term.features = engine.upload("no features", &vec![0.0; term.features.len()])?;
    }
    Ok(())
}

/// The mean of |h'|^2 + 1 over the adversarial images.
fn mean_square(engine: &mut Engine, gradients: &LastLayerGradients) -> Result<f64> {
    let features = &gradients.terms[gradients.terms.len() - 1].features;
    let norms = engine.alloc("feature norms", gradients.len)?;
    engine.run(&RowNorms { values: features, row_len: features.len() / gradients.len, norms: &norms })?;
    let squares = engine.read(&norms)?.into_iter().map(|norm| f64::from(norm).powi(2));
    Ok(1.0 + squares.sum::<f64>() / gradients.len as f64)
}

/// The greedy search, between two picks.
struct Search {
    /// eta itself.
    step_size: f64,
    step_along: StepAlong,
    gradients: LastLayerGradients,
    /// The held-out images at the logits of no step.
    held_out: LastLayerView,
    /// The same at the logits after the step: its gradients are overwritten with each.
    moved: LastLayerView,
    /// Sum of the gradients of the `picked` candidates.
    sum: Vec<f64>,
    picked: usize,
}

impl Search {
    fn new(
        engine: &Engine,
        step_size: f64,
        step_along: StepAlong,
        gradients: LastLayerGradients,
        held_out: LastLayerView,
    ) -> Result<Self> {
        let network = engine.network();
        let moved = held_out.logits.iter().map(|logits| engine.alloc("moved logits", logits.len()));
        let moved = LastLayerView { logits: moved.collect::<Result<_, _>>()?, ..held_out.clone() };
        let sum = vec![0.0; network.classes * (network.features() + 1)];
        Ok(Self { step_size, step_along, gradients, held_out, moved, sum, picked: 0 })
    }

    /// G_V at the present step, as one vector.
    fn held_out_gradient(&self, engine: &mut Engine, pass: &mut GradPass) -> Result<Tensor<f64>> {
        let count = match self.step_along {
            StepAlong::Mean => self.picked.max(1) as f64,
            StepAlong::Sum => 1.0,
        };
        let step: Vec<f64> = self.sum.iter().map(|sum| sum / count).collect();
        let step = engine.upload("step of the last layer", &step)?;
        let terms = self.held_out.gradients.terms.iter().zip(&self.held_out.logits).zip(&self.moved.logits);
        for ((term, logits), moved) in terms {
            engine.run(&StepLogits {
                features: &term.features,
                vector: &step,
                rate: self.step_size,
                logits,
                moved,
            })?;
        }
        let len = self.moved.gradients.len;
        for batch in self.moved.batches(pass.scratch) {
            pass.objective.loss(engine, &batch, 1.0 / len as f32)?;
        }
        sum(engine, &self.moved.gradients, None)
    }

    /// The gain of each candidate of `gradients`; a NaN is refused by the name of its image.
    fn gains(
        &self,
        engine: &mut Engine,
        pass: &mut GradPass,
        gradients: &LastLayerGradients,
        name: impl Fn(usize) -> u32,
    ) -> Result<Vec<f64>> {
        let target = self.held_out_gradient(engine, pass)?;
        let gains = engine.alloc("gains", gradients.len)?;
        engine.run(&GradientProducts { gradients, vector: &target, products: &gains })?;
        let gains = engine.read(&gains)?;
        match gains.iter().position(|gain| !gain.is_finite()) {
            None => Ok(gains),
            Some(place) => Err(PruneError::Invalid(format!(
                "training image {}: its gain is {}, expected a finite number: training has diverged",
                name(place),
                gains[place]
            ))),
        }
    }

    /// Takes the candidates of `part` into the step.
    fn pick(&mut self, engine: &mut Engine, part: &LastLayerGradients) -> Result<()> {
        let sum = sum(engine, part, None)?;
        for (total, part) in self.sum.iter_mut().zip(engine.read(&sum)?) {
            *total += part;
        }
        self.picked += part.len;
        Ok(())
    }

    fn rounds(
        &mut self,
        engine: &mut Engine,
        pass: &mut GradPass,
        samples: &[u32],
        draw: &mut Draw,
        rounds: usize,
    ) -> Result<()> {
        let most = draw.left().div_ceil(rounds);
        while draw.left() > 0 {
            let gradients = self.gradients.clone();
            let gains = self.gains(engine, pass, &gradients, |place| samples[place])?;
            let best = draw.take(&gains, most)?;
            let part = part(engine, &self.gradients, &best)?;
            self.pick(engine, &part)?;
            go_on(pass, samples.len())?;
        }
        Ok(())
    }

    fn stochastic(
        &mut self,
        engine: &mut Engine,
        pass: &mut GradPass,
        samples: &[u32],
        draw: &mut Draw,
        key: Key,
    ) -> Result<()> {
        let budget = draw.left();
        // Rounded down as in the published code.
        let pool = ((samples.len() as f64 / budget as f64 * (1.0 / MISS).ln()) as usize).max(1);
        while draw.left() > 0 {
            let mut open: Vec<u32> = draw.open().collect();
            let size = pool.min(open.len());
            draw_to_front(&mut open, size, key, (budget - draw.left()) as u32);
            let places = &open[..size];
            let part = part(engine, &self.gradients, places)?;
            let gains = self.gains(engine, pass, &part, |at| samples[places[at] as usize])?;
            let best = draw.take_one(places, &gains)?;
            self.pick(engine, &part.rows(best..best + 1))?;
            go_on(pass, samples.len())?;
        }
        Ok(())
    }
}

/// Asks whether the user wants to stop; all samples are done by now.
fn go_on(pass: &mut GradPass, samples: usize) -> Result<()> {
    if (pass.watch)(samples, samples) { Ok(()) } else { Err(PruneError::Stopped) }
}

/// Puts a random draw of `size` items, without repetition, at the front: a partial Fisher-Yates shuffle, its numbers keyed
/// by the number of the pick.
fn draw_to_front(items: &mut [u32], size: usize, key: Key, pick: u32) {
    for front in 0..size {
        let word = key.block(pick, front as u32 / 4)[front % 4];
        let left = (items.len() - front) as u64;
        // The high word of a product: uniform up to one part in 2^32 / left.
        let other = front + ((u64::from(word) * left) >> 32) as usize;
        items.swap(front, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::Purpose;

    #[test]
    fn draws_are_without_repetition_and_reach_everything() {
        let key = Key { seed: 3, purpose: Purpose::Selection, epoch: 0, step: 0 };
        let mut seen = [0usize; 20];
        for pick in 0..400 {
            let mut items: Vec<u32> = (0..20).collect();
            draw_to_front(&mut items, 5, key, pick);
            for &item in &items[..5] {
                seen[item as usize] += 1;
            }
            items.sort_unstable();
            assert_eq!(items, (0..20).collect::<Vec<_>>());
        }
        // 100 each is expected, with a deviation of 8.7.
        assert!(seen.iter().all(|count| (60..140).contains(count)), "{seen:?}");
    }
}
