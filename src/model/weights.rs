//! Named tensors in PyTorch's layout, read from and written to safetensors files.

use std::collections::BTreeMap;

/// Tensors by PyTorch name; a whole `state_dict`, or the part of it that a call speaks of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    pub tensors: BTreeMap<String, NamedTensor>,
}

/// One f32 tensor in PyTorch's layout (K, C, R, S for a convolution).
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Why a weights file or a set of weights is refused.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("{name}: missing from the weights")]
    Missing { name: String },
    #[error("{name}: shape {met:?}, expected {wanted:?}")]
    Shape { name: String, met: Vec<usize>, wanted: Vec<usize> },
}

impl Weights {
    /// The tensor `name`, if it has this shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<&[f32], WeightsError> {
        let tensor = self.tensors.get(name).ok_or_else(|| WeightsError::Missing { name: name.into() })?;
        if tensor.shape != shape {
            return Err(WeightsError::Shape {
                name: name.into(),
                met: tensor.shape.clone(),
                wanted: shape.into(),
            });
        }
        Ok(&tensor.values)
    }

    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<f32>) {
        self.tensors.insert(name.into(), NamedTensor { shape: shape.to_vec(), values });
    }
}
