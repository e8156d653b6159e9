//! Weights, velocity and gradients in flat arenas ([`Layout`]), filters in the order of files.

use crate::engine::Result;
use crate::model::{FilterOrder, Weights};

pub use crate::model::Layout;

impl Layout {
    /// Reads the trainable tensors out of `weights`.
    pub fn parameters_from(&self, weights: &Weights) -> Result<Vec<f32>> {
        self.arena_of(self.trainable, weights)
    }

    /// Reads parameters and running statistics.
    pub fn arena_from(&self, weights: &Weights) -> Result<Vec<f32>> {
        self.arena_of(self.total, weights)
    }

    fn arena_of(&self, len: usize, weights: &Weights) -> Result<Vec<f32>> {
        let mut arena = vec![0.0; len];
        self.pack(FilterOrder::Kcrs, weights, &mut arena)?;
        Ok(arena)
    }

    /// Weight and bias of the linear layer.
    pub fn linear<'a>(&self, arena: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        arena[self.linear_weight..self.trainable].split_at(self.linear_bias - self.linear_weight)
    }

    /// The same, of an arena of gradients.
    pub fn linear_mut<'a>(&self, arena: &'a mut [f32]) -> (&'a mut [f32], &'a mut [f32]) {
        arena[self.linear_weight..self.trainable].split_at_mut(self.linear_bias - self.linear_weight)
    }

    /// The named tensors of an arena, with statistics or without.
    pub fn arena_to_weights(&self, arena: &[f32]) -> Weights {
        self.unpack(FilterOrder::Kcrs, arena)
    }
}

/// Weights and what the optimizer carries.
pub struct Model {
    /// [`Layout::total`] elements.
    pub live: Vec<f32>,
    /// [`Layout::trainable`] elements.
    pub velocity: Vec<f32>,
    pub average: Option<Vec<f32>>,
}
