//! Perturbed top-k: from scores to a choice, the same for every ranking and for the gains of Adv-GLISTER.
//!
//! The k largest of `score + T * sd * G`, with sd the standard deviation of the scores and G a standard Gumbel variable a
//! sample: k draws without repetition, each in proportion to `exp(score / (T sd))` (arXiv 2302.01801; Kool et al., ICML
//! 2019). T = 0 is the plain top-k, which collects alike images of few classes and does so again at the next selection. With
//! quotas each class gives its share of the budget. The noise is a pure function of (seed, epoch, round, sample), computed
//! in f64 on the host, so equal scores give the same choice on every engine.

use super::{Candidates, PruneError, Result, SelectionConfig, Subset};
use crate::data::order::quotas;
use crate::philox::{Key, Purpose};

/// How scores become a choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopK {
    /// T, the scale of the noise in standard deviations of the scores; 0 is none.
    pub temperature: f64,
    /// Whether each class keeps its share of the candidates, by largest remainder.
    pub class_quotas: bool,
    /// Whether a sample weighs 1 / p, with p the probability that it is chosen, instead of 1; T above 0.
    pub importance_weights: bool,
}

impl TopK {
    /// The k largest, of whatever class: the rankings as published.
    pub const PLAIN: Self = Self { temperature: 0.0, class_quotas: false, importance_weights: false };

    pub fn from_config(config: &SelectionConfig) -> Self {
        Self {
            temperature: config.temperature,
            class_quotas: config.class_quotas,
            importance_weights: config.importance_weights,
        }
    }
}

/// A choice in the making.
pub(super) struct Draw<'a> {
    rule: TopK,
    candidates: &'a Candidates<'a>,
    /// How many samples each class may still give; without quotas all are of one class.
    left: Vec<usize>,
    /// Candidates not chosen yet, ascending.
    open: Vec<u32>,
    chosen: Vec<u32>,
    /// `-ln(1 - p)` of each candidate so far.
    hazards: Vec<f64>,
    round: u32,
}

impl<'a> Draw<'a> {
    pub fn new(rule: TopK, candidates: &'a Candidates) -> Self {
        let count = candidates.samples.len();
        let left = match rule.class_quotas {
            true => candidates.class_budgets(),
            false => vec![candidates.budget.min(count)],
        };
        Self {
            rule,
            candidates,
            left,
            open: (0..count as u32).collect(),
            chosen: Vec::new(),
            hazards: vec![0.0; count],
            round: 0,
        }
    }

    /// How many samples are still to be chosen.
    pub fn left(&self) -> usize {
        self.left.iter().sum()
    }

    /// Candidates that may still be chosen, ascending: those of classes that have not given their share.
    pub fn open(&self) -> impl Iterator<Item = u32> + '_ {
        self.open.iter().copied().filter(|&place| self.left[self.group(place)] > 0)
    }

    /// Chooses `count` more by the scores of all candidates, of each class in proportion to what it may still give, and
    /// returns their places. An infinite score stands for an unknown one: those come first, in random order where there is
    /// noise.
    pub fn take(&mut self, scores: &[f64], count: usize) -> Result<Vec<u32>> {
        let open: Vec<u32> = self.open().collect();
        let of_open: Vec<f64> = open.iter().map(|&place| scores[place as usize]).collect();
        let scale = self.scale(&of_open);
        let ranked = self.ranked(&open, &of_open, scale)?;
        let shares = quotas(&self.left, count.min(self.left()));
        let mut taken = Vec::with_capacity(count);
        for (group, &share) in shares.iter().enumerate() {
            let members = ranked.iter().filter(|rank| self.group(open[rank.position]) == group);
            let members: Vec<&Rank> = members.collect();
            taken.extend(members[..share].iter().map(|rank| open[rank.position]));
            if self.rule.importance_weights && share > 0 {
                self.raise_hazards(group, scores, members.get(share).copied(), scale);
            }
        }
        self.note(&taken);
        Ok(taken)
    }

    /// Chooses one of `pool` by the scores of its members; returns its position in the pool.
    pub fn take_one(&mut self, pool: &[u32], scores: &[f64]) -> Result<usize> {
        let best = self.ranked(pool, scores, self.scale(scores))?[0].position;
        self.note(&[pool[best]]);
        Ok(best)
    }

    /// The subset of what was chosen.
    pub fn subset(self) -> Result<Subset> {
        let samples = self.chosen.iter().map(|&place| self.candidates.samples[place as usize]);
        if !self.rule.importance_weights {
            return Ok(Subset::uniform(samples.collect()));
        }
        let probabilities = self.chosen.iter().map(|&place| -(-self.hazards[place as usize]).exp_m1());
        Subset::normalised(samples.zip(probabilities.map(|p| 1.0 / p)).collect())
    }

    /// Ends a round that chose these.
    fn note(&mut self, taken: &[u32]) {
        for &place in taken {
            let group = self.group(place);
            self.left[group] -= 1;
        }
        match *taken {
            [place] => {
                let at = self.open.binary_search(&place).expect("an open candidate");
                self.open.remove(at);
            }
            // In one go over a million candidates, not in one for each that was taken.
            _ => {
                let mut ascending = taken.to_vec();
                ascending.sort_unstable();
                self.open.retain(|place| ascending.binary_search(place).is_err());
            }
        }
        self.chosen.extend(taken);
        self.round += 1;
    }

    fn group(&self, place: u32) -> usize {
        match self.rule.class_quotas {
            true => self.candidates.labels[place as usize] as usize,
            false => 0,
        }
    }

    /// The scale of the noise on these scores.
    fn scale(&self, scores: &[f64]) -> f64 {
        self.rule.temperature * spread(scores)
    }

    /// `places` from the first to choose to the last.
    fn ranked(&self, places: &[u32], scores: &[f64], scale: f64) -> Result<Vec<Rank>> {
        if let Some(at) = scores.iter().position(|score| score.is_nan()) {
            return Err(PruneError::Invalid(format!(
                "training image {}: its score is NaN, expected a number: training has diverged",
                self.candidates.samples[places[at] as usize]
            )));
        }
        let key = Key { purpose: Purpose::SelectionNoise, step: self.round, ..self.candidates.key };
        let rank = |(position, &place): (usize, &u32)| {
            let score = scores[position];
            let noise = match scale > 0.0 {
                true => scale * gumbel(key, self.candidates.samples[place as usize]),
                false => 0.0,
            };
            let unknown = score == f64::INFINITY;
            Rank { position, unknown, value: if unknown { noise } else { score + noise } }
        };
        let mut ranks: Vec<Rank> = places.iter().enumerate().map(rank).collect();
        // A stable sort of ascending places: equal values keep the sample that comes first.
        ranks.sort_by(|a, b| b.unknown.cmp(&a.unknown).then(b.value.total_cmp(&a.value)));
        Ok(ranks)
    }

    /// Adds what this round adds to the probabilities of a class. Given the largest perturbed score that was not taken, a
    /// candidate is taken where its own is larger, `P = 1 - exp(-exp((score - threshold) / scale))`: the estimator that
    /// weighs by 1 / P is unbiased (Kool et al., "Stochastic beams and where to find them", section 4). Over several rounds
    /// the probabilities of being left multiply, thresholds and scores taken as given.
    fn raise_hazards(&mut self, group: usize, scores: &[f64], threshold: Option<&Rank>, scale: f64) {
        for place in 0..scores.len() as u32 {
            if self.group(place) == group {
                let (score, hazard) = (scores[place as usize], &mut self.hazards[place as usize]);
                *hazard += match threshold {
                    Some(threshold) if threshold.unknown == (score == f64::INFINITY) => {
                        let score = if threshold.unknown { 0.0 } else { score };
                        ((score - threshold.value) / scale).exp()
                    }
                    Some(threshold) if threshold.unknown => 0.0,
                    _ => f64::INFINITY,
                };
            }
        }
    }
}

/// Where a candidate ranks.
struct Rank {
    /// In the list that was ranked.
    position: usize,
    /// It has no score yet.
    unknown: bool,
    /// The perturbed score.
    value: f64,
}

/// The standard deviation of the known scores; 1 where they are all equal, so that noise alone decides.
fn spread(scores: &[f64]) -> f64 {
    let known = || scores.iter().filter(|score| score.is_finite());
    let count = known().count().max(1) as f64;
    let mean = known().sum::<f64>() / count;
    let deviation = (known().map(|score| (score - mean).powi(2)).sum::<f64>() / count).sqrt();
    if deviation > 0.0 { deviation } else { 1.0 }
}

/// A standard Gumbel variable, `-ln(-ln u)`, u of 52 random bits and never 0 or 1.
fn gumbel(key: Key, sample: u32) -> f64 {
    let words = key.block(sample, 0);
    let bits = u64::from(words[0]) << 20 | u64::from(words[1] >> 12);
    let uniform = (bits as f64 + 0.5) / (1u64 << 52) as f64;
    -(-uniform.ln()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(epoch: u32) -> Key {
        Key { seed: 20_261_130, purpose: Purpose::Selection, epoch, step: 0 }
    }

    #[test]
    fn the_noise_is_gumbels() {
        let noise: Vec<f64> = (0..100_000).map(|sample| gumbel(key(0), sample)).collect();
        let mean = noise.iter().sum::<f64>() / 1e5;
        let variance = noise.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 1e5;
        // Euler's constant, with a standard error of 0.0041; pi^2 / 6, with one of 0.011.
        assert!((mean - 0.577_215_664_9).abs() < 0.016, "{mean}");
        assert!((variance - 1.644_934).abs() < 0.05, "{variance}");
        let below = noise.iter().filter(|&&value| value < 1.0).count() as f64 / 1e5;
        assert!((below - (-(-1.0f64).exp()).exp()).abs() < 0.007, "{below}");
        assert!(noise.iter().all(|value| value.is_finite()));
    }

    fn draws(rule: TopK, scores: &[f64], labels: &[u32], budget: usize, epochs: u32) -> Vec<Subset> {
        let samples: Vec<u32> = (0..scores.len() as u32).collect();
        let draw = |epoch| {
            let candidates = Candidates {
                scores: None,
                samples: &samples,
                labels,
                classes: 3,
                held_out: &[],
                budget,
                losses: None,
                key: key(epoch),
            };
            let mut draw = Draw::new(rule, &candidates);
            let taken = draw.take(scores, budget).unwrap();
            assert_eq!((taken.len(), draw.left()), (budget, 0));
            draw.subset().unwrap()
        };
        (0..epochs).map(draw).collect()
    }

    /// The first of a draw has the probabilities of a softmax with T standard deviations as its temperature.
    #[test]
    fn a_draw_of_one_is_a_softmax() {
        let scores = [0.3, -1.0, 0.9, 2.0, -0.4, 0.0];
        for temperature in [0.5, 1.0, 3.0] {
            let rule = TopK { temperature, ..TopK::PLAIN };
            let powers = scores.map(|score: f64| (score / temperature / spread(&scores)).exp());
            let total: f64 = powers.iter().sum();
            let mut counts = [0.0; 6];
            for subset in draws(rule, &scores, &[0; 6], 1, 20_000) {
                counts[subset.samples[0] as usize] += 1.0;
            }
            for (power, count) in powers.iter().zip(counts) {
                let p = power / total;
                let deviations = (count - 20_000.0 * p) / (20_000.0 * p * (1.0 - p)).sqrt();
                assert!(deviations.abs() < 5.0, "T {temperature}: {count} of {}", 20_000.0 * p);
            }
        }
    }

    /// With weights 1 / p the weighted sum over the subset is the sum over all in expectation, whatever is summed.
    #[test]
    fn importance_weights_are_unbiased() {
        let scores: Vec<f64> = (0..30).map(|place| f64::from(place % 7) + 0.1 * f64::from(place)).collect();
        let labels: Vec<u32> = (0..30).map(|place| place % 3).collect();
        for class_quotas in [false, true] {
            let rule = TopK { temperature: 1.0, class_quotas, importance_weights: true };
            const EPOCHS: u32 = 20_000;
            let mut sums = [[0.0; 2]; 30];
            for subset in draws(rule, &scores, &labels, 9, EPOCHS) {
                for (&sample, &weight) in subset.samples.iter().zip(&subset.weights) {
                    let weight = subset.scale.unwrap() * f64::from(weight);
                    let [sum, square] = &mut sums[sample as usize];
                    *sum += weight;
                    *square += weight * weight;
                }
            }
            for (sample, [sum, square]) in sums.into_iter().enumerate() {
                let mean = sum / f64::from(EPOCHS);
                let error = ((square / f64::from(EPOCHS) - mean * mean) / f64::from(EPOCHS)).sqrt();
                assert!((mean - 1.0).abs() < 5.0 * error, "sample {sample}: {mean} +- {error}");
            }
        }
    }

    #[test]
    fn unknown_scores_come_first_in_random_order() {
        let mut scores = vec![1.0; 12];
        scores[4..10].fill(f64::INFINITY);
        let rule = TopK { temperature: 1.0, ..TopK::PLAIN };
        let subsets = draws(rule, &scores, &[0; 12], 3, 40);
        assert!(subsets.iter().flat_map(|subset| &subset.samples).all(|sample| (4..10).contains(sample)));
        let seen: std::collections::BTreeSet<u32> =
            subsets.iter().flat_map(|subset| subset.samples.clone()).collect();
        assert_eq!(seen.len(), 6, "each of them at some time");
        assert_eq!(draws(TopK::PLAIN, &scores, &[0; 12], 3, 1)[0].samples, [4, 5, 6]);
        // All of the unknown and some of the others: what is certain weighs least.
        let rule = TopK { importance_weights: true, ..rule };
        let subset = &draws(rule, &scores, &[0; 12], 8, 1)[0];
        let weight = |sample| subset.weights[subset.samples.binary_search(&sample).unwrap()];
        assert!((4..10).all(|sample| weight(sample) == weight(4)));
        assert!(subset.weights.iter().all(|&other| other >= weight(4)));
    }
}
