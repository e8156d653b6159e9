//! BulletTrain's groups: the samples of a batch divided by a score, and the threshold that follows the training.
//!
//! The score is the standard deviation of the clean softmax over the classes, negative where the prediction is wrong.
//! Negative: outlier. Above the threshold: robust. Between them: boundary. The threshold is the quantile 1 - acc_ref of
//! the batch's scores, at least 0, where acc_ref follows the adversarial accuracy of the batches before. Formulas: as in
//! public descendants of the code of the authors (Hua et al., NeurIPS 2021), which have no warm-up; ours is an option.

use std::ops::Range;

use super::AccelerateConfig;
use crate::attack::AttackWork;
use crate::batch::Batch;
use crate::engine::{Engine, Pass, Result, Tensor};
use crate::model::Weights;
use crate::ops::BulletTrainScore;

/// The tensors of a checkpoint; the last one only where there is a warm-up.
const ACCURACY: &str = "bullet_train.accuracy";
const WARM_UP: &str = "bullet_train.warm_up";

/// Places in a batch, each ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    pub outliers: Vec<u32>,
    pub boundary: Vec<u32>,
    pub robust: Vec<u32>,
}

impl Groups {
    /// Divides a batch by its scores under the reference accuracy `accuracy`. A score that is NaN is an outlier's:
    /// training has diverged, which the epoch's losses will tell.
    pub fn of_scores(scores: &[f32], accuracy: f32) -> Self {
        let threshold = quantile(scores, (1.0 - accuracy).clamp(0.0, 1.0)).max(0.0);
        let mut groups = Self::default();
        for (place, &score) in scores.iter().enumerate() {
            let group = match score {
                score if score > threshold => &mut groups.robust,
                score if score >= 0.0 => &mut groups.boundary,
                _ => &mut groups.outliers,
            };
            group.push(place as u32);
        }
        groups
    }

    /// The groups of a part of the batch, in indices of that part.
    fn part(self, part: Range<usize>) -> Self {
        let of_part = |group: Vec<u32>| -> Vec<u32> {
            let inside = group.into_iter().filter(|&place| part.contains(&(place as usize)));
            inside.map(|place| place - part.start as u32).collect()
        };
        Self {
            outliers: of_part(self.outliers),
            boundary: of_part(self.boundary),
            robust: of_part(self.robust),
        }
    }

    /// A batch of `len` images that are all attacked in full.
    pub fn all_boundary(len: usize) -> Self {
        Self { boundary: (0..len as u32).collect(), ..Self::default() }
    }

    /// A batch of these groups, before any step of an attack.
    pub fn work(&self) -> AttackWork {
        let [outliers, boundary, robust] =
            [&self.outliers, &self.boundary, &self.robust].map(|group| group.len() as u64);
        AttackWork { samples: outliers + boundary + robust, steps: 0, outliers, boundary, robust }
    }
}

/// The quantile `q` in [0, 1] of at least one value, linear between neighbours, rounded as `torch.quantile` does.
pub fn quantile(values: &[f32], q: f32) -> f32 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    let rank = q * (sorted.len() - 1) as f32;
    let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    let share = rank - rank.floor();
    match share < 0.5 {
        true => low + share * (high - low),
        false => high - (high - low) * (1.0 - share),
    }
}

/// Forms the groups of each batch, and learns from what the attack left of it.
#[derive(Clone, Debug)]
pub struct Grouping {
    /// acc_ref <- decay acc_ref + (1 - decay) factor (adversarial accuracy of the batch).
    decay: f32,
    factor: f32,
    /// acc_ref: 0 at the start of a run, so that nothing counts as robust at first.
    accuracy: f32,
    warm_up: Option<WarmUp>,
    scores: Option<Tensor<f32>>,
}

/// Full attacks until the network predicts clean images well enough. It ends once for all.
#[derive(Clone, Copy, Debug)]
struct WarmUp {
    /// The clean accuracy that ends it.
    until: f32,
    /// The running mean of the clean accuracy of the batches; 0 at the start of a run.
    accuracy: f32,
    over: bool,
}

impl Grouping {
    pub fn new(config: &AccelerateConfig) -> Self {
        Self {
            decay: config.accuracy_decay as f32,
            factor: config.accuracy_factor as f32,
            accuracy: 0.0,
            warm_up: (config.warmup_accuracy > 0.0).then_some(WarmUp {
                until: config.warmup_accuracy as f32,
                accuracy: 0.0,
                over: false,
            }),
            scores: None,
        }
    }

    /// acc_ref, the reference accuracy behind the threshold.
    pub fn accuracy(&self) -> f32 {
        self.accuracy
    }

    /// Sets acc_ref, in [0, 1].
    pub fn set_accuracy(&mut self, accuracy: f32) {
        self.accuracy = accuracy;
    }

    /// The groups of a batch, from one forward of its clean images with folded BatchNorm; leaves their logits in
    /// `batch.clean_logits`.
    pub fn divide(&mut self, engine: &mut Engine, batch: &Batch) -> Result<Groups> {
        for part in batch.parts(engine.micro_batch()) {
            engine.forward(Pass::EvalSplit, &part.images, &part.clean_logits)?;
        }
        let scores = match self.scores.take() {
            Some(scores) if scores.len() >= batch.len() => scores,
            _ => engine.alloc("sample scores", batch.len())?,
        };
        let of_batch = scores.slice(0..batch.len());
        engine.run(&BulletTrainScore {
            logits: &batch.clean_logits,
            labels: &batch.labels,
            scores: &of_batch,
        })?;
        self.scores = Some(scores);
        let own = engine.read(&of_batch)?;
        // The threshold is of the whole batch, which ranks share in their order.
        let (len, all) = (own.len(), engine.all_gather("sample scores", own)?);
        let scores = all.concat();
        if self.warms_up(&scores) {
            return Ok(Groups::all_boundary(batch.len()));
        }
        let before: usize = all[..engine.rank()].iter().map(Vec::len).sum();
        Ok(Groups::of_scores(&scores, self.accuracy).part(before..before + len))
    }

    /// Whether a batch of these scores is still one of the warm-up.
    fn warms_up(&mut self, scores: &[f32]) -> bool {
        let decay = self.decay;
        let Some(warm_up) = self.warm_up.as_mut().filter(|warm_up| !warm_up.over) else { return false };
        // A score is negative where the prediction is wrong.
        let right = scores.iter().filter(|&&score| score >= 0.0).count();
        let actual = right as f32 / scores.len() as f32;
        warm_up.accuracy = decay * warm_up.accuracy + (1.0 - decay) * actual;
        warm_up.over = warm_up.accuracy >= warm_up.until;
        !warm_up.over
    }

    /// Moves acc_ref: of a batch of `of` images, or of a rank's share of one, `right` are predicted right after the attack. An
    /// outlier's x' is its x, which was predicted wrong: it counts in `of` only.
    ///
    /// # Errors
    /// Where another rank has ended.
    pub fn learn(&mut self, engine: &Engine, right: usize, of: usize) -> Result<()> {
        let all = engine.all_gather("predictions that are right", vec![[right as u64, of as u64]])?;
        let [right, of] = [0, 1].map(|at| all.iter().flatten().map(|counts| counts[at]).sum::<u64>());
        let actual = right as f32 / of as f32;
        self.accuracy = self.decay * self.accuracy + (1.0 - self.decay) * (self.factor * actual);
        Ok(())
    }

    /// acc_ref, for checkpoints.
    pub fn state(&self) -> Weights {
        let mut state = Weights::default();
        state.insert(ACCURACY, &[1], vec![self.accuracy]);
        if let Some(warm_up) = &self.warm_up {
            state.insert(WARM_UP, &[2], vec![warm_up.accuracy, f32::from(u8::from(warm_up.over))]);
        }
        state
    }

    /// Takes back what [`Grouping::state`] gave; says why it cannot.
    pub fn restore(&mut self, state: &Weights) -> std::result::Result<(), String> {
        self.accuracy = state.get(ACCURACY, &[1]).map_err(|error| error.to_string())?[0];
        if let Some(warm_up) = &mut self.warm_up {
            let kept = state.get(WARM_UP, &[2]).map_err(|error| error.to_string())?;
            (warm_up.accuracy, warm_up.over) = (kept[0], kept[1] != 0.0);
        }
        Ok(())
    }
}
