//! A weights file: a network's weights, and which bytes they were read from.

use std::path::{Path, PathBuf};

use super::{ResNet, Weights, WeightsError};
use crate::digest::sha256;

/// The weights of one whole and finite network, read from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightsFile {
    pub path: PathBuf,
    /// Of the bytes that were read.
    pub sha256: String,
    pub network: ResNet,
    pub weights: Weights,
}

impl WeightsFile {
    /// # Errors
    /// Those of [`Weights::read_network`].
    pub fn read(path: &Path) -> Result<Self, WeightsError> {
        Self::from_bytes(path, &Weights::read_bytes(path)?)
    }

    /// The file at `path`, whose bytes these are.
    ///
    /// # Errors
    /// Those of [`Weights::network_in_file`].
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, WeightsError> {
        let (network, weights) = Weights::network_in_file(path, bytes)?;
        Ok(Self { path: path.into(), sha256: sha256(bytes), network, weights })
    }
}
