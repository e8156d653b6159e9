//! FAB, targeted: looks for the closest image across the boundary to each of the likeliest wrong classes, the third part of
//! AutoAttack (Croce and Hein, 2020; L-infinity).
//!
//! It knows no radius: it minimises the distance, and an image is broken if that ends inside of the ball. So it is not
//! misled where a loss is flat. One start, at the clean image, as AutoAttack's standard version has it; nothing is random.

use super::{Cost, Found, Search};
use crate::batch::Batch;
use crate::engine::{Engine, GradRequest, Pass, Result, Tensor};
use crate::model::layers::IMAGE_LEN;
use crate::ops::{ClassDifference, FabKeep, FabState, FabStep, GatherRows, ScatterRows, TargetClass};
use crate::philox::Key;

/// The attack and its budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fab {
    /// Radius of the ball.
    pub epsilon: f32,
    /// Steps towards each target.
    pub iterations: u32,
    /// Target classes: the wrong ones with the largest clean logits. Fewer where the network has fewer.
    pub targets: usize,
    /// The most that the way from the clean image weighs in a step: `alpha_max`.
    pub largest_share: f32,
    /// How far a step overshoots: `eta`.
    pub overshoot: f32,
    /// Share of the way from the clean image that is left behind a find: `beta`.
    pub backward: f32,
}

impl Fab {
    /// As AutoAttack's standard version runs it: 9 targets, 100 iterations, alpha_max 0.1, eta 1.05, beta 0.9.
    pub fn standard(epsilon: f32) -> Self {
        Self { epsilon, iterations: 100, targets: 9, largest_share: 0.1, overshoot: 1.05, backward: 0.9 }
    }

    /// For each image of `batch` the distance, in the maximum norm, of the closest wrongly predicted image that any of the
    /// targets leads to; infinity for none. `batch.perturbed` is that image, and the clean one where there is none.
    pub fn closest(&self, engine: &mut Engine, batch: &Batch) -> Result<Vec<f32>> {
        let mut distances = vec![f32::INFINITY; batch.len()];
        self.run(engine, batch, &mut |position, distance| {
            let closer = distance < distances[position];
            if closer {
                distances[position] = distance;
            }
            AfterFind { keep: closer, go_on: true }
        })?;
        Ok(distances)
    }

    /// Attacks `batch` with one target after the other. `decide` is called with the position in the batch and the distance of
    /// every image that was found, and says whether it is kept in `batch.perturbed` and whether its image meets the next
    /// target.
    fn run(
        &self,
        engine: &mut Engine,
        batch: &Batch,
        decide: &mut dyn FnMut(usize, f32) -> AfterFind,
    ) -> Result<Cost> {
        let mut cost = Cost::default();
        if batch.is_empty() {
            return Ok(cost);
        }
        let largest = engine.micro_batch().min(batch.len());
        for part in batch.parts(largest) {
            engine.forward(Pass::Eval, &part.images, &part.clean_logits)?;
        }
        cost.forwards += batch.len() as u64;
        let mut left: Vec<u32> = (0..batch.len() as u32).collect();
        let all = engine.upload("FAB rows", &left)?;
        engine.run(&GatherRows::new(&batch.images, &all, &batch.perturbed))?;

        let scratch = Scratch::alloc(engine, largest)?;
        for rank in 1..=self.targets.min(batch.classes().saturating_sub(1)) {
            if left.is_empty() {
                break;
            }
            let mut next = Vec::new();
            // Parts of one size, so that none of them is nearly empty.
            for rows in left.chunks(left.len().div_ceil(left.len().div_ceil(largest))) {
                let scratch = scratch.rows(rows.len());
                let distances = self.approach(engine, batch, rows, rank, &scratch)?;
                let (mut found, mut kept) = (Vec::new(), Vec::new());
                for (i, (&row, distance)) in rows.iter().zip(distances).enumerate() {
                    let after = match distance.is_finite() {
                        true => decide(row as usize, distance),
                        false => AfterFind { keep: false, go_on: true },
                    };
                    if after.keep {
                        found.push(i as u32);
                        kept.push(row);
                    }
                    if after.go_on {
                        next.push(row);
                    }
                }
                if !found.is_empty() {
                    let images = scratch.group.rows(0..found.len()).perturbed;
                    let (found, kept) =
                        (engine.upload("FAB finds", &found)?, engine.upload("FAB rows", &kept)?);
                    engine.run(&GatherRows::new(&scratch.closest, &found, &images))?;
                    engine.run(&ScatterRows::new(&images, &kept, &batch.perturbed))?;
                }
            }
            let passes = left.len() as u64 * u64::from(self.iterations);
            cost += Cost { forwards: 2 * passes, backwards: passes };
            left = next;
        }
        Ok(cost)
    }

    /// The distances of the closest finds of images `rows` of the batch on the way to the class of this rank; the images
    /// are `scratch.closest`.
    fn approach(
        &self,
        engine: &mut Engine,
        batch: &Batch,
        rows: &[u32],
        rank: usize,
        scratch: &Scratch,
    ) -> Result<Vec<f32>> {
        let Scratch { group, targets, closest, gradient } = scratch;
        let Batch { labels, images, perturbed, logits, logit_gradient, losses: distances, .. } = group;
        let rows = engine.upload("FAB rows", rows)?;
        batch.compact(engine, &rows, group, true)?;
        for copy in [perturbed, closest] {
            engine.run(&GatherRows::new(&batch.images, &rows, copy))?;
        }
        engine.write(distances, &vec![f32::INFINITY; rows.len()])?;
        engine.run(&TargetClass { logits: &group.clean_logits, labels, rank, targets })?;
        // The same at every step: the gradient of a difference of logits with respect to logits.
        engine.run(&ClassDifference { labels, targets, logit_gradient })?;

        let state = FabState { labels, targets, images, current: perturbed, closest, distances };
        for _ in 0..self.iterations {
            engine.forward(Pass::Eval, perturbed, logits)?;
            engine.backward(Pass::Eval, logit_gradient, GradRequest::images(gradient))?;
            let (largest_share, overshoot) = (self.largest_share, self.overshoot);
            engine.run(&FabStep { largest_share, overshoot, logits, gradient, state })?;
            engine.forward(Pass::Eval, perturbed, logits)?;
            engine.run(&FabKeep { backward: self.backward, logits, state })?;
        }
        engine.read(distances)
    }
}

impl Search for Fab {
    /// An image is broken if its closest find is no farther than epsilon, as f32 subtraction has it; then it meets no
    /// further target. `key` is not used: nothing is random.
    fn search(&mut self, engine: &mut Engine, _key: Key, batch: &Batch) -> Result<Found> {
        let mut broken = vec![false; batch.len()];
        let cost = self.run(engine, batch, &mut |position, distance| {
            broken[position] = distance <= self.epsilon;
            AfterFind { keep: broken[position], go_on: !broken[position] }
        })?;
        Ok(Found { broken, cost })
    }
}

/// What becomes of an image after a find.
struct AfterFind {
    keep: bool,
    go_on: bool,
}

/// A part of a batch, compacted, and the other tensors of a [`FabState`]. Its adversarial images are the current ones, its losses the
/// distances of the closest.
struct Scratch {
    group: Batch,
    targets: Tensor<u32>,
    closest: Tensor<f32>,
    gradient: Tensor<f32>,
}

impl Scratch {
    fn alloc(engine: &Engine, len: usize) -> Result<Self> {
        Ok(Self {
            group: Batch::alloc(engine, len)?,
            targets: engine.alloc("FAB targets", len)?,
            closest: engine.alloc("FAB closest images", len * IMAGE_LEN)?,
            gradient: engine.alloc("FAB gradient", len * IMAGE_LEN)?,
        })
    }

    /// The same memory for the first `len` images.
    fn rows(&self, len: usize) -> Self {
        Self {
            group: self.group.rows(0..len),
            targets: self.targets.slice(0..len),
            closest: self.closest.rows(0..len, IMAGE_LEN),
            gradient: self.gradient.rows(0..len, IMAGE_LEN),
        }
    }
}
