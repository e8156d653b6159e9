//! Residual networks for 32x32 images, as data: an ordered list of layers with shapes and offsets, the passes over it, parameter names,
//! initial weights and weights files.
//!
//! Names and shapes are those of the common CIFAR ResNets in PyTorch (3x3 stem, no max pool, four stages of
//! basic blocks), so that `load_state_dict(safetensors.torch.load_file(f))` works on our files.

mod config;
pub mod foreign;
mod init;
pub mod layers;
mod layout;
pub mod pass;
mod weights;
mod weights_file;

pub use config::ModelConfig;
pub use init::initialise;
pub use layers::{Conv, Layer, Parameter, ParameterKind, ResNet, Residual};
pub use layout::{ConvSlot, FilterOrder, Layout};
pub use weights::{NamedTensor, Weights, WeightsError};
pub use weights_file::WeightsFile;
