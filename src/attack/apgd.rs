//! APGD (Croce and Hein, "Reliable evaluation of adversarial robustness", ICML 2020): PGD with momentum whose step size each
//! image halves for itself; on the cross-entropy (APGD-CE) or on the targeted DLR loss, one wrong class after the other (APGD-T).
//!
//! What an iteration does is [`ApgdStep`]; here are the schedule of checkpoints, the losses and the targets.

use super::{Cost, Found, Search};
use crate::batch::Batch;
use crate::engine::{Engine, GradRequest, Pass, Result, Tensor};
use crate::ops::{
    ApgdPhase, ApgdPoint, ApgdState, ApgdStep, Margin, MarginLoss, Noise, ScatterRows, TargetClass,
};
use crate::philox::{Key, Purpose};

/// Iterations of AutoAttack's standard version.
const ITERATIONS: usize = 100;
/// Targets of AutoAttack's standard version: the wrong classes with the 9 largest clean logits.
pub const TARGETS: usize = 9;

/// APGD from one random start (for each target).
pub struct Apgd {
    epsilon: f32,
    iterations: usize,
    /// Wrong classes to aim at, one after the other; `None` ascends the cross-entropy.
    targets: Option<usize>,
    workspace: Option<Workspace>,
}

/// Tensors that outlive a batch.
struct Workspace {
    state: ApgdState,
    /// The images still to fool, compacted.
    group: Batch,
    places: Tensor<u32>,
    targets: Tensor<u32>,
}

/// Lengths of the windows between checkpoints: 22 % of the iterations, then 3 % less each, 6 % at least.
fn windows(iterations: usize) -> impl Iterator<Item = usize> {
    let share = |percent: usize| (percent * iterations / 100).max(1);
    let (first, less, least) = (share(22), share(3), share(6));
    std::iter::successors(Some(first), move |window| Some(window.saturating_sub(less).max(least)))
}

/// The phase of each step of an attack: the network sees the start and `iterations` more points.
pub fn phases(iterations: usize) -> Vec<ApgdPhase> {
    let mut phases = vec![ApgdPhase::Within; iterations + 1];
    let mut end = 0;
    for window in windows(iterations) {
        end += window;
        if end >= iterations {
            break;
        }
        phases[end] = ApgdPhase::Checkpoint { window: window as u32 };
    }
    phases[0] = ApgdPhase::First;
    phases[iterations] = ApgdPhase::Last;
    phases
}

impl Apgd {
    /// APGD-CE: 100 iterations in the ball of radius `epsilon`.
    pub fn cross_entropy(epsilon: f32) -> Self {
        Self { epsilon, iterations: ITERATIONS, targets: None, workspace: None }
    }

    /// APGD-T: 100 iterations for each of 9 targets, or of all wrong classes where there are fewer.
    pub fn targeted(epsilon: f32) -> Self {
        Self { targets: Some(TARGETS), ..Self::cross_entropy(epsilon) }
    }

    /// The same with another number of iterations, 1 at least.
    pub fn with_iterations(self, iterations: usize) -> Self {
        Self { iterations: iterations.max(1), ..self }
    }

    fn workspace(&mut self, engine: &Engine, len: usize) -> Result<Workspace> {
        match self.workspace.take() {
            Some(workspace) if workspace.state.len() >= len => Ok(workspace),
            _ => Ok(Workspace {
                state: ApgdState::alloc(engine, len)?,
                group: Batch::alloc(engine, len)?,
                places: engine.alloc("places of images to fool", len)?,
                targets: engine.alloc("APGD targets", len)?,
            }),
        }
    }

    /// One attack on every image of `batch`: where each is fooled.
    fn run(
        &self,
        engine: &mut Engine,
        key: Key,
        batch: &Batch,
        targets: Option<&Tensor<u32>>,
        state: &ApgdState,
    ) -> Result<Vec<bool>> {
        let key = Key { purpose: Purpose::ApgdStart, ..key };
        engine.run(&batch.perturb(Noise::Surface { radius: self.epsilon }, key))?;
        let phases = phases(self.iterations);
        let (len, size) = (batch.len(), engine.micro_batch());
        for start in (0..len).step_by(size) {
            let range = start..len.min(start + size);
            let (part, state) = (batch.rows(range.clone()), state.rows(range.clone()));
            let targets = targets.map(|targets| targets.slice(range));
            let point = ApgdPoint {
                images: &part.images,
                labels: &part.labels,
                losses: &part.losses,
                predictions: &part.predictions,
                perturbed: &part.perturbed,
            };
            for &phase in &phases {
                engine.forward(Pass::Eval, &part.perturbed, &part.logits)?;
                match &targets {
                    None => {
                        // Scale 1: only the gradient's sign matters.
                        engine.run(&part.cross_entropy(1.0))?;
                    }
                    Some(targets) => {
                        let margin = Margin::TargetedDlr { targets };
                        engine.run(&MarginLoss {
                            margin,
                            logits: &part.logits,
                            labels: &part.labels,
                            outputs: part.outputs(),
                        })?;
                    }
                }
                if phase != ApgdPhase::Last {
                    engine.backward(
                        Pass::Eval,
                        &part.logit_gradient,
                        GradRequest::images(&state.gradient),
                    )?;
                }
                engine.run(&ApgdStep { epsilon: self.epsilon, phase, point, state: &state })?;
            }
        }
        Ok(engine.read(&state.broken.slice(0..len))?.into_iter().map(|broken| broken != 0).collect())
    }

    fn cost(&self, images: usize) -> Cost {
        let images = images as u64;
        Cost { forwards: images * (self.iterations as u64 + 1), backwards: images * self.iterations as u64 }
    }

    /// Target after target, each on the images not fooled yet. The starts of the targets differ in `key.step`.
    fn search_targets(
        &self,
        engine: &mut Engine,
        key: Key,
        batch: &Batch,
        targets: usize,
        workspace: &Workspace,
    ) -> Result<Found> {
        // x' = x to begin with: a radius of zero copies.
        engine.run(&batch.perturb(Noise::Uniform { radius: 0.0 }, key))?;
        for part in batch.parts(engine.micro_batch()) {
            engine.forward(Pass::Eval, &part.images, &part.clean_logits)?;
        }
        let mut found = Found {
            broken: vec![false; batch.len()],
            cost: Cost { forwards: batch.len() as u64, backwards: 0 },
        };
        for rank in 1..=targets.min(batch.classes() - 1) {
            let left: Vec<u32> =
                (0..batch.len() as u32).filter(|&place| !found.broken[place as usize]).collect();
            if left.is_empty() {
                break;
            }
            let group = workspace.group.rows(0..left.len());
            let places = workspace.places.slice(0..left.len());
            engine.write(&places, &left)?;
            batch.compact(engine, &places, &group, true)?;
            let aims = workspace.targets.slice(0..left.len());
            engine.run(&TargetClass {
                rank,
                logits: &group.clean_logits,
                labels: &group.labels,
                targets: &aims,
            })?;

            let key = Key { step: key.step * TARGETS as u32 + (rank as u32 - 1), ..key };
            let broken = self.run(engine, key, &group, Some(&aims), &workspace.state.rows(0..left.len()))?;
            engine.run(&ScatterRows::new(&group.perturbed, &places, &batch.perturbed))?;
            found.cost += self.cost(left.len());
            for (place, broken) in left.into_iter().zip(broken) {
                found.broken[place as usize] = broken;
            }
        }
        Ok(found)
    }
}

impl Search for Apgd {
    fn search(&mut self, engine: &mut Engine, key: Key, batch: &Batch) -> Result<Found> {
        let workspace = self.workspace(engine, batch.len())?;
        let found = match self.targets {
            None => Found {
                broken: self.run(engine, key, batch, None, &workspace.state.rows(0..batch.len()))?,
                cost: self.cost(batch.len()),
            },
            Some(targets) => self.search_targets(engine, key, batch, targets, &workspace)?,
        };
        self.workspace = Some(workspace);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_those_of_the_published_code() {
        let checks = |iterations| -> Vec<(usize, u32)> {
            let numbered = phases(iterations).into_iter().enumerate();
            let check = |(at, phase)| match phase {
                ApgdPhase::Checkpoint { window } => Some((at, window)),
                _ => None,
            };
            numbered.filter_map(check).collect()
        };
        let standard = [(22, 22), (41, 19), (57, 16), (70, 13), (80, 10), (87, 7), (93, 6), (99, 6)];
        assert_eq!(checks(100), standard);
        assert_eq!(checks(10), [(2, 2), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1), (9, 1)]);
        assert_eq!(phases(1), [ApgdPhase::First, ApgdPhase::Last]);
        assert_eq!((phases(100).len(), phases(100)[100]), (101, ApgdPhase::Last));
    }
}
