//! Images besides those of a data set, as generated ones are published (arXiv 2302.04638): an `.npz` file with `image`, N x 32 x 32 x
//! 3 bytes, and `label`, N integers.

use std::io::{self, Write};
use std::path::Path;

use rawzip::ZipArchiveWriter;

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
    let members = files::open(path).and_then(zip::members);
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

/// Writes such a file: the `count` images that `images` hands over some at a time, 3,072 bytes by planes each, and the labels that it
/// returns.
pub fn write<E: From<io::Error>>(
    out: impl Write,
    count: usize,
    images: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<Vec<u32>, E>,
) -> Result<(), E> {
    let mut archive = ZipArchiveWriter::new(out);
    let mut labels = Vec::new();
    member(&mut archive, IMAGE, |out| {
        out.write_all(&header_of("|u1", &[count, IMAGE_SIDE, IMAGE_SIDE, 3]))?;
        labels = images(&mut |planes| out.write_all(&to_pixels(planes)))?;
        Ok::<_, E>(())
    })?;
    member(&mut archive, LABEL, |out| {
        out.write_all(&header_of("<i8", &[labels.len()]))?;
        out.write_all(&labels.iter().flat_map(|&label| i64::from(label).to_le_bytes()).collect::<Vec<_>>())
    })?;
    archive.finish().map_err(zip::io_error)?;
    Ok(())
}

/// Adds a stored member to an archive.
fn member<W: Write, E: From<io::Error>>(
    archive: &mut ZipArchiveWriter<W>,
    name: &str,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    let (mut entry, config) = archive.new_file(name).start().map_err(zip::io_error)?;
    let mut bytes = config.wrap(&mut entry);
    write(&mut bytes)?;
    let (_, descriptor) = bytes.finish().map_err(zip::io_error)?;
    entry.finish(descriptor).map_err(zip::io_error)?;
    Ok(())
}
