//! A search along the decision boundary between an image's label and a target class.
//!
//! Formulas: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack" (2020), in the
//! maximum norm. The CPU finds the shortest way by sorting, as the published code does, in f64.

use rayon::prelude::*;

use super::Op;
use super::margin::margin;
use super::softmax::{at_class, one_hot};
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::cuda::driver::{Address, Driver};
use crate::cuda::launch::{Cost, F32, U32, require, run, run_flat};
use crate::engine::{Operands, Result, Tensor};
use crate::model::layers::IMAGE_LEN;

/// `e_target - e_label`: the logit gradient of `z_target - z_label`.
#[derive(Clone, Copy, Debug)]
pub struct ClassDifference<'a> {
    pub labels: &'a Tensor<u32>,
    pub targets: &'a Tensor<u32>,
    /// `batch x classes`.
    pub logit_gradient: &'a Tensor<f32>,
}

/// One step of x' towards the boundary.
///
/// With w the gradient, the linearised boundary is `w . (t - x') + z_target - z_label = 0`. Let d be the way of least
/// maximum norm from x' to it inside of [0, 1], and e that from x; where the box does not reach the boundary, the way
/// to the corner of the box that is nearest to it; elements without gradient do not move. With
/// `a = min(|d| / (|d| + |e|), largest_share)`, both norms 1e-8 at least:
/// `x' <- clip01((1 - a) (x' + overshoot d) + a (x + overshoot e))`. An image whose label or target is no class stays.
#[derive(Clone, Copy, Debug)]
pub struct FabStep<'a> {
    /// The most that the way from the clean image weighs against the way from x': `alpha_max`.
    pub largest_share: f32,
    /// Factor on both ways, to land past the boundary: `eta`.
    pub overshoot: f32,
    /// `batch x classes`, of x'.
    pub logits: &'a Tensor<f32>,
    /// `batch x 32 x 32 x 3`: of `z_target - z_label` at x'.
    pub gradient: &'a Tensor<f32>,
    pub state: FabState<'a>,
}

/// Where the prediction by `logits`, those of x', is wrong: keeps x' if it is closer to x than the closest so far,
/// and goes back, `x' <- x + backward (x' - x)`.
#[derive(Clone, Copy, Debug)]
pub struct FabKeep<'a> {
    pub backward: f32,
    /// `batch x classes`, of x'.
    pub logits: &'a Tensor<f32>,
    pub state: FabState<'a>,
}

/// The images of a search.
#[derive(Clone, Copy, Debug)]
pub struct FabState<'a> {
    pub labels: &'a Tensor<u32>,
    /// The class whose boundary with the label is sought.
    pub targets: &'a Tensor<u32>,
    /// The clean images x, `batch x 32 x 32 x 3`.
    pub images: &'a Tensor<f32>,
    /// Where the search stands: x', likewise.
    pub current: &'a Tensor<f32>,
    /// The closest image that is predicted wrongly, likewise.
    pub closest: &'a Tensor<f32>,
    /// Its distance from x in the maximum norm, infinity before the first.
    pub distances: &'a Tensor<f32>,
}

impl FabState<'_> {
    /// Images of the search.
    fn len(&self) -> usize {
        self.labels.len()
    }
}

impl Op for ClassDifference<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let batch = self.labels.len();
        operands.reads(self.labels, batch)?;
        operands.reads(self.targets, batch)?;
        operands.writes(self.logit_gradient, batch * operands.classes())
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (labels, targets) = (cpu.input(self.labels)?, cpu.input(self.targets)?);
        let mut gradient = cpu.output(self.logit_gradient)?;
        let classes = labels.iter().zip(&*targets);
        for (row, (&label, &target)) in gradient.chunks_exact_mut(cpu.classes()).zip(classes) {
            for (c, slot) in row.iter_mut().enumerate() {
                *slot = one_hot(c, target) - one_hot(c, label);
            }
        }
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let params = ClassDifferenceParams {
            labels: cuda.address(self.labels)?,
            targets: cuda.address(self.targets)?,
            gradient: cuda.address(self.logit_gradient)?,
            elements: self.logit_gradient.len() as u32,
            classes: cuda.classes() as u32,
        };
        class_difference(cuda.driver(), &params)
    }
}

impl Op for FabStep<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let batch = self.state.len();
        operands.reads(self.logits, batch * operands.classes())?;
        operands.reads(self.gradient, batch * IMAGE_LEN)?;
        operands.reads(self.state.labels, batch)?;
        operands.reads(self.state.targets, batch)?;
        operands.reads(self.state.images, batch * IMAGE_LEN)?;
        operands.writes(self.state.current, batch * IMAGE_LEN)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (labels, targets) = (cpu.input(self.state.labels)?, cpu.input(self.state.targets)?);
        let (logits, gradient) = (cpu.input(self.logits)?, cpu.input(self.gradient)?);
        let images = cpu.input(self.state.images)?;
        let mut current = cpu.output(self.state.current)?;
        let (classes, logits, labels, targets) = (cpu.classes(), &logits[..], &labels[..], &targets[..]);
        let shares = [self.largest_share, self.overshoot];
        let images = images.par_chunks_exact(IMAGE_LEN).zip(gradient.par_chunks_exact(IMAGE_LEN));
        current.par_chunks_exact_mut(IMAGE_LEN).zip(images).enumerate().for_each(|(i, (current, (x, w)))| {
            let (z, label, target) = (&logits[i * classes..(i + 1) * classes], labels[i], targets[i]);
            if (label.max(target) as usize) < classes {
                let difference = f64::from(at_class(z, target)) - f64::from(at_class(z, label));
                move_to_boundary(shares, difference, w, x, current);
            }
        });
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let params = FabStepParams {
            logits: cuda.address(self.logits)?,
            gradient: cuda.address(self.gradient)?,
            labels: cuda.address(self.state.labels)?,
            targets: cuda.address(self.state.targets)?,
            images: cuda.address(self.state.images)?,
            current: cuda.address(self.state.current)?,
            classes: cuda.classes() as u32,
            largest_share: self.largest_share,
            overshoot: self.overshoot,
            padding: 0,
        };
        fab_step(cuda.driver(), self.state.len(), &params)
    }
}

impl Op for FabKeep<'_> {
    fn check(&self, operands: &mut Operands) -> Result<()> {
        let batch = self.state.len();
        operands.reads(self.logits, batch * operands.classes())?;
        operands.reads(self.state.labels, batch)?;
        operands.reads(self.state.images, batch * IMAGE_LEN)?;
        operands.writes(self.state.current, batch * IMAGE_LEN)?;
        operands.writes(self.state.closest, batch * IMAGE_LEN)?;
        operands.writes(self.state.distances, batch)
    }

    fn cpu(&self, cpu: &mut Cpu) -> Result<()> {
        let (logits, labels) = (cpu.input(self.logits)?, cpu.input(self.state.labels)?);
        let images = cpu.input(self.state.images)?;
        let (mut current, mut closest) = (cpu.output(self.state.current)?, cpu.output(self.state.closest)?);
        let mut distances = cpu.output(self.state.distances)?;
        let rows = logits.chunks_exact(cpu.classes()).zip(&*labels).zip(images.chunks_exact(IMAGE_LEN));
        let moved = current.chunks_exact_mut(IMAGE_LEN).zip(closest.chunks_exact_mut(IMAGE_LEN));
        for (((z, &label), x), ((moved, closest), least)) in rows.zip(moved.zip(&mut *distances)) {
            if margin(z, label) < 0.0 {
                let distance = x.iter().zip(&*moved).map(|(x, moved)| (moved - x).abs()).fold(0.0, f32::max);
                if distance < *least {
                    *least = distance;
                    closest.copy_from_slice(moved);
                }
                moved.iter_mut().zip(x).for_each(|(moved, x)| *moved = x + (*moved - x) * self.backward);
            }
        }
        Ok(())
    }

    fn cuda(&self, cuda: &mut Cuda) -> Result<()> {
        let params = FabKeepParams {
            logits: cuda.address(self.logits)?,
            labels: cuda.address(self.state.labels)?,
            images: cuda.address(self.state.images)?,
            current: cuda.address(self.state.current)?,
            closest: cuda.address(self.state.closest)?,
            distances: cuda.address(self.state.distances)?,
            classes: cuda.classes() as u32,
            backward: self.backward,
        };
        fab_keep(cuda.driver(), self.state.len(), &params)
    }
}

/// The mixture of the ways from `current` and from `x` to where `difference + w . (t - current)` is zero.
fn move_to_boundary(
    [largest_share, overshoot]: [f32; 2],
    difference: f64,
    w: &[f32],
    x: &[f32],
    current: &mut [f32],
) {
    let [w, x, from] =
        [w, x, &*current].map(|values| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
    let difference_at_x =
        difference + w.iter().zip(&x).zip(&from).map(|((w, x), t)| w * (x - t)).sum::<f64>();
    let (way, way_from_x) = (shortest_way(&w, &from, difference), shortest_way(&w, &x, difference_at_x));
    let norm = |way: &[f64]| way.iter().fold(1e-8, |most: f64, d| most.max(d.abs()));
    let share = (norm(&way) / (norm(&way) + norm(&way_from_x))).min(f64::from(largest_share));
    let overshoot = f64::from(overshoot);
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

/// Operands of [`class_difference`].
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ClassDifferenceParams {
    /// u32, `batch`.
    pub labels: Address,
    /// u32, `batch`.
    pub targets: Address,
    /// f32, `batch x classes`.
    pub gradient: Address,
    /// batch * classes.
    pub elements: u32,
    pub classes: u32,
}

/// `e_target - e_label`.
pub fn class_difference(driver: &dyn Driver, params: &ClassDifferenceParams) -> Result<()> {
    let elements = params.elements as usize;
    let batch = elements / params.classes.max(1) as usize;
    let cost = Cost::new(0, elements * F32 + batch * 2 * U32);
    run_flat(driver, "class_difference", params.elements, params, cost)
}

/// Operands of [`fab_step`].
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct FabStepParams {
    /// f32, `batch x classes`, of the current images.
    pub logits: Address,
    /// f32, `batch` images: the gradient of the target's logit less the label's.
    pub gradient: Address,
    /// u32, `batch`.
    pub labels: Address,
    /// u32, `batch`.
    pub targets: Address,
    /// f32, `batch` clean images.
    pub images: Address,
    /// f32, `batch` images, moved.
    pub current: Address,
    pub classes: u32,
    pub largest_share: f32,
    pub overshoot: f32,
    pub padding: u32,
}

/// Moves `batch` images towards the boundary; one whose label or target is no class stays.
pub fn fab_step(driver: &dyn Driver, batch: usize, params: &FabStepParams) -> Result<()> {
    let elements = batch * IMAGE_LEN;
    // Both projections sum their gradient, the mixture is a multiply-add of each; Newton's passes after the first are a
    // means. Gradient, clean and current image are read, the current one is written.
    let bytes = 4 * elements * F32 + batch * (params.classes as usize * F32 + 2 * U32);
    run(driver, "fab_step", [batch as u32, 1, 1], params, Cost::new(8 * elements, bytes))
}

/// Operands of [`fab_keep`].
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct FabKeepParams {
    /// f32, `batch x classes`, of the current images.
    pub logits: Address,
    /// u32, `batch`.
    pub labels: Address,
    /// f32, `batch` clean images.
    pub images: Address,
    /// f32, `batch` images; the wrongly predicted ones are moved back.
    pub current: Address,
    /// f32, `batch` images.
    pub closest: Address,
    /// f32, `batch`.
    pub distances: Address,
    pub classes: u32,
    pub backward: f32,
}

/// Keeps the closest of the wrongly predicted images, and moves back from them.
pub fn fab_keep(driver: &dyn Driver, batch: usize, params: &FabKeepParams) -> Result<()> {
    // Which images are kept and moved depends on the logits.
    let bytes = batch * (params.classes as usize * F32 + U32);
    require((1..=128).contains(&params.classes), "fab_keep", "classes: 1 to 128", params.classes)?;
    run(driver, "fab_keep", [batch as u32, 1, 1], params, Cost::new(0, bytes))
}
