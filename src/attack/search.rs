//! Attacks of an evaluation: each looks for one adversarial image per image, and says which it found.
//!
//! A new one is one more file next to this one.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::engine::{Engine, Result};
use crate::philox::Key;

/// An attack that evaluates a trained network: BatchNorm in eval mode, the weights already folded.
pub trait Search {
    /// Looks for an adversarial image inside the ball around each image of `batch`.
    ///
    /// `batch.images`, `batch.labels` and `batch.samples` are given; the clean images are predicted right. Behind it
    /// `batch.perturbed` holds a wrongly predicted image where one was found and some image of the ball elsewhere.
    /// Random numbers are keyed by `key` and each sample, so what is found does not depend on the rest of the batch.
    fn search(&mut self, engine: &mut Engine, key: Key, batch: &Batch) -> Result<Found>;
}

/// What a [`Search`] found and what it cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// For each image of the batch: was a wrongly predicted image found?
    pub broken: Vec<bool>,
    pub cost: Cost,
}

/// Passes through the network, counted for each image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Forward passes: the queries of a black-box attack.
    pub forwards: u64,
    /// Input gradients.
    pub backwards: u64,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.forwards += other.forwards;
        self.backwards += other.backwards;
    }
}
