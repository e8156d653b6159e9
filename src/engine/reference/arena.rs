//! Weights, velocity and gradients in flat arenas, in the order and layout of a weights file.
//!
//! Trainable parameters and running statistics live in two arenas, so that the optimizer sees one flat vector.
//! Checked by `tests/reference_engine.rs` (round trip); called by the passes and by `optimizer.rs`.

use std::ops::Range;

use crate::engine::{Error, Result, WeightSet};
use crate::model::{Parameter, ParameterKind, ResNet, Weights};

/// Where the tensors of one convolution and its BatchNorm lie.
#[derive(Clone, Debug)]
pub struct ConvPlace {
    pub weight: Range<usize>,
    pub bn_weight: Range<usize>,
    pub bn_bias: Range<usize>,
    /// In the arena of statistics, as is `running_var`.
    pub running_mean: Range<usize>,
    pub running_var: Range<usize>,
}

/// The places of all tensors.
pub struct Layout {
    parameters: Vec<(Parameter, Range<usize>)>,
    pub convs: Vec<ConvPlace>,
    pub linear_weight: Range<usize>,
    pub linear_bias: Range<usize>,
    pub trainable: usize,
    pub statistics: usize,
}

impl Layout {
    pub fn new(network: ResNet) -> Self {
        let (mut trainable, mut statistics) = (0, 0);
        let place = |parameter: Parameter| {
            let end = if parameter.kind.trainable() { &mut trainable } else { &mut statistics };
            *end += parameter.len();
            let range = *end - parameter.len()..*end;
            (parameter, range)
        };
        let parameters: Vec<_> = network.parameters().into_iter().map(place).collect();
        let of_kind = |kind| {
            let matching = parameters.iter().filter(move |(parameter, _)| parameter.kind == kind);
            matching.map(|(_, range)| range.clone()).collect::<Vec<_>>()
        };
        let weights = of_kind(ParameterKind::ConvWeight).into_iter();
        let norms = of_kind(ParameterKind::BnWeight).into_iter().zip(of_kind(ParameterKind::BnBias));
        let running =
            of_kind(ParameterKind::BnRunningMean).into_iter().zip(of_kind(ParameterKind::BnRunningVar));
        let convs = weights
            .zip(norms.zip(running))
            .map(|(weight, ((bn_weight, bn_bias), (running_mean, running_var)))| ConvPlace {
                weight,
                bn_weight,
                bn_bias,
                running_mean,
                running_var,
            })
            .collect();
        let linear_weight = of_kind(ParameterKind::LinearWeight).remove(0);
        let linear_bias = of_kind(ParameterKind::LinearBias).remove(0);
        Self { parameters, convs, linear_weight, linear_bias, trainable, statistics }
    }

    /// Reads the trainable tensors out of `weights`.
    pub fn parameters_from(&self, weights: &Weights) -> Result<Vec<f32>> {
        self.collect(weights, true)
    }

    /// Reads parameters and running statistics.
    pub fn arena_from(&self, weights: &Weights) -> Result<Arena> {
        Ok(Arena { parameters: self.collect(weights, true)?, statistics: self.collect(weights, false)? })
    }

    fn collect(&self, weights: &Weights, trainable: bool) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(if trainable { self.trainable } else { self.statistics });
        for (parameter, _) in self.parameters.iter().filter(|(p, _)| p.kind.trainable() == trainable) {
            values.extend_from_slice(weights.get(&parameter.name, &parameter.shape)?);
        }
        Ok(values)
    }

    /// The named tensors of an arena of trainable values.
    pub fn parameters_to_weights(&self, values: &[f32]) -> Weights {
        let mut weights = Weights::default();
        for (parameter, range) in self.parameters.iter().filter(|(p, _)| p.kind.trainable()) {
            weights.insert(&parameter.name, &parameter.shape, values[range.clone()].to_vec());
        }
        weights
    }

    /// The whole state as named tensors.
    pub fn arena_to_weights(&self, arena: &Arena) -> Weights {
        let mut weights = Weights::default();
        for (parameter, range) in &self.parameters {
            let values = if parameter.kind.trainable() { &arena.parameters } else { &arena.statistics };
            weights.insert(&parameter.name, &parameter.shape, values[range.clone()].to_vec());
        }
        weights
    }
}

/// One set of weights.
#[derive(Clone)]
pub struct Arena {
    pub parameters: Vec<f32>,
    pub statistics: Vec<f32>,
}

/// Weights and what the optimizer carries.
pub struct Model {
    pub live: Arena,
    pub velocity: Vec<f32>,
    pub average: Option<Arena>,
}

impl Model {
    /// One set of weights, if there is such a one.
    pub fn arena(&self, set: WeightSet) -> Result<&Arena> {
        match set {
            WeightSet::Live => Ok(&self.live),
            WeightSet::Average => self.average.as_ref().ok_or_else(|| {
                Error::Invalid("no moving average: sgd_step with average_decay starts one".into())
            }),
        }
    }
}
