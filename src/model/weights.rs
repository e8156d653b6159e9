//! Named tensors in PyTorch's layout, read from and written to safetensors files.
//!
//! A file written here loads with `load_state_dict(safetensors.torch.load_file(f))`, and the other way round.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::foreign::{self, IGNORED_SUFFIX};
use super::layers::WIDTHS;
use super::{ParameterKind, ResNet};
use crate::files::{Existing, Place, limit, read};

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
    #[error("{name}: shape {actual:?}, expected {expected:?}")]
    Shape { name: String, actual: Vec<usize>, expected: Vec<usize> },
    #[error("{name}: not a tensor of this network ({network})")]
    Unknown { name: String, network: ResNet },
    #[error("{name}: missing from the weights; {instead}")]
    Named { name: String, instead: String },
    #[error("{name}: the name that {other} becomes is there already")]
    Twice { name: String, other: String },
    #[error("{name}[{index}]: {value} is too large for F32")]
    Range { name: String, index: usize, value: f64 },
    #[error(
        "{name}[{index}]: {value}, expected {expected}; the weights are damaged or the training diverged"
    )]
    Value { name: String, index: usize, value: f32, expected: &'static str },
    #[error("{name}: type {actual}, expected {expected}")]
    Type { name: String, actual: String, expected: &'static str },
    #[error(
        "conv1.weight has {actual} output channels, expected {} (the widths that have kernels)",
        widths()
    )]
    Width { actual: usize },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: not a whole safetensors file: {reason}")]
    Format { path: PathBuf, reason: String },
    #[error("{path}: expected a safetensors file, this is {what}")]
    Foreign { path: PathBuf, what: &'static str },
    #[error("{path}: {source}")]
    InFile { path: PathBuf, source: Box<WeightsError> },
}

/// The tensors of a safetensors file; the path of an error is empty.
pub(super) fn parse(bytes: &[u8]) -> Result<SafeTensors<'_>, WeightsError> {
    SafeTensors::deserialize(bytes).map_err(|error| match foreign::recognise(bytes) {
        Some(what) => WeightsError::Foreign { path: PathBuf::new(), what },
        None => WeightsError::Format { path: PathBuf::new(), reason: error.to_string() },
    })
}

/// The tensors by name. The library has them in another order at every run, and with it the first that is refused.
pub(super) fn by_name<'a>(file: &'a SafeTensors) -> Vec<(&'a str, TensorView<'a>)> {
    let mut tensors: Vec<_> = file.iter().collect();
    tensors.sort_unstable_by_key(|(name, _)| *name);
    tensors
}

fn widths() -> String {
    WIDTHS.map(|width| width.to_string()).join(" or ")
}

impl Weights {
    /// The tensor `name`, if it has this shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<&[f32], WeightsError> {
        let tensor = self.tensors.get(name).ok_or_else(|| WeightsError::Missing { name: name.into() })?;
        if tensor.shape != shape {
            return Err(WeightsError::Shape {
                name: name.into(),
                actual: tensor.shape.clone(),
                expected: shape.into(),
            });
        }
        Ok(&tensor.values)
    }

    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<f32>) {
        self.tensors.insert(name.into(), NamedTensor { shape: shape.to_vec(), values });
    }

    /// The network these weights belong to, from the shapes of the first and the last layer and the names of those between.
    /// Says nothing about the shapes of these: [`Weights::check`] does.
    pub fn infer_network(&self) -> Result<ResNet, WeightsError> {
        let shape = |name: &str| match self.tensors.get(name) {
            Some(tensor) => Ok(&tensor.shape),
            None => Err(self.named_otherwise(name)),
        };
        let stem = shape("conv1.weight")?;
        let width = stem.first().copied().unwrap_or(0);
        if !WIDTHS.contains(&width) {
            return Err(WeightsError::Width { actual: width });
        }
        let (linear, features_of) = (shape("linear.weight")?, ResNet::resnet18(width, 10).features());
        match linear[..] {
            [classes, features] if classes > 0 && features == features_of => {
                Ok(self.of_depth(width, classes))
            }
            _ => Err(WeightsError::Shape {
                name: "linear.weight".into(),
                actual: linear.clone(),
                expected: vec![10, features_of],
            }),
        }
    }

    /// Of the networks with a name the one that knows the most of these tensors, and of equals the smallest.
    fn of_depth(&self, width: usize, classes: usize) -> ResNet {
        let known = |network: &ResNet| {
            network.parameters().iter().filter(|parameter| self.tensors.contains_key(&parameter.name)).count()
        };
        let named = ResNet::named(width, classes).into_iter().rev();
        named.max_by_key(known).unwrap_or(ResNet::resnet18(width, classes))
    }

    /// Why the tensor `name` is missing, where others are there that it could be.
    fn named_otherwise(&self, name: &str) -> WeightsError {
        let names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        WeightsError::Named { name: name.into(), instead: foreign::instead(&names) }
    }

    /// Whether these are exactly the tensors of `network`: all there, none more, right shapes, every value
    /// finite, every running variance >= 0.
    pub fn check(&self, network: &ResNet) -> Result<(), WeightsError> {
        let parameters = network.parameters();
        let unknown = |name: &&String| parameters.iter().all(|parameter| parameter.name != **name);
        for parameter in &parameters {
            let values = match self.get(&parameter.name, &parameter.shape) {
                Err(WeightsError::Missing { name }) if self.tensors.keys().any(|name| unknown(&name)) => {
                    return Err(self.named_otherwise(&name));
                }
                values => values?,
            };
            let is_variance = parameter.kind == ParameterKind::BnRunningVar;
            let expected = if is_variance { "a finite number >= 0" } else { "a finite number" };
            let bad = values.iter().position(|value| !value.is_finite() || (is_variance && *value < 0.0));
            if let Some(index) = bad {
                let (name, value) = (parameter.name.clone(), values[index]);
                return Err(WeightsError::Value { name, index, value, expected });
            }
        }
        if self.tensors.len() > parameters.len()
            && let Some(name) = self.tensors.keys().find(unknown)
        {
            return Err(WeightsError::Unknown { name: name.clone(), network: *network });
        }
        Ok(())
    }

    /// Reads a safetensors file: every tensor must be F32, but for PyTorch's integer `num_batches_tracked`, which
    /// are dropped.
    pub fn read(path: &Path) -> Result<Self, WeightsError> {
        Self::in_file(path, &Self::read_bytes(path)?, Self::from_bytes)
    }

    /// Reads a safetensors file of another program: see [`foreign::convert`].
    pub fn convert(path: &Path) -> Result<foreign::Converted, WeightsError> {
        Self::in_file(path, &Self::read_bytes(path)?, foreign::convert)
    }

    /// The bytes of a weights file, for those who want their digest too: a second reading may meet another file, or an empty
    /// pipe.
    pub fn read_bytes(path: &Path) -> Result<Vec<u8>, WeightsError> {
        let io = |source| WeightsError::Io { path: path.into(), source };
        read(path, limit::TENSORS).map_err(io)
    }

    /// The bytes of a file, parsed; errors bear its name.
    fn in_file<T>(
        path: &Path,
        bytes: &[u8],
        parse: impl Fn(&[u8]) -> Result<T, WeightsError>,
    ) -> Result<T, WeightsError> {
        parse(bytes).map_err(|error| match error {
            WeightsError::Format { reason, .. } => WeightsError::Format { path: path.into(), reason },
            WeightsError::Foreign { what, .. } => WeightsError::Foreign { path: path.into(), what },
            other => WeightsError::InFile { path: path.into(), source: Box::new(other) },
        })
    }

    /// [`Weights::read`] and [`Weights::check`] against the network the file itself implies.
    pub fn read_network(path: &Path) -> Result<(ResNet, Self), WeightsError> {
        Self::network_in_file(path, &Self::read_bytes(path)?)
    }

    /// [`Weights::read_network`] of a file whose bytes were read from `path`.
    pub fn network_in_file(path: &Path, bytes: &[u8]) -> Result<(ResNet, Self), WeightsError> {
        let weights = Self::in_file(path, bytes, Self::from_bytes)?;
        let checked = weights.infer_network().and_then(|network| weights.check(&network).map(|()| network));
        match checked {
            Ok(network) => Ok((network, weights)),
            Err(error) => Err(WeightsError::InFile { path: path.into(), source: Box::new(error) }),
        }
    }

    /// Parses the bytes of a safetensors file; the path of a format error is empty.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WeightsError> {
        let file = parse(bytes)?;
        let mut weights = Self::default();
        for (name, view) in by_name(&file) {
            if name.ends_with(IGNORED_SUFFIX) {
                continue;
            }
            if view.dtype() != Dtype::F32 {
                return Err(WeightsError::Type {
                    name: name.into(),
                    actual: format!("{:?}", view.dtype()),
                    expected: "F32; `secateur weights convert FILE OUT` makes it so",
                });
            }
            // Not a cast: nothing promises that the file's data is aligned for f32.
            let values = view.data().as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect();
            weights.insert(name, view.shape(), values);
        }
        Ok(weights)
    }

    /// The bytes of a safetensors file; the same weights give the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes: Vec<(&String, &NamedTensor, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, tensor)| {
                (name, tensor, tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect())
            })
            .collect();
        let views = bytes.iter().map(|(name, tensor, data)| {
            let view = TensorView::new(Dtype::F32, tensor.shape.clone(), data);
            (name.as_str(), view.expect("a tensor's values fill its shape"))
        });
        // transformers and others look for this entry before they trust a file.
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        safetensors::serialize(views, Some(metadata)).expect("names and shapes always serialise")
    }

    /// Writes a safetensors file, whole or not at all.
    pub fn write(&self, path: &Path, existing: Existing) -> Result<(), WeightsError> {
        Place::from(path)
            .write(&self.to_bytes(), existing)
            .map_err(|source| WeightsError::Io { path: path.into(), source })
    }
}
