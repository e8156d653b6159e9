//! BulletTrain (Hua et al., NeurIPS 2021): the full attack only for the samples near the decision boundary.
//!
//! One clean forward scores each sample: the standard deviation of its softmax over the classes, negative where the
//! prediction is wrong. Outliers (wrong already) are not attacked, robust samples (score above a threshold) briefly,
//! the boundary between them in full. The threshold is the quantile 1 - acc_ref of the batch's scores, at least 0,
//! where acc_ref follows the adversarial accuracy of the batches before. Groups are compacted on the device, so the
//! work shrinks with them. Formulas: as in public descendants of the authors' code. Checked by `tests/methods.rs`
//! against a plain form; what the attack costs by `benches/bullet_train.rs`.

use crate::attack::{Adversary, Ascent, AttackWork, Pgd, ScheduledPgd};
use crate::batch::Batch;
use crate::engine::{CrossEntropy, Engine, Noise, Pass, Result, Tensor};
use crate::model::Weights;
use crate::model::layers::IMAGE_LEN;
use crate::philox::Key;
use crate::recipe::Accelerate;

/// The tensor of a checkpoint.
const ACCURACY: &str = "bullet_train.accuracy";

/// PGD with steps by group.
pub struct BulletTrain {
    /// The attack of the boundary.
    full: ScheduledPgd,
    /// The attack of robust samples, from the same start.
    robust_steps: usize,
    robust_step_size: f32,
    /// acc_ref <- decay acc_ref + (1 - decay) factor (adversarial accuracy of the batch).
    decay: f32,
    factor: f32,
    /// acc_ref: 0 at the start of a run, so that nothing counts as robust at first.
    accuracy: f32,
    room: Option<Room>,
}

/// Memory for the scores and for one group at a time.
struct Room {
    scores: Tensor<f32>,
    /// Places of the group's samples in the batch.
    places: Tensor<u32>,
    group: Batch,
}

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

impl BulletTrain {
    /// `full` for the boundary, the constants of a recipe's `[accelerate]` for the rest.
    pub fn new(full: ScheduledPgd, recipe: &Accelerate) -> Self {
        Self {
            full,
            robust_steps: recipe.robust_steps,
            robust_step_size: recipe.robust_step_size.as_f32(),
            decay: recipe.accuracy_decay as f32,
            factor: recipe.accuracy_factor as f32,
            accuracy: 0.0,
            room: None,
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
}

impl Room {
    fn alloc(engine: &dyn Engine, len: usize) -> Result<Self> {
        Ok(Self {
            scores: engine.alloc("sample scores", len)?,
            places: engine.alloc("places of a group", len)?,
            group: Batch::alloc(engine, len)?,
        })
    }

    /// Attacks the samples of `batch` at `places` with `pgd`, compacted; returns how many are still predicted right.
    fn attack(
        &self,
        engine: &mut dyn Engine,
        ascent: &mut dyn Ascent,
        pgd: &Pgd,
        key: Key,
        batch: &Batch,
        places: &[u32],
    ) -> Result<usize> {
        if places.is_empty() {
            return Ok(0);
        }
        let rows = self.places.slice(0..places.len());
        engine.write(&rows, places)?;
        let group = self.group.rows(0..places.len());
        engine.gather_rows(&batch.samples, &rows, 1, &group.samples)?;
        engine.gather_rows(&batch.labels, &rows, 1, &group.labels)?;
        engine.gather_rows(&batch.images, &rows, IMAGE_LEN, &group.images)?;
        if ascent.needs_clean_logits() {
            engine.gather_rows(&batch.clean_logits, &rows, batch.classes(), &group.clean_logits)?;
        }

        // The start is keyed by the sample, so it is the one that the sample would have had in the whole batch.
        pgd.start(engine, key, &group)?;
        pgd.ascend(engine, ascent, &group)?;
        engine.scatter_rows(&group.perturbed, &rows, IMAGE_LEN, &batch.perturbed)?;

        let verdict = CrossEntropy { smoothing: 0.0, scale: 1.0 };
        for part in group.parts(engine.micro_batch()) {
            engine.forward(Pass::Eval, &part.perturbed, &part.logits)?;
            engine.cross_entropy(&verdict, &part.logits, &part.labels, None, part.outputs())?;
        }
        let (predictions, labels) = (engine.read(&group.predictions)?, engine.read(&group.labels)?);
        Ok(predictions.iter().zip(&labels).filter(|(prediction, label)| prediction == label).count())
    }
}

impl Adversary for BulletTrain {
    fn needs_fold(&self) -> bool {
        true
    }

    fn perturb(
        &mut self,
        engine: &mut dyn Engine,
        ascent: &mut dyn Ascent,
        key: Key,
        batch: &Batch,
    ) -> Result<AttackWork> {
        let room = match self.room.take() {
            Some(room) if room.scores.len() >= batch.len() => room,
            _ => Room::alloc(engine, batch.len())?,
        };
        for part in batch.parts(engine.micro_batch()) {
            engine.forward(Pass::Eval, &part.images, &part.clean_logits)?;
        }
        let scores = room.scores.slice(0..batch.len());
        engine.signed_deviation(&batch.clean_logits, &batch.labels, &scores)?;
        let Groups { outliers, boundary, robust } = Groups::of_scores(&engine.read(&scores)?, self.accuracy);

        // x' = x to begin with, which is all that an outlier gets; a radius of zero copies.
        let nothing = Noise::Uniform { radius: 0.0 };
        engine.perturb(nothing, key, &batch.samples, &batch.images, &batch.perturbed)?;
        let full = self.full.at(key.epoch);
        let mut brief = Pgd { steps: self.robust_steps, ..full };
        brief.step.step_size = self.robust_step_size;
        let mut right = room.attack(engine, ascent, &full, key, batch, &boundary)?;
        right += room.attack(engine, ascent, &brief, key, batch, &robust)?;
        self.room = Some(room);

        // An outlier's x' is its x, which is predicted wrong: it counts among the images of the batch only.
        let met = right as f32 / batch.len() as f32;
        self.accuracy = self.decay * self.accuracy + (1.0 - self.decay) * (self.factor * met);
        Ok(AttackWork {
            samples: batch.len() as u64,
            steps: (boundary.len() * full.steps + robust.len() * brief.steps) as u64,
            outliers: outliers.len() as u64,
            boundary: boundary.len() as u64,
            robust: robust.len() as u64,
        })
    }

    fn state(&self) -> Weights {
        let mut state = Weights::default();
        state.insert(ACCURACY, &[1], vec![self.accuracy]);
        state
    }

    fn restore(&mut self, state: &Weights) -> std::result::Result<(), String> {
        self.accuracy = state.get(ACCURACY, &[1]).map_err(|error| error.to_string())?[0];
        Ok(())
    }
}
