//! Labelled 32x32 images: CIFAR files, generated images, extra and corrupted ones, downloads, splits and order.
//!
//! Plain host memory, which [`crate::ops::ImageSet`] takes to a device.

pub mod cifar;
mod config;
pub mod corruptions;
pub mod download;
pub mod extra;
pub mod generated;
pub mod numpy;
pub mod order;
pub mod pickle;
pub mod pixel_order;
pub mod python;
pub mod source;
pub mod zip;

use std::io;
use std::path::{Path, PathBuf};

pub use config::{DataConfig, Padding};
pub use generated::{GENERATED_TEST, GENERATED_TRAIN, MAX_GENERATED};
pub use order::{Split, ValidationSplit};

use crate::digest::sha256;
use crate::names::named;
use cifar::SUMS;
use extra::ExtraImages;

/// Bytes of one image: three planes of 32 x 32.
pub const IMAGE_BYTES: usize = 3 * 32 * 32;

/// Labelled images in the planar layout of the CIFAR files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// `len` x 3 x 32 x 32 bytes: red plane, green plane, blue plane, each by rows.
    pub pixels: Vec<u8>,
    /// Class indices, one an image.
    pub labels: Vec<u32>,
}

impl Images {
    pub fn len(&self) -> usize {
        self.labels.len()
    }
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
    /// The 3,072 bytes of one image.
    pub fn image(&self, index: usize) -> &[u8] {
        &self.pixels[index * IMAGE_BYTES..][..IMAGE_BYTES]
    }
    /// A copy of the images at `indices`, in that order.
    pub fn select(&self, indices: &[u32]) -> Self {
        let pixels = indices.iter().flat_map(|&index| self.image(index as usize)).copied().collect();
        Self { pixels, labels: indices.iter().map(|&index| self.labels[index as usize]).collect() }
    }
    /// SHA-256 of the first `count` images and their labels.
    pub fn sha256(&self, count: usize) -> String {
        let labels: Vec<u8> = self.labels[..count].iter().flat_map(|label| label.to_le_bytes()).collect();
        sha256([&self.pixels[..count * IMAGE_BYTES], &labels].map(sha256).concat().as_bytes())
    }
    /// Keeps the first `count` images.
    pub fn truncate(&mut self, count: usize) {
        self.labels.truncate(count);
        self.pixels.truncate(count * IMAGE_BYTES);
    }
    /// Images of each of `classes` classes.
    pub fn class_counts(&self, classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        for &label in &self.labels {
            counts[label as usize] += 1;
        }
        counts
    }
}

/// A training set and a test set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSet {
    /// `cifar10`, `cifar100` or `generated`.
    pub name: String,
    pub classes: usize,
    pub class_names: Vec<String>,
    pub train: Images,
    pub test: Images,
    /// Images besides, of which a share of every training batch is drawn: still in their files.
    pub extra: Vec<ExtraImages>,
}

named! {
    /// The sets there are.
    pub enum SetKind {
        Cifar10 = "cifar10",
        Cifar100 = "cifar100",
        /// Made by [`generated`]; needs no files.
        Generated = "generated",
    }
}

/// How many images a set has (or, generated, can have).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub train: usize,
    pub test: usize,
}

impl SetKind {
    pub fn classes(self) -> usize {
        match self {
            Self::Cifar10 => 10,
            Self::Cifar100 => 100,
            Self::Generated => generated::CLASS_NAMES.len(),
        }
    }

    pub fn class_names(self) -> Vec<String> {
        match self {
            Self::Cifar10 => cifar::CIFAR10.class_names(),
            Self::Cifar100 => cifar::CIFAR100.class_names(),
            Self::Generated => generated::CLASS_NAMES.map(String::from).to_vec(),
        }
    }

    /// How its files lie on disk; `None` for the generated set.
    pub fn layout(self) -> Option<cifar::Layout> {
        match self {
            Self::Cifar10 => Some(cifar::CIFAR10),
            Self::Cifar100 => Some(cifar::CIFAR100),
            Self::Generated => None,
        }
    }

    pub fn sizes(self) -> Sizes {
        match self {
            Self::Cifar10 => cifar::CIFAR10.sizes(),
            Self::Cifar100 => cifar::CIFAR100.sizes(),
            Self::Generated => Sizes { train: MAX_GENERATED, test: MAX_GENERATED },
        }
    }
}

/// Whether a path inside of the folder that `--data` names is that of a set's file.
pub fn is_of_a_set(path: &Path) -> bool {
    [cifar::CIFAR10, cifar::CIFAR100].iter().any(|layout| {
        let names = layout.files().map(|(name, _)| name).chain(layout.python_files.iter().copied());
        let folders = [layout.folder, layout.python_folder];
        folders.iter().any(|folder| path.starts_with(folder))
            || names.chain(layout.archives).chain([SUMS]).any(|name| path == Path::new(name))
    })
}

impl DataSet {
    /// The set `kind`, from what is at `folder` (see [`source`]) or generated; the first so many images of
    /// each part where a limit is given.
    pub fn open(
        kind: SetKind,
        folder: Option<&Path>,
        train_limit: Option<usize>,
        test_limit: Option<usize>,
    ) -> Result<Self, DataError> {
        let (train, test) = match (kind, folder) {
            (SetKind::Generated, None) => (
                generated::images(generated::Part::Train, train_limit.unwrap_or(GENERATED_TRAIN)),
                generated::images(generated::Part::Test, test_limit.unwrap_or(GENERATED_TEST)),
            ),
            (SetKind::Generated, Some(folder)) => return Err(DataError::Unwanted { folder: folder.into() }),
            (_, None) => return Err(DataError::NoFolder { set: kind }),
            (SetKind::Cifar10, Some(path)) => source::read(&cifar::CIFAR10, path, train_limit, test_limit)?,
            (SetKind::Cifar100, Some(path)) => source::read(&cifar::CIFAR100, path, train_limit, test_limit)?,
        };
        let (classes, class_names) = (kind.classes(), kind.class_names());
        Ok(Self { name: kind.name().into(), classes, class_names, train, test, extra: Vec::new() })
    }

    /// How many extra images there are.
    pub fn extra_count(&self) -> usize {
        self.extra.iter().map(|extra| extra.labels.len()).sum()
    }
}

/// Why a data set is refused.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error(
        "{set} needs its files: give --data DIR, or get them with `secateur data download {set} --out DIR`"
    )]
    NoFolder { set: SetKind },
    #[error(
        "--data {} was given, but the images are the generated ones, which are in no files", folder.display()
    )]
    Unwanted { folder: PathBuf },
    #[error(
        "{}: holds {actual}, expected {expected}", folder.display()
    )]
    WrongSet { folder: PathBuf, actual: SetKind, expected: SetKind },
    #[error(
        "{}: {} missing, expected the {form} version of {set} ({files}); {hint}", folder.display(), missing.join(", ")
    )]
    Missing {
        folder: PathBuf,
        missing: Vec<String>,
        set: SetKind,
        form: &'static str,
        files: String,
        hint: &'static str,
    },
    #[error(
        "{}: {what}; --data takes the folder that holds all files of {set}, the folder around it, or its archive (.tar.gz)", path.display()
    )]
    OneFile { path: PathBuf, what: String, set: SetKind },
    #[error("{}: not a file of the Python version of {set}: {reason}", path.display())]
    Pickle { path: PathBuf, set: SetKind, reason: String },
    #[error("{}: {actual} bytes, expected {expected} ({records} records of {record}); {diagnosis}", path.display())]
    Size { path: PathBuf, actual: u64, expected: u64, records: usize, record: usize, diagnosis: &'static str },
    #[error(
        "{}: record {record} has {what} {actual}, expected 0 to {}; the file is damaged or another set's", path.display(),
        classes - 1
    )]
    Label { path: PathBuf, record: usize, what: &'static str, actual: i64, classes: usize },
    #[error("{}: SHA-256 {actual}, expected {expected} ({SUMS}); the file is damaged", path.display())]
    Digest { path: PathBuf, actual: String, expected: String },
    #[error("{}: expected a line `SHA-256  NAME` for each file of the set, found none for {name}", path.display())]
    Sums { path: PathBuf, name: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{array}: {reason}")]
    Array { array: String, reason: String },
    #[error(
        "{path}: holds no label.npy; label its images with `secateur data label {path} --weights FILE --out LABELLED.npz`",
        path = path.display()
    )]
    Unlabelled { path: PathBuf },
    #[error("data.extra: {count} images, expected at most {most}")]
    TooManyExtra { count: usize, most: u64 },
    #[error(
        "{}: holds no file of a corruption, expected those of CIFAR-10-C or CIFAR-100-C: labels.npy, {files}", folder.display()
    )]
    NoCorruptions { folder: PathBuf, files: String },
    #[error("{}: {count} images, expected a multiple of 5, one of each severity", path.display())]
    Severities { path: PathBuf, count: usize },
    #[error("{expected} validation images, expected fewer than the {count} training images")]
    Validation { expected: usize, count: usize },
}
