//! Steps to the decision boundary between the label and a target class: the reference of `kernels/attack/boundary.cu`.
//!
//! The shortest way is found by sorting, as in the published code, and in f64. Checked by `tests/fab.rs`; called by
//! `attack/fab.rs`.

use std::cmp::Ordering;

use rayon::prelude::*;

use super::engine::Reference;
use super::invalid;
use super::margin::margin;
use super::memory::expect_len;
use crate::engine::{BoundaryState, BoundaryStep, BoundarySteps, Engine, Error, Result, Tensor};
use crate::model::layers::IMAGE_LEN;

impl BoundarySteps for Reference {
    fn ranked_targets(
        &mut self,
        logits: &Tensor<f32>,
        labels: &Tensor<u32>,
        rank: usize,
        targets: &Tensor<u32>,
    ) -> Result<()> {
        let classes = self.network().classes;
        if !(1..classes).contains(&rank) {
            return invalid(format!("rank {rank} among the wrong classes: expected 1 to {}", classes - 1));
        }
        expect_len(logits, labels.len() * classes)?;
        expect_len(targets, labels.len())?;
        let (logits, labels) = (self.heap.copy(logits)?, self.classes_of(labels)?);
        let mut targets = self.heap.view_mut(targets)?;
        for ((target, z), &label) in targets.iter_mut().zip(logits.chunks_exact(classes)).zip(&labels) {
            let mut wrong: Vec<usize> = (0..classes).filter(|&c| c != label).collect();
            // A stable sort: the lowest index stays first among equals.
            wrong.sort_by(|&a, &b| z[b].partial_cmp(&z[a]).unwrap_or(Ordering::Equal));
            *target = wrong[rank - 1] as u32;
        }
        Ok(())
    }

    fn class_difference(
        &mut self,
        labels: &Tensor<u32>,
        targets: &Tensor<u32>,
        logit_gradient: &Tensor<f32>,
    ) -> Result<()> {
        let classes = self.network().classes;
        expect_len(targets, labels.len())?;
        expect_len(logit_gradient, labels.len() * classes)?;
        let (labels, targets) = (self.classes_of(labels)?, self.classes_of(targets)?);
        let mut gradient = self.heap.view_mut(logit_gradient)?;
        gradient.fill(0.0);
        for ((row, label), target) in gradient.chunks_exact_mut(classes).zip(labels).zip(targets) {
            row[target] += 1.0;
            row[label] -= 1.0;
        }
        Ok(())
    }

    fn boundary_step(
        &mut self,
        step: &BoundaryStep,
        logits: &Tensor<f32>,
        gradient: &Tensor<f32>,
        state: &BoundaryState,
    ) -> Result<()> {
        let (heap, classes) = (self.heap, self.network().classes);
        let batch = expect_state(state, logits, classes)?;
        expect_len(gradient, batch * IMAGE_LEN)?;
        let (labels, targets) = (self.classes_of(state.labels)?, self.classes_of(state.targets)?);
        let (logits, gradient, images) = (heap.copy(logits)?, heap.copy(gradient)?, heap.copy(state.images)?);
        let mut current = heap.view_mut(state.current)?;
        let images = images.par_chunks_exact(IMAGE_LEN).zip(gradient.par_chunks_exact(IMAGE_LEN));
        current.par_chunks_exact_mut(IMAGE_LEN).zip(images).enumerate().for_each(|(i, (current, (x, w)))| {
            let z = &logits[i * classes..(i + 1) * classes];
            let difference = f64::from(z[targets[i]]) - f64::from(z[labels[i]]);
            move_to_boundary(step, difference, w, x, current);
        });
        Ok(())
    }

    fn boundary_keep(&mut self, backward: f32, logits: &Tensor<f32>, state: &BoundaryState) -> Result<()> {
        let (heap, classes) = (self.heap, self.network().classes);
        let batch = expect_state(state, logits, classes)?;
        let (logits, labels) = (heap.copy(logits)?, heap.copy(state.labels)?);
        let images = heap.copy(state.images)?;
        let (mut current, mut closest) = (heap.view_mut(state.current)?, heap.view_mut(state.closest)?);
        let mut distances = heap.view_mut(state.distances)?;
        for i in 0..batch {
            let of = i * IMAGE_LEN..(i + 1) * IMAGE_LEN;
            let (x, moved) = (&images[of.clone()], &mut current[of.clone()]);
            if margin(&logits[i * classes..(i + 1) * classes], labels[i]) < 0.0 {
                let distance = x.iter().zip(&*moved).map(|(x, moved)| (moved - x).abs()).fold(0.0, f32::max);
                if distance < distances[i] {
                    distances[i] = distance;
                    closest[of].copy_from_slice(moved);
                }
                moved.iter_mut().zip(x).for_each(|(moved, x)| *moved = x + (*moved - x) * backward);
            }
        }
        Ok(())
    }
}

impl Reference {
    /// Labels as indices, all of them classes.
    fn classes_of(&self, labels: &Tensor<u32>) -> Result<Vec<usize>> {
        let (values, classes) = (self.heap.copy(labels)?, self.network().classes);
        match values.iter().position(|&label| label as usize >= classes) {
            None => Ok(values.into_iter().map(|label| label as usize).collect()),
            Some(at) => Err(Error::Invalid(format!(
                "{}: class {} at position {at}, expected 0 to {}",
                labels.name(),
                values[at],
                classes - 1
            ))),
        }
    }
}

/// The batch, by which every tensor has its length.
fn expect_state(state: &BoundaryState, logits: &Tensor<f32>, classes: usize) -> Result<usize> {
    let batch = state.labels.len();
    expect_len(logits, batch * classes)?;
    expect_len(state.targets, batch)?;
    expect_len(state.images, batch * IMAGE_LEN)?;
    expect_len(state.current, batch * IMAGE_LEN)?;
    expect_len(state.closest, batch * IMAGE_LEN)?;
    expect_len(state.distances, batch)?;
    Ok(batch)
}

/// The mixture of the ways from `current` and from `x` to where `difference + w . (t - current)` is zero.
fn move_to_boundary(step: &BoundaryStep, difference: f64, w: &[f32], x: &[f32], current: &mut [f32]) {
    let [w, x, from] =
        [w, x, &*current].map(|values| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
    let difference_at_x =
        difference + w.iter().zip(&x).zip(&from).map(|((w, x), t)| w * (x - t)).sum::<f64>();
    let (way, way_from_x) = (shortest_way(&w, &from, difference), shortest_way(&w, &x, difference_at_x));
    let norm = |way: &[f64]| way.iter().fold(1e-8, |most: f64, d| most.max(d.abs()));
    let share = (norm(&way) / (norm(&way) + norm(&way_from_x))).min(f64::from(step.largest_share));
    let overshoot = f64::from(step.overshoot);
    for (i, out) in current.iter_mut().enumerate() {
        let mixed =
            (1.0 - share) * (from[i] + overshoot * way[i]) + share * (x[i] + overshoot * way_from_x[i]);
        // Not `clamp`: a way that is NaN ends in the range, as on the other devices.
        #[allow(clippy::manual_clamp)]
        let inside = mixed.max(0.0).min(1.0);
        *out = inside as f32;
    }
}

/// The shortest way d in the maximum norm with `w . d = -excess` and `t + d` in [0, 1]; the way to the nearest corner where
/// there is none.
fn shortest_way(w: &[f64], t: &[f64], excess: f64) -> Vec<f64> {
    let down = |w: f64| if excess >= 0.0 { w } else { -w };
    // Room of each element up to its wall, the smallest first, and the weights of those with more room than any before.
    let room = |w: f64, t: f64| if down(w) > 0.0 { t } else { 1.0 - t };
    let mut walls: Vec<(f64, f64)> =
        w.iter().zip(t).filter(|(w, _)| **w != 0.0).map(|(&w, &t)| (room(w, t), w.abs())).collect();
    walls.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut free: Vec<f64> = walls
        .iter()
        .rev()
        .scan(0.0, |sum, (_, w)| {
            *sum += w;
            Some(*sum)
        })
        .collect();
    free.reverse();

    let (mut length, mut left) = (0.0, excess.abs());
    for ((wall, _), free) in walls.iter().zip(free) {
        let piece = (wall - length) * free;
        if left <= piece {
            length += left / free;
            left = 0.0;
            break;
        }
        (length, left) = (*wall, left - piece);
    }
    let length = if left > 0.0 { f64::INFINITY } else { length };
    w.iter()
        .zip(t)
        .map(|(&w, &t)| {
            let distance = room(w, t).min(length);
            if down(w) > 0.0 {
                -distance
            } else if down(w) < 0.0 {
                distance
            } else {
                0.0
            }
        })
        .collect()
}
