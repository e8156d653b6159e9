//! CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich, ICLR 2019): a `.npy` file for each corruption of the test images, those of
//! severity 1 first and of severity 5 last, and `labels.npy`.

use std::path::Path;

use super::numpy::ArrayFile;
use super::{DataError, Images};
use crate::files;

/// Severities of a corruption.
pub const SEVERITIES: usize = 5;
/// The corruptions that the benchmark's mean is over ...
pub const STANDARD: [&str; 15] = [
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
];
/// ... and those that were made to choose hyper-parameters by.
pub const FURTHER: [&str; 4] = ["speckle_noise", "gaussian_blur", "spatter", "saturate"];

/// The images of one corruption, in their file.
#[derive(Clone, Debug)]
pub struct Corruption {
    pub name: &'static str,
    images: ArrayFile,
    /// Of all severities.
    labels: Vec<u32>,
}

/// Every corruption that `folder` has the file of, those of the benchmark first. Files and labels are checked, no image is read.
///
/// # Errors
/// [`DataError::NoCorruptions`], [`DataError::Severities`]; those of [`ArrayFile::images`] and [`ArrayFile::labels`].
pub fn open(folder: &Path, classes: usize) -> Result<Vec<Corruption>, DataError> {
    let mut found = Vec::new();
    for name in STANDARD.into_iter().chain(FURTHER) {
        let path = folder.join(format!("{name}.npy"));
        if !files::is_file(&path).map_err(|source| DataError::Io { path: path.clone(), source })? {
            continue;
        }
        let images = ArrayFile::open(&path)?;
        let count = images.images()?;
        if !count.is_multiple_of(SEVERITIES) {
            return Err(DataError::Severities { path, count });
        }
        let labels = ArrayFile::open(&folder.join("labels.npy"))?.labels(count, classes)?;
        found.push(Corruption { name, images, labels });
    }
    if found.is_empty() {
        let files = STANDARD.map(|name| format!("{name}.npy")).join(", ");
        return Err(DataError::NoCorruptions { folder: folder.into(), files });
    }
    Ok(found)
}

impl Corruption {
    /// Whether the benchmark's mean counts it.
    pub fn is_standard(&self) -> bool {
        STANDARD.contains(&self.name)
    }

    /// Images of each severity.
    pub fn count(&self) -> usize {
        self.labels.len() / SEVERITIES
    }

    /// The first `samples` images of each severity.
    ///
    /// # Errors
    /// [`DataError::Io`] where the file cannot be read.
    pub fn load(&self, samples: usize) -> Result<Images, DataError> {
        let mut images = Images { pixels: Vec::new(), labels: self.labels.clone() };
        for chunk in self.images.chunks(self.labels.len())? {
            images.pixels.extend(chunk?);
        }
        let count = self.count();
        if samples >= count {
            return Ok(images);
        }
        let first = (0..images.len()).filter(|index| index % count < samples).map(|index| index as u32);
        Ok(images.select(&first.collect::<Vec<_>>()))
    }
}
