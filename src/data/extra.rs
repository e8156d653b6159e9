//! Images besides those of a data set, as generated ones are published (arXiv 2302.04638): an `.npz` file with `image`, N x 32 x 32 x
//! 3 bytes, and `label`, N integers.

use std::io::{self, Write};
use std::path::Path;

use super::numpy::{ArrayFile, ImageChunks, header_of};
use super::pixel_order::to_pixels;
use super::{DataError, zip};
use crate::digest::sha256;
use crate::files;
use crate::model::layers::IMAGE_SIDE;

/// The arrays of a file, as NumPy names the members of an archive.
const IMAGE: &str = "image.npy";
const LABEL: &str = "label.npy";

/// A file that was checked: its labels, and its images where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraImages {
    pub labels: Vec<u32>,
    images: ArrayFile,
}

impl ExtraImages {
    /// The file at `path`; reads its labels and no image.
    ///
    /// # Errors
    /// [`DataError::Unlabelled`]; [`DataError::Io`] and [`DataError::Array`] for a file that is no archive or damaged, and for an
    /// array of another type, shape or size; [`DataError::Label`] for a label of `classes` or more.
    pub fn open(path: &Path, classes: usize) -> Result<Self, DataError> {
        let (images, labels) = arrays(path)?;
        let labels = labels.ok_or_else(|| DataError::Unlabelled { path: path.into() })?;
        Ok(Self { labels: labels.labels(images.images()?, classes)?, images })
    }

    /// The images, some thousand at a time: see [`ArrayFile::chunks`].
    pub fn chunks(&self) -> Result<ImageChunks<'_>, DataError> {
        self.images.chunks(self.labels.len())
    }

    /// SHA-256 of the labels and of the CRC-32 of the images that the archive holds, which is checked as they are read.
    pub fn sha256(&self) -> String {
        let crc = self.images.member.as_ref().map_or(0, |member| member.crc32);
        sha256(bytemuck::cast_slice(&[&[crc], &*self.labels].concat()))
    }
}

/// The arrays of images, whose type, shape and size are right, and of labels, where there is one.
///
/// # Errors
/// As [`ExtraImages::open`], but for what is in the labels.
pub fn arrays(path: &Path) -> Result<(ArrayFile, Option<ArrayFile>), DataError> {
    let members = files::open(path).and_then(|mut file| zip::members(&mut file));
    let members = members.map_err(|source| DataError::Io { path: path.into(), source })?;
    let array = |name: &str| {
        let member = members.iter().find(|member| member.name == name)?.clone();
        Some(ArrayFile::open_member(path, member))
    };
    let missing = || DataError::Array {
        array: path.display().to_string(),
        reason: format!("holds no {IMAGE}, expected an .npz file with the arrays image and label"),
    };
    let images = array(IMAGE).ok_or_else(missing)??;
    images.images()?;
    Ok((images, array(LABEL).transpose()?))
}

/// Writes such a file, the images chunk by chunk.
pub struct Writer<W: Write>(zip::Writer<W>);

impl<W: Write> Writer<W> {
    /// Begins a file of `count` images.
    pub fn new(out: W, count: usize) -> io::Result<Self> {
        let mut archive = zip::Writer::new(out);
        archive.begin(IMAGE)?;
        archive.write(&header_of("|u1", &[count, IMAGE_SIDE, IMAGE_SIDE, 3]))?;
        Ok(Self(archive))
    }

    /// Adds images, 3,072 bytes by planes each.
    pub fn images(&mut self, planes: &[u8]) -> io::Result<()> {
        self.0.write(&to_pixels(planes))
    }

    /// Writes the labels, of as many images as were added, and ends the file.
    pub fn finish(mut self, labels: &[u32]) -> io::Result<()> {
        self.0.begin(LABEL)?;
        self.0.write(&header_of("<i8", &[labels.len()]))?;
        self.0.write(&labels.iter().flat_map(|&label| i64::from(label).to_le_bytes()).collect::<Vec<_>>())?;
        self.0.finish()
    }
}
