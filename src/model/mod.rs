//! ResNet-18 for 32x32 images, as a table: layers, parameter names, initial weights and weights files.
//!
//! Names and shapes are those of the common CIFAR ResNet-18 in PyTorch (3x3 stem, no max pool, four stages of
//! two basic blocks), so that `load_state_dict(safetensors.torch.load_file(f))` works on our files.

pub mod foreign;
mod init;
pub mod layers;
mod weights;

pub use init::initialise;
pub use layers::{Block, Conv, Parameter, ParameterKind, ResNet};
pub use weights::{NamedTensor, Weights, WeightsError};
