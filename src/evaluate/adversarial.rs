//! The adversarial images that an evaluation found, where they are asked for: kept until its end, then written as safetensors.
//!
//! Next to a state they lie in a file of their own, each at its position and with a digest, and are on disk before the state that
//! names them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use safetensors::tensor::{Dtype, TensorView};

use super::autoattack::{ImageResult, Progress};
use super::state::Settings;
use crate::data::pixel_order::to_planes;
use crate::data::{IMAGE_BYTES, Images};
use crate::digest::sha256;
use crate::files::{How, Place};
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use crate::ops::NO_CLASS;

/// Adversarial images by position, in memory or in a file.
pub enum AdversarialImages {
    Memory(BTreeMap<usize, Vec<f32>>),
    File {
        file: File,
        /// Of the settings: an image of another evaluation is none of this one.
        settings_sha256: String,
    },
}

impl AdversarialImages {
    pub fn in_memory() -> Self {
        Self::Memory(BTreeMap::new())
    }

    /// The file at `place` for an evaluation with `settings`, with what it holds if `keep`, else empty.
    pub fn in_file(place: &Place, keep: bool, settings: &Settings) -> io::Result<Self> {
        let file = place.open(if keep { How::Update } else { How::Empty })?;
        Ok(Self::File { file, settings_sha256: sha256(&serde_json::to_vec(settings)?) })
    }

    /// Keeps the image (32 x 32 x 3) at `position`.
    pub fn put(&mut self, position: usize, image: &[f32]) -> io::Result<()> {
        match self {
            Self::Memory(images) => {
                images.insert(position, image.to_vec());
                Ok(())
            }
            Self::File { file, settings_sha256 } => {
                let mut slot: Vec<u8> = image.iter().flat_map(|value| value.to_le_bytes()).collect();
                slot.extend(slot_digest(settings_sha256, position, &slot).as_bytes());
                file.seek(SeekFrom::Start(position as u64 * SLOT_BYTES as u64))?;
                file.write_all(&slot)
            }
        }
    }

    /// Writes what was put to disk.
    pub fn sync(&mut self) -> io::Result<()> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::File { file, .. } => file.sync_data(),
        }
    }

    /// The image at `position`, which was put before.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] where another one lies there, or a damaged one, or none.
    pub fn get(&mut self, position: usize) -> io::Result<Vec<f32>> {
        match self {
            Self::Memory(images) => {
                images.get(&position).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
            }
            Self::File { file, settings_sha256 } => {
                let mut slot = vec![0; SLOT_BYTES];
                file.seek(SeekFrom::Start(position as u64 * SLOT_BYTES as u64))?;
                let damaged =
                    || io::Error::new(io::ErrorKind::InvalidData, format!("image {position} is damaged"));
                file.read_exact(&mut slot).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => damaged(),
                    _ => error,
                })?;
                let (image, digest) = slot.split_at(IMAGE_LEN * 4);
                if digest != slot_digest(settings_sha256, position, image).as_bytes() {
                    return Err(damaged());
                }
                Ok(image.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect())
            }
        }
    }
}

/// An image and the 64 digits of its digest.
const SLOT_BYTES: usize = IMAGE_LEN * 4 + 64;

fn slot_digest(settings_sha256: &str, position: usize, image: &[u8]) -> String {
    sha256(&[settings_sha256.as_bytes(), &(position as u64).to_le_bytes(), image].concat())
}

/// The adversarial images of a protocol that has ended, and what the network predicts for them, as a safetensors file. `clean` are
/// the images that were evaluated.
///
/// `x_adv` (f32, N x 3 x 32 x 32: the clean image where none was found), `labels`, `clean_predictions`,
/// `adversarial_predictions` (i64, N; -1 where a logit is not finite) and `robust` (bool, N).
///
/// # Errors
/// Those of [`AdversarialImages::get`].
pub(super) fn to_safetensors(
    progress: &Progress,
    adversarial: &mut AdversarialImages,
    clean: &Images,
) -> io::Result<Vec<u8>> {
    let count = progress.results.len();
    let mut x_adv = Vec::with_capacity(count * IMAGE_BYTES * 4);
    for (position, result) in progress.results.iter().enumerate() {
        let image = match result {
            ImageResult::BrokenBy(_) => to_planes(&adversarial.get(position)?),
            _ => clean.image(position).iter().map(|byte| f32::from(*byte) / 255.0).collect(),
        };
        x_adv.extend(image.iter().flat_map(|value| value.to_le_bytes()));
    }
    let classes = |classes: &[u32]| -> Vec<u8> {
        let class = |class: &u32| if *class == NO_CLASS { -1 } else { i64::from(*class) };
        classes.iter().flat_map(|value| class(value).to_le_bytes()).collect()
    };
    let robust: Vec<u8> =
        progress.results.iter().map(|result| (*result == ImageResult::Robust).into()).collect();
    let labels = classes(&clean.labels[..count]);
    let clean_predictions = classes(&progress.clean_predictions);
    let adversarial_predictions = classes(&progress.adversarial_predictions);
    let tensors = [
        ("x_adv", Dtype::F32, vec![count, 3, IMAGE_SIDE, IMAGE_SIDE], &x_adv),
        ("labels", Dtype::I64, vec![count], &labels),
        ("clean_predictions", Dtype::I64, vec![count], &clean_predictions),
        ("adversarial_predictions", Dtype::I64, vec![count], &adversarial_predictions),
        ("robust", Dtype::BOOL, vec![count], &robust),
    ];
    let views = tensors.into_iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(dtype, shape, data).expect("a tensor's values fill its shape"))
    });
    Ok(safetensors::serialize(views, None).expect("names and shapes always serialise"))
}
